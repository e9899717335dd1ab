"""The guidance that paints a defect as strongly as its photographs show it."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch

from anomaly.dataset import find_defects
from anomaly.drawn import demo
from anomaly.embedding import AnomalyEmbedding
from anomaly.painter import Settings
from anomaly.runs import guidance
from anomaly.runs.guidance import LARGEST, Strength, contrast, contrasts, scale_for, strength_of
from anomaly.sampler import Guidance
from anomaly.scores.pictures import mean_colour, ring


@pytest.mark.parametrize("goal, reached, scale", [
    (0.5, [0.3, 0.4], 3.0), (0.35, [0.3, 0.4], 1.5), (0.2, [0.3, 0.4], 1.0),
    (0.9, [0.3, 0.4], LARGEST), (0.9, [0.4, 0.4], 1.0), (0.9, [0.4, 0.3], 1.0)])
def test_the_scale_is_where_the_line_through_both_trials_meets_the_goal(goal, reached, scale):
    assert scale_for(goal, reached) == pytest.approx(scale)


def test_contrast_of_a_flat_disc_on_a_flat_ground_is_their_difference():
    y, x = np.mgrid[:40, :41]
    disc = torch.from_numpy(np.hypot(x - 19, y - 21) < 9)[None]
    for step in (0.25, -0.4):
        picture = (0.1 + step * disc)[:, None].expand(1, 3, 40, 41).float()
        assert contrast(picture, disc) == pytest.approx(abs(step), abs=1e-6)
        half_flat = torch.cat([picture, 0 * picture])
        assert contrast(half_flat, disc.expand(2, -1, -1)) == pytest.approx(
            abs(step) / 2 ** 0.5, abs=1e-6)


@pytest.fixture(scope="module")
def learned(sd, tmp_path_factory):
    """A defect of five drawn photographs, a learner, and settings."""
    patch = pytest.MonkeyPatch()
    for name, value in {"DEMO": (("wood", "burn"),), "DEFECTIVE": 5, "NORMALS": 1}.items():
        patch.setattr(demo, name, value)
    defect, = find_defects(demo.demo_data(tmp_path_factory.mktemp("data") / "demo"))
    patch.undo()
    settings = Settings(64, 2, Guidance(7.0, sd.context("")), torch.eye(4)[:, :3], None)
    return defect, AnomalyEmbedding(sd, [defect], seed=0).requires_grad_(False), settings


def test_both_sides_are_the_training_crops_each_once(sd, learned, monkeypatch):
    defect, learner, settings = learned
    seen = []

    def unpainted(sd, crops, context, noise, settings):
        assert len(context) == len(noise) == len(crops)
        seen.extend(crop.mask for crop in crops)
        return sd.vae.decode(sd.vae.encode(torch.stack([crop.image for crop in crops]))[0])
    monkeypatch.setattr(guidance, "paint_crops", unpainted)
    real, painted = contrasts(sd, defect, learner, settings)
    assert painted(1.0) == real > 0
    assert len(seen) == len(defect.examples) == 5
    assert len({mask.numpy().tobytes() for mask in seen}) == 5


def test_a_defect_painted_light_where_it_is_dark_counts_against_it(sd, learned, monkeypatch):
    """The paint is the photograph's own, or its mirror image in brightness round the ring."""
    defect, learner, settings = learned
    found = {}
    for sign in (1, -1):
        def painted(sd, crops, context, noise, settings, sign=sign):
            real = sd.vae.decode(sd.vae.encode(torch.stack([crop.image for crop in crops]))[0])
            masks = torch.stack([crop.mask for crop in crops])
            around = mean_colour(real, ring(masks))[:, :, None, None]
            return torch.where(masks[:, None], around + sign * (real - around), real)
        monkeypatch.setattr(guidance, "paint_crops", painted)
        real, contrast_with = contrasts(sd, defect, learner, settings)
        found[sign] = contrast_with(1.0) / real
    assert found[1] == pytest.approx(1) and found[-1] < 0.98


def test_of_many_photographs_the_first_are_painted_over(sd, learned, monkeypatch):
    defect, learner, settings = learned
    first, _ = contrasts(sd, replace(defect, examples=defect.examples[:3]), learner, settings)
    monkeypatch.setattr(guidance, "VIEWS", 3)
    assert contrasts(sd, defect, learner, settings)[0] == pytest.approx(first)


def test_what_is_not_finite_is_refused(sd, learned, monkeypatch):
    defect, learner, settings = learned
    monkeypatch.setattr(guidance, "paint_crops",
                        lambda sd, crops, *rest: torch.full((len(crops), 3, 64, 64), nan))
    with pytest.raises(RuntimeError, match="wood/burn: what is painted is not finite"):
        strength_of(sd, defect, learner, settings)


@pytest.mark.parametrize("falls, expected", [(False, 3.0), (True, 2.0)])
def test_a_scale_beyond_those_painted_with_must_come_nearer(
        sd, learned, monkeypatch, falls, expected):
    """A stand-in whose contrast rises to 6/7 of the real one at scale 2, then rises on or falls."""
    defect, learner, settings = learned
    real, _ = contrasts(sd, defect, learner, settings)

    def bent(sd, crops, context, noise, settings):
        scale = settings.guidance.scale
        strength = real * (4 + min(scale, 2 if falls else scale) - falls * max(scale - 2, 0)) / 7
        return torch.stack([strength * crop.mask.expand(3, -1, -1) for crop in crops])
    monkeypatch.setattr(guidance, "paint_crops", bent)
    reached = real * (6 if falls else 7) / 7
    found = strength_of(sd, defect, learner, settings)
    assert found.guidance == pytest.approx(expected, abs=0.005)
    assert found.contrast == pytest.approx(reached, rel=0.005)
    assert found.goal == pytest.approx(real)
    scales, heights = np.array(found.line).T
    assert scales == pytest.approx([1, 2, 3], abs=0.005)
    assert 7 * heights / real == pytest.approx([5, 6, 5 if falls else 7], abs=0.02)


def test_what_is_not_finite_beyond_the_scales_is_refused(sd, learned, monkeypatch):
    defect, learner, settings = learned

    def broken(sd, crops, context, noise, settings):
        scale = settings.guidance.scale
        strength = scale / 100 if scale <= 2 else nan
        return torch.stack([strength * crop.mask.expand(3, -1, -1) for crop in crops])
    monkeypatch.setattr(guidance, "paint_crops", broken)
    with pytest.raises(RuntimeError, match="wood/burn: what is painted is not finite"):
        strength_of(sd, defect, learner, settings)


FOUND = Strength(1.5, 0.4, ((1.0, 0.3), (2.0, 0.5)))


@pytest.mark.parametrize("strength, scale, expected", [
    (1, 1.5, 0.4), (0.5, 1.0, 0.3), (0.75, 1.0, 0.3), (1.25, 2.0, 0.5), (1.5, 2.5, 0.6),
    (2, 3.5, 0.8), (3, 4.0, 0.9)])
def test_a_strength_asks_for_so_much_of_the_photographs_contrast(strength, scale, expected):
    assert FOUND.at(strength) == pytest.approx((scale, expected))


def test_a_line_that_falls_is_not_followed_beyond_its_highest_point():
    falling = Strength(2.0, 0.6, ((1.0, 0.3), (2.0, 0.5), (3.5, 0.45)))
    assert falling.at(1.5) == (2.0, 0.5)
    assert falling.at(0.7) == pytest.approx((1.6, 0.42))


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.75])
def test_the_guidance_found_is_the_one_that_gives_the_photographs_contrast(
        sd, learned, monkeypatch, scale):
    """A stand-in that paints flat and the stronger the higher the scale."""
    defect, learner, settings = learned
    real, _ = contrasts(sd, defect, learner, settings)

    def flat(sd, crops, context, noise, settings):
        strength = real / scale * settings.guidance.scale
        return torch.stack([strength * crop.mask.expand(3, -1, -1) for crop in crops])
    monkeypatch.setattr(guidance, "paint_crops", flat)
    found = strength_of(sd, defect, learner, settings)
    assert found.guidance == pytest.approx(scale, abs=0.005)
    assert found.goal == pytest.approx(real) and found.contrast == pytest.approx(real, rel=0.005)
    other = replace(settings, guidance=Guidance(2.0, sd.context("")))
    assert strength_of(sd, defect, learner, other) == found
