"""The text encoder against transformers' CLIPTextModel, on the same random weights."""

import pytest
import torch
from transformers import CLIPTextModel

from benchmarks.random_models import small_text_encoder
from ldm.config import TextConfig
from ldm.text_encoder import TextEncoder

ARCHITECTURES = {
    "two layers": {},
    "three layers, other heads": {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 80, "vocab_size": 100},
}


def reference_model(**changes) -> CLIPTextModel:
    """Louder than initial weights: as in the published ones, attention and GELU bend."""
    reference = small_text_encoder(**changes)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0 if "fc1" in name else 8.0)
    return reference


def quiet(reference: CLIPTextModel) -> CLIPTextModel:
    """Scale down what the norms read until its variance is as small as eps, which then shows."""
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.split(".")[-2] in ("token_embedding", "position_embedding", "out_proj", "fc2"):
                parameter.mul_(0.005)
    return reference


def ours(reference: CLIPTextModel) -> TextEncoder:
    """Our encoder of the same sizes with the same weights, copied strictly."""
    c = reference.config
    encoder = TextEncoder(TextConfig(
        vocab_size=c.vocab_size, width=c.hidden_size, layers=c.num_hidden_layers,
        heads=c.num_attention_heads, mlp_width=c.intermediate_size,
        context_length=c.max_position_embeddings))
    encoder.load_state_dict(reference.state_dict(), strict=True)
    return encoder.eval()


def token_ids(reference, kind, b, length=77):
    """noisy: any tokens; flat: one word and then the end token to the end, as most prompts are."""
    torch.manual_seed(7)
    size = reference.config.vocab_size
    ids = torch.randint(0, size, (b, length))
    ids[:, 0] = size - 2
    if kind == "flat":
        ids[:, 2:] = size - 1
    return ids


@torch.no_grad()
def assert_encodes_as(reference, ids):
    encoder = ours(reference)
    expected = reference(ids).last_hidden_state
    found = encoder.encode(encoder.embed(ids))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embed_then_encode_equals_transformers_from_ids(name, kind, b):
    reference = reference_model(**ARCHITECTURES[name])
    assert_encodes_as(reference, token_ids(reference, kind, b))


@pytest.mark.parametrize("kind", ["noisy", "flat"])
def test_contexts_equal_transformers_where_the_norms_eps_decides(kind):
    reference = quiet(reference_model())
    assert_encodes_as(reference, token_ids(reference, kind, 2))


def test_a_shorter_context_equals_transformers():
    reference = reference_model()
    assert_encodes_as(reference, token_ids(reference, "noisy", 2, length=9))


def test_embed_reads_the_table_without_positions():
    reference = reference_model()
    ids = token_ids(reference, "noisy", 2)
    expected = reference.get_input_embeddings().weight[ids]
    assert torch.equal(ours(reference).embed(ids), expected)
    assert torch.equal(ours(reference).word_table, reference.get_input_embeddings().weight)


@torch.no_grad()
@pytest.mark.parametrize("changed", [1, 40, 76])
def test_a_token_reaches_itself_and_later_tokens_but_none_before(changed):
    encoder = ours(reference_model())
    ids = token_ids(reference_model(), "noisy", 1)
    other = ids.clone()
    other[0, changed] = (ids[0, changed] + 1) % 100
    before, after = (encoder.encode(encoder.embed(i))[0] for i in (ids, other))
    torch.testing.assert_close(before[:changed], after[:changed], rtol=0, atol=1e-6)
    assert ((before - after)[changed:].abs().amax(dim=-1) > 1e-4).all()
