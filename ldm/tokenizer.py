"""CLIP's byte-pair tokenizer: texts -> token ids (b, L), on the `tokenizers` package.

The vocabulary and the merges are given (a checkpoint's own); the rules around them (normalisation,
splitting, start and end tokens) are CLIP's and stand here.
"""

import torch
from tokenizers import Regex, Tokenizer as BPETokenizer
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
# OpenAI's simple_tokenizer.py: contractions, words, single digits, runs of anything else.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Texts to ids; raises ValueError if the vocabulary is not one of CLIP's format."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], context_length: int):
        missing = [token for token in (START, END) if token not in vocab]
        if missing:
            raise ValueError(f"not a CLIP vocabulary: {missing[0]} is missing from {len(vocab)} tokens")
        self.context_length = context_length
        self.start_id, self.end_id = vocab[START], vocab[END]
        self._bpe = BPETokenizer(models.BPE(
            vocab=vocab, merges=merges, unk_token=END, continuing_subword_prefix="",
            end_of_word_suffix="</w>", fuse_unk=False))
        self._bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        self._bpe.add_special_tokens([START, END])

    def tokens(self, text: str) -> list[int]:
        """The ids of a text alone: no start, no end, no padding, not cut."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def __call__(self, texts: list[str]) -> Tensor:
        """texts -> (b, L) int64: start, at most L - 2 tokens, end, padded with the end token (SD 1.x)."""
        rows = []
        for text in texts:
            ids = [self.start_id, *self.tokens(text)[:self.context_length - 2], self.end_id]
            rows.append(ids + [self.end_id] * (self.context_length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)
