"""The measures of bench.py checkpoint on cases with a known answer, and the whole of it in little."""

import numpy as np
import pytest
import torch

from anomaly.output.synthetic import demo
from benchmarks import checkpoint, segmenter

FACTOR = 4


def square(side, size=64, at=8, copies=1):
    mask = np.zeros((size, size), dtype=bool)
    for i in range(copies):
        mask[at:at + side, at + 16 * i:at + 16 * i + side] = True
    return mask


def test_distances_are_zero_between_equal_sets_and_one_between_disjoint_ones():
    small, large = [square(4), square(6)], [square(30), square(40)]
    assert checkpoint.distances(small, small, FACTOR) == {"area": 0, "elongation": 0, "parts": 0}
    assert checkpoint.distances(small, large, FACTOR)["area"] == 1
    two = [square(4, copies=2), square(6, copies=2)]
    found = checkpoint.distances(two, small, FACTOR)
    assert found["parts"] == 1 and found["elongation"] == 1
    half = checkpoint.distances([small[0], two[0]], small, FACTOR)
    assert half["parts"] == 0.5 and half["elongation"] == 0.5


def test_alike_allows_a_tenth_above_the_training_masks_own_distance():
    own = {"area": 0.2, "parts": 0.0}
    assert checkpoint.alike({"area": 0.29, "parts": 0.1}, own)
    assert not checkpoint.alike({"area": 0.29, "parts": 0.11}, own)
    assert not checkpoint.alike({"area": 0.31, "parts": 0.0}, own)


def test_another_kinds_real_masks_are_not_alike():
    """The check that generated masks must pass fails on masks of the generator's other defects."""
    fresh = {}
    for product, defect in demo.DEMO[:2]:
        rng = np.random.default_rng(0)
        fresh[defect] = checkpoint.crop_masks([checkpoint.draw_scene(rng, product, defect).render(demo.FRAME)[1]
                                               for _ in range(24)], 64, FACTOR)
    own = checkpoint.distances(fresh["glue"][:12], fresh["glue"][12:], FACTOR)
    assert not checkpoint.alike(checkpoint.distances(fresh["scratch"], fresh["glue"][12:], FACTOR), own)


def test_empty_masks_count_as_generated_ones():
    empty = np.zeros((64, 64), dtype=bool)
    found = checkpoint.distances([empty, empty, square(4), square(6)], [square(4), square(6)], FACTOR)
    assert found == {"area": 0.5, "elongation": 0, "parts": 0.5}


def test_a_mask_picture_is_told_from_a_photograph():
    mask = square(9)
    picture = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    assert checkpoint.is_mask_picture(picture, mask) and not checkpoint.is_mask_picture(picture + 1, mask)


def test_each_corner_is_opposite_to_the_one_that_shares_neither_word():
    for corner, other in checkpoint.OPPOSITE.items():
        assert not set(corner.split()) & set(other.split())


@pytest.mark.parametrize("corner", checkpoint.CORNERS)
def test_the_quadrant_is_that_of_the_centre_of_what_the_segmenter_marks(corner):
    def net(pictures):
        """Marks what is white, as sure logits."""
        return 20 * pictures[:, 0]
    picture = -torch.ones(2, 3, 128, 128)
    row, column = (20 if word in ("top", "left") else 90 for word in corner.split())
    picture[0, :, row:row + 12, column:column + 12] = 1
    assert segmenter.quadrants(net, picture) == [corner, ""]


def test_the_whole_benchmark_in_little(monkeypatch, capsys):
    for module, values in (
            (checkpoint, {"UNSEEN": 24, "IMAGES": 2, "SEEDS": 1, "MASKS": 4, "STEPS": 2}),
            (segmenter, {"STEPS": 2, "BATCH": 2, "PICTURES": 24}),
            (demo, {"DEFECTIVE": 6, "NORMALS": 1}), (checkpoint.train_embed, {"VIEWS": 4})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    train = checkpoint.train_embed.main
    monkeypatch.setattr(checkpoint.train_embed, "main", lambda argv: train([*argv, "--steps", "2"]))
    checkpoint.main()
    out = capsys.readouterr().out
    for line in ("| drawn photographs |", "| leather/glue | training masks | 2 | 0 |", "| metal/scratch | generated | 4 |",
                 "| wood/burn | the generator's scratch | 4 | 0 |", "| defect in the named corner, of 64 samples |",
                 "| learned | wood/burn |", "| as it starts | wood/burn |"):
        assert line in out
    assert "nan" not in out
