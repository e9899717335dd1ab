"""Learned vectors in the prompt."""

import pytest
import torch
from transformers import CLIPTextModel

from anomaly.prompt import PROMPT, learned_context


def test_words_in_place_of_the_star_give_the_context_of_the_prompt_with_those_words(sd):
    words = sd.tokenizer.tokens("crack the photo")
    assert len(words) == 3
    vectors = sd.text_encoder.word_table[words][None]
    expected = sd.context("a photo of crack the photo")
    torch.testing.assert_close(learned_context(sd, vectors), expected, rtol=1e-5, atol=1e-6)


def test_the_context_equals_transformers_with_the_vectors_in_its_table(sd, checkpoint):
    reference = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").eval()
    vectors = 0.02 * torch.randn(2, 3, 32)
    ids = sd.tokenizer([PROMPT.replace("*", "x y z")])[0].tolist()
    for row in range(2):
        with torch.no_grad():
            table = reference.get_input_embeddings().weight
            for word, vector in zip("xyz", vectors[row]):
                table[sd.tokenizer.tokens(word)[0]] = vector
            expected = reference(torch.tensor([ids])).last_hidden_state
        found = learned_context(sd, vectors)[row:row + 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_vector(sd):
    vectors = (0.02 * torch.randn(2, 12, 32)).requires_grad_()
    learned_context(sd, vectors).square().sum().backward()
    assert (vectors.grad.abs().sum(dim=-1) > 0).all()


def test_vectors_that_do_not_fit_are_refused(sd):
    assert learned_context(sd, torch.zeros(1, 72, 32)).shape == (1, 77, 32)
    with pytest.raises(ValueError, match="73 learned vectors do not fit a context of 77"):
        learned_context(sd, torch.zeros(1, 73, 32))
