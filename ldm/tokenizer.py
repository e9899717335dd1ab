"""CLIP's byte-pair tokenizer: texts -> token ids (b, L), on the `tokenizers` package.

The merges are given (a checkpoint's own, or the published ones in weights/clip_bpe); the rules
around them (normalisation, splitting, start and end tokens) are CLIP's and stand here. The same
text has the same ids in SD 1.x and 2.x, the padding differs.
"""

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BPETokenizer
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
# OpenAI's simple_tokenizer.py: contractions, words, single digits, runs of anything else.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes, in CLIP's order (GPT-2's bytes_to_unicode)."""
    visible = [b for first, last in ("!~", "¡¬", "®ÿ") for b in range(ord(first), ord(last) + 1)]
    return [chr(b) for b in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's ids from its merges: bytes, bytes at a word's end, one token a merge, start, end."""
    single = byte_characters()
    tokens = [*single, *(c + "</w>" for c in single), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


class Tokenizer:
    """Texts to ids; raises ValueError if the vocabulary is not one of CLIP's format."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], context_length: int,
                 zero_padding: bool = False):
        missing = [token for token in (START, END) if token not in vocab]
        if missing:
            raise ValueError(
                f"not a CLIP vocabulary: {missing[0]} is missing from {len(vocab)} tokens")
        self.context_length = context_length
        self.start_id, self.end_id = vocab[START], vocab[END]
        # SD 2.x: open_clip pads with 0, which is also the id of "!" inside a word. transformers
        # makes every "!" of a prompt that padding token (0); here it keeps its own id (256 as a
        # word), as in open_clip.
        self.pad_id = 0 if zero_padding else self.end_id
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
        """texts -> (b, L) int64: start, at most L - 2 tokens, end, padding (end; SD 2.x: zeros)."""
        rows = []
        for text in texts:
            ids = [self.start_id, *self.tokens(text)[:self.context_length - 2], self.end_id]
            rows.append(ids + [self.pad_id] * (self.context_length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)
