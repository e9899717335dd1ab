"""The learned vectors: their scale, and their start, which seed and defect alone decide."""

import torch

from anomaly.dataset import Defect
from anomaly.embedding import (
    E_A_VECTORS,
    E_M_VECTORS,
    E_S_VECTORS,
    AnomalyEmbedding,
    MaskEmbedding,
    initial_vectors,
    seed_of,
    word_rms,
)

CRACK, HOLE = Defect("tile", "crack", ()), Defect("tile", "blow_hole", ())


def test_shapes_are_those_of_the_paper(sd):
    masks = torch.zeros(2, 64, 64)
    vectors = AnomalyEmbedding(sd, [CRACK], 0)(CRACK.stem, masks)
    assert list(vectors) == ["e_a", "e_s"]
    assert vectors["e_a"].shape == (2, E_A_VECTORS, 32)
    assert vectors["e_s"].shape == (2, E_S_VECTORS, 32)
    assert MaskEmbedding(sd, [CRACK], 0)(CRACK.stem, masks)["e_m"].shape == (2, E_M_VECTORS, 32)
    assert (E_A_VECTORS, E_S_VECTORS, E_M_VECTORS) == (8, 4, 4)


def test_vectors_start_at_the_known_word_else_at_the_mean_word(sd):
    table = sd.text_encoder.word_table
    rms = table.square().mean().sqrt()
    crack = table[sd.tokenizer.tokens("crack")[0]]
    for word, centre in (("crack", crack), ("zyx", table.mean(dim=0))):
        vectors = initial_vectors(sd, word, 4000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(vectors.mean(dim=0), centre, atol=float(0.03 * rms), rtol=0)
        torch.testing.assert_close(vectors.std(dim=0).mean(), 0.3 * rms, rtol=0.02, atol=0)


def test_half_of_a_mask_models_vectors_start_at_mask_and_half_at_the_defect(sd):
    table = sd.text_encoder.word_table
    assert len(sd.tokenizer.tokens("mask")) > 1     # unknown here: the mean word
    centres = torch.stack([table.mean(dim=0), table[sd.tokenizer.tokens("crack")[0]]])
    e_m = MaskEmbedding(sd, [CRACK], 0).e_m[CRACK.stem].detach()
    assert torch.cdist(e_m, centres).argmin(dim=1).tolist() == [0, 0, 1, 1]


def test_a_vector_of_the_encoder_has_the_norm_of_a_word_for_any_mask(sd):
    learner = AnomalyEmbedding(sd, [CRACK], 0)
    masks = torch.stack([torch.zeros(64, 64), torch.ones(64, 64), torch.eye(64)])
    norms = learner.spatial_encoder(masks).square().mean(dim=-1).sqrt()
    torch.testing.assert_close(norms, torch.full_like(norms, word_rms(sd)), rtol=1e-2, atol=0)


def test_a_defects_start_does_not_depend_on_the_others_and_does_on_the_seed(sd):
    alone = AnomalyEmbedding(sd, [CRACK], 0).e_a[CRACK.stem]
    beside = AnomalyEmbedding(sd, [HOLE, CRACK], 0).e_a[CRACK.stem]
    other = AnomalyEmbedding(sd, [CRACK], 1).e_a[CRACK.stem]
    assert torch.equal(alone, beside) and not torch.equal(alone, other)
    assert seed_of(0, 1) != seed_of(1, 0) and seed_of(2 ** 40) != seed_of(0)


def test_building_a_learner_leaves_the_global_generator_alone(sd):
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    AnomalyEmbedding(sd, [CRACK], 0)
    assert torch.equal(torch.randn(3), expected)
