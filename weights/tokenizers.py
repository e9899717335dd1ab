"""A checkpoint's tokenizer: its folder's own files, or CLIP's published merges, shipped here."""

from pathlib import Path

from ldm.config import TextConfig
from ldm.tokenizer import Tokenizer, vocabulary
from weights.configs import read_json
from weights.files import refuse_dangling, refuse_pointer

PUBLISHED = Path(__file__).parent / "clip_bpe" / "merges.txt"


def read_merges(path: Path) -> list[str]:
    """The lines of a merges.txt without its version; FileNotFoundError if there is none."""
    refuse_dangling(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found beside vocab.json; copy it from the model")
    text = path.read_text(encoding="utf-8", errors="replace")
    refuse_pointer(path, text)
    return [line for line in text.splitlines() if line and not line.startswith("#version")]


def published_tokenizer(config: TextConfig) -> Tokenizer:
    """CLIP's, for a single file: the same for SD 1.x and 2.x but for the padding."""
    merges = [(first, second) for first, second in map(str.split, read_merges(PUBLISHED))]
    return Tokenizer(vocabulary(merges), merges, config.context_length, config.zero_padding)


def folder_tokenizer(folder: Path, config: TextConfig) -> Tokenizer:
    """vocab.json and merges.txt, or tokenizer.json; the published one if there is no such folder.

    Raises ValueError if the files are not a tokenizer of CLIP's format.
    """
    if not folder.is_dir():
        tokenizer = published_tokenizer(config)
        if tokenizer.end_id + 1 != config.vocab_size:
            raise FileNotFoundError(
                f"{folder}: not found, and the text encoder's {config.vocab_size} tokens are "
                f"not CLIP's {tokenizer.end_id + 1}; copy the folder from the model")
        return tokenizer
    refuse_dangling(folder / "vocab.json")
    if not (folder / "vocab.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        model = model if isinstance(model, dict) else {}
        vocab, merges = model.get("vocab", {}), model.get("merges", [])
    else:
        vocab, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    try:
        # Pairs, or strings with a space, as in merges.txt and in files of tokenizers before 0.20.
        merges = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in merges]
        beyond = [token for token, i in vocab.items() if not 0 <= i < config.vocab_size]
        if beyond:
            raise ValueError(f"{beyond[0]!r} has id {vocab[beyond[0]]}, but the text encoder knows "
                             f"{config.vocab_size} tokens")
        return Tokenizer(vocab, merges, config.context_length, config.zero_padding)
    except Exception as err:    # the tokenizers package raises bare Exception for a bad vocabulary
        raise ValueError(f"{folder}: not a CLIP tokenizer ({str(err)!r})") from None
