"""The tokenizer against transformers' CLIPTokenizer, on a small vocabulary and on CLIP's own."""

import hashlib
import json
import re

import pytest
import torch
from transformers import CLIPTokenizer

from benchmarks.random_models import MERGES, byte_vocabulary
from ldm.config import SD2_TEXT, TextConfig
from ldm.tokenizer import Tokenizer, vocabulary
from weights.tokenizers import PUBLISHED, folder_tokenizer, published_tokenizer, read_merges

# Beside the checkpoint's: merges of contractions, accents, emoji, and over splits that must stay.
MERGES_HERE = MERGES + ["' s</w>", "' l", "'l l</w>", "Ã ©</w>", "Ã ©", "c a", "ca f", "caf Ã©</w>",
                        "ð Ł", "! !", "!! !</w>", "1 2</w>", "1 2", "> <", "c 3", "- -</w>"]
TEXTS = [
    "", " ", "a photo of crack", "A PHOTO OF A CRACK", "a photo of *", "*", "**", "!", "!!!",
    "hello!",
    "  leading and trailing  ", "tabs\tand\nnewlines\r\n\x0b\x0cand more",
    "non\u00a0breaking\u2003space",
    "it's we're I've I'm you'll he'd don't can't", "IT'S WE'RE", "'s 't 're 've 'm 'll 'd",
    "rock'n'roll ''s",
    "it\u2019s curly", "café", "cafe\u0301", "CAFÉ", "cafE\u0301s", "naïve Ångström Ω ﬁ ½ ²",
    "İstanbul ISTANBUL ıi", "straße STRASSE ẞ", "Σίσυφος ΣΊΣΥΦΟΣ", "o\u0308\u0323 a\u030a",
    "x̸ z̷̛",
    "0", "12", "1234567890", "3.14159 1e-5 1,000", "c3po r2d2", "١٢٣ ४५६ Ⅻ ①",
    "...", "?!?!?!", "--- // -- \\ ~~", "a-b_c.d", "(a) [b] {c} <d>", "#$%&@^`|",
    "&lt;b&gt; &amp;amp;",
    "😀", "👩‍👩‍👧‍👦 👍🏽 🇫🇷", "a😀b", "裂纹的照片",
    "ひび割れ カタカナ ｶﾀｶﾅ", "균열 사진", "трещина ТРЕЩИНА й и\u0306",
    "שלום עולם", "صدع في المعدن", "दरार नमस्ते", "รอยแตก", "zero\u200bwidth\u200djoin\ufeff",
    "\x00\x07 control",
    "<|endoftext|>", "<|startoftext|>", "a<|endoftext|>b",
    "x <|startoftext|> y <|endoftext|><|endoftext|>",
    "<|ENDOFTEXT|>", "<|endoftext|", "< |endoftext|>", "break" * 60, "break " * 100, "x" * 500,
    "é" * 90,
    "crack the photo breaking " * 20, "a photo of " + "!" * 100,
]


def text_config(**changes):
    return TextConfig(**{"vocab_size": len(byte_vocabulary(MERGES_HERE)), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(byte_vocabulary(MERGES_HERE)), encoding="utf-8")
    lines = ["#version: 0.2", *MERGES_HERE, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return folder_tokenizer(folder, text_config())


def ids_of(reference, texts, length=77):
    return reference(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(tokenizer, reference, text):
    assert tokenizer([text]).tolist() == ids_of(reference, [text])


def test_a_batch_equals_its_texts_one_by_one(tokenizer, reference):
    assert tokenizer(TEXTS).shape == (len(TEXTS), 77)
    assert tokenizer(TEXTS).tolist() == ids_of(reference, TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_ids_without_ends(tokenizer, reference, text):
    assert tokenizer.tokens(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_another_context_length_cuts_and_pads_as_transformers(folder, reference):
    tokenizer = folder_tokenizer(folder, text_config(context_length=9))
    assert tokenizer(TEXTS).tolist() == ids_of(reference, TEXTS, 9)


def test_a_folder_saved_again_by_transformers_5_gives_the_same_ids(tokenizer, reference, tmp_path):
    reference.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file() and not (tmp_path / "vocab.json").exists()
    again = folder_tokenizer(tmp_path, text_config())
    assert again(TEXTS).tolist() == tokenizer(TEXTS).tolist()


def test_each_unknown_character_becomes_one_end_token_as_in_transformers(tmp_path):
    known = {token for token in byte_vocabulary([]) if not token.startswith(("q", "x"))}
    vocab = {token: i for i, token in enumerate(sorted(known))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    texts = ["aqxqa", "qq", "x", "a x q"]
    expected = ids_of(CLIPTokenizer.from_pretrained(tmp_path), texts)
    assert expected[1][1:4] == 3 * [vocab["<|endoftext|>"]]
    assert folder_tokenizer(tmp_path, text_config())(texts).tolist() == expected


def test_a_vocabulary_without_the_end_token_is_refused():
    vocab = byte_vocabulary(MERGES)
    del vocab["<|endoftext|>"]
    missing = "not a CLIP vocabulary: <|endoftext|> is missing"
    with pytest.raises(ValueError, match=re.escape(missing)):
        Tokenizer(vocab, [tuple(m.split()) for m in MERGES], 77)


def test_the_merges_that_ship_are_the_published_ones_and_give_the_published_vocabulary():
    """sha256 of tokenizer/merges.txt and tokenizer/vocab.json of the published folders."""
    assert hashlib.sha256(PUBLISHED.read_bytes()).hexdigest().startswith("9fd691f7c8039210")
    vocab = vocabulary([tuple(merge.split()) for merge in read_merges(PUBLISHED)])
    text = json.dumps(vocab, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert len(vocab) == 49408
    assert hashlib.sha256(text.encode()).hexdigest().startswith("e089ad92ba36837a")


@pytest.fixture(scope="module")
def published_reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    merges = [tuple(merge.split()) for merge in read_merges(PUBLISHED)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
    (folder / "merges.txt").write_bytes(PUBLISHED.read_bytes())
    return CLIPTokenizer.from_pretrained(folder)


def test_ids_of_the_published_merges_equal_transformers(published_reference):
    found, expected = published_tokenizer(TextConfig())(TEXTS), ids_of(published_reference, TEXTS)
    for text, ours, theirs in zip(TEXTS, found.tolist(), expected):
        assert ours == theirs, text


# As open_clip_torch 3.3.0 gives them: its SimpleTokenizer pads with 0.
OPEN_CLIP = {
    "": [],
    "!": [256],
    "hello!": [3306, 256],
    "!!! broken!": [995, 5107, 256],
    "wow !!! a crack": [2781, 995, 320, 10334],
    "a photo of a *": [320, 1125, 539, 320, 265],
    "it's 1234, isn't it?": [585, 568, 272, 273, 274, 275, 267, 2923, 713, 585, 286],
    "naïve café": [1097, 35689, 563, 15304],
}


@pytest.mark.parametrize("text", OPEN_CLIP)
def test_sd_2_pads_with_zero_and_keeps_its_exclamation_marks_as_open_clip(text):
    expected = [49406, *OPEN_CLIP[text], 49407]
    found = published_tokenizer(SD2_TEXT)([text])[0].tolist()
    assert found == expected + [0] * (77 - len(expected))


def test_sd_2_cuts_a_long_text_to_its_end_token_as_sd_1_does():
    text = "crack " * 200
    found, expected = (published_tokenizer(config)([text]) for config in (SD2_TEXT, TextConfig()))
    assert torch.equal(found, expected)


def test_a_folder_without_a_tokenizer_has_the_published_one(tmp_path):
    expected = published_tokenizer(TextConfig())(TEXTS)
    assert torch.equal(folder_tokenizer(tmp_path / "tokenizer", TextConfig())(TEXTS), expected)
    message = "the text encoder's 77 tokens are not CLIP's 49408"
    with pytest.raises(FileNotFoundError, match=message):
        folder_tokenizer(tmp_path / "tokenizer", TextConfig(vocab_size=77))
