"""The gate: its bounds, what it rests on, and its verdicts on planted failures."""

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from anomaly.crop import Crop, defect_crop, take
from anomaly.dataset import Defect, Example
from anomaly.files.atomic_files import write_json
from anomaly.painter import Settings
from anomaly.runs import gating
from anomaly.runs.gating import composited, load_gate, save_gates
from anomaly.runs.run_folder import Run
from anomaly.sampler import Guidance
from anomaly.scores.gate import (
    Material,
    apart,
    calibrate,
    distinct,
    interval,
    judge,
    t_quantile,
    verdicts,
)
from anomaly.scores.surfaces import Framed, frames_of, in_place

N, SIZE = 12, 64


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("p", [0.9, 0.99, 0.995])
@pytest.mark.parametrize("df", [1, 2, 5, 11, 40])
def test_quantiles_are_scipys(p, df):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-3)


def test_an_interval_holds_the_next_value_as_often_as_said():
    rng, hits = np.random.default_rng(0), []
    for _ in range(500):
        *known, new = rng.normal(3, 2, 6)
        low, high = interval(torch.tensor(known), 5, 0.9, -inf, inf)
        hits.append((low < new, new < high))
    assert np.mean(hits, axis=0) == pytest.approx([0.9, 0.9], abs=0.04)


def test_an_interval_is_the_textbooks():
    values, groups = [0.3, 0.5, 0.4, 0.9, 0.1, 0.2], 3
    reach = stats.t.ppf(0.95, groups - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / groups)
    assert interval(torch.tensor(values), groups, 0.95, -inf, inf) == pytest.approx(
        (0.4 - reach, 0.4 + reach), rel=1e-3)


def test_an_interval_of_one_thing_or_beyond_the_range_is_the_range():
    assert interval(torch.tensor([0.4, 0.5]), 1, 0.99, -1.0, 1.0) == (-1.0, 1.0)
    assert interval(torch.tensor([0.0, 0.9, 0.5]), 3, 0.99, -1.0, 1.0) == (-1.0, 1.0)


def test_photographs_of_the_same_surface_count_as_one_and_others_do_not():
    """Two exposures, 3 pixels apart, another defect on one; a chain of two that share a third."""
    first, second, third, fourth = noise(4, 3, SIZE, SIZE)
    again = 0.6 * first.roll((3, -2), (1, 2)) + 0.1 * noise(3, SIZE, SIZE, seed=1)
    masks = torch.zeros(6, SIZE, SIZE, dtype=torch.bool)
    masks[:, 20:40, 20:40] = True
    again[:, 20:30, 20:40] = 1.0
    between = torch.cat([second[:, :40], third[:, 40:]], dim=1)
    found = distinct(torch.stack([first, second, fourth, again, third, between]), masks)
    assert found[0] == found[3] and found[1] == found[4] == found[5]
    assert len(set(found)) == 3


def test_defects_of_one_shape_on_several_surfaces_are_not_one_photograph():
    pictures, masks = 0.05 * noise(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    pictures[:, :, 30:33, 10:50] += 0.9
    masks[:, 30:33, 10:50] = True
    assert len(set(distinct(pictures, masks))) == 2
    assert len(set(distinct(pictures, torch.ones_like(masks)))) == 2


def test_the_best_is_taken_among_other_groups():
    scores = torch.tensor([[0.9, 0.2, 0.8], [0.1, 0.9, 0.3], [0.8, 0.4, 0.9]])
    assert apart(scores, [0, 1, 0], [0, 1, 0]).tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert apart(scores, [0, 0, 0], [0, 0, 0]).tolist() == [-1.0] * 3


def discs(n, seed, strength=0.7):
    """Discs, darker than a grainy surface: before, after, masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    masks = torch.from_numpy(np.stack([np.hypot(x - a, y - b) < r for a, b, r in zip(
        rng.uniform(28, 36, n), rng.uniform(28, 36, n), rng.uniform(12, 20, n))]))
    before = 0.2 + 0.08 * noise(n, 3, SIZE, SIZE, seed=seed + 1)
    grainy = before + 0.08 * noise(n, 3, SIZE, SIZE, seed=seed + 2) - strength
    return before, torch.where(masks[:, None], grainy, before), masks


@pytest.fixture(scope="module")
def material():
    (before, after, masks), slight = discs(N, 0), 0.02 * noise(N, 3, SIZE, SIZE, seed=9)
    flat, _, flat_masks = discs(6, 20)
    return Material(after, masks, after + slight, before[:8] + slight[:8], flat, flat_masks,
                    flat + slight[:6])


@pytest.fixture(scope="module")
def gate(sd, material):
    return calibrate(sd.vae, material)


def test_unseen_ones_pass_and_what_is_planted_is_named(sd, gate, material):
    before, after, masks = discs(8, 40)
    assert [v.reason for v in judge(sd.vae, gate, before, after, masks)] == [""] * 8
    m = masks[:, None]
    half = masks.clone()
    half[:, :, 32:] = False
    known = torch.where(material.masks[:8, None], material.real[:8], before)
    for name, wrong, where in (
            ("visible 0.000, at least", before, masks),
            ("visible", torch.where(half[:, None], after, before), masks),
            ("alike", torch.where(m, 2 * before - after, before), masks),
            ("rougher", torch.where(m, noise(8, 3, SIZE, SIZE, seed=3), before), masks),
            ("smoother", torch.where(m, (after + 0.5) / 9 - 0.5, before), masks),
            ("a piece of a training photograph", known, material.masks[:8])):
        found = judge(sd.vae, gate, before, wrong, where)
        assert all(name in verdict.reason and not verdict.passed for verdict in found), name
    alone = judge(sd.vae, gate, None, after, masks)
    assert all(v.passed and set(v.scores) == {"alike", "grain", "copy"} for v in alone)


def test_the_self_test_counts_what_the_gate_catches(sd, gate, material):
    assert (gate.photographs, gate.empties, gate.surfaces, gate.why_a_hint) == (N, 1, 1, "")
    real = replace(material, empties=material.real[:4], surfaces=material.painted[:4],
                   surface_masks=material.masks[:4], painted_surfaces=material.real[:4])
    weak = calibrate(sd.vae, real)
    assert weak.empties == weak.surfaces == 0 and weak.why_a_hint == "it lets too much pass"


def test_few_photographs_give_a_hint_and_copies_of_one_are_few(sd, material):
    def first(n, twice=1):
        return replace(material, real=material.real[:n].repeat(twice, 1, 1, 1),
                       painted=material.painted[:n].repeat(twice, 1, 1, 1),
                       masks=material.masks[:n].repeat(twice, 1, 1), empties=material.empties[:n])
    three, same = calibrate(sd.vae, first(3)), calibrate(sd.vae, first(3, twice=4))
    assert three.photographs == same.photographs == 3
    assert three.why_a_hint == same.why_a_hint == "bounds need 10 distinct photographs"
    one = calibrate(sd.vae, first(1))
    assert one.photographs == 1 and one.alike == -1 and one.copy == 0.5
    assert np.isfinite([one.visible, *one.grain]).all()
    alone = calibrate(sd.vae, replace(first(1), surfaces=material.real[:0],
                                      surface_masks=material.masks[:0],
                                      painted_surfaces=material.real[:0]))
    assert torch.isfinite(alone.known).all() and torch.isfinite(alone.scale).all()


def test_without_surfaces_the_change_of_the_vae_is_that_of_the_photographs(sd, material):
    none = calibrate(sd.vae, replace(material, surfaces=material.real[:0],
                                     surface_masks=material.masks[:0],
                                     painted_surfaces=material.real[:0]))
    expected = np.quantile((material.real - material.painted).abs().mean(1)[material.masks], 0.95)
    assert none.least == pytest.approx(expected) and none.surfaces is None
    assert none.worth.endswith("and was tried on no normals")


def test_a_verdict_names_every_score_out_of_bounds_and_what_is_not_a_number(gate):
    gate = replace(gate, visible=0.5, alike=0.9, grain=(-3.0, -1.0), copy=0.7)
    found = verdicts(gate, {"visible": torch.tensor([1.0, 0.4, 0.6]),
                            "alike": torch.tensor([0.9, 0.95, nan]),
                            "grain": torch.tensor([-2.0, -0.5, -4.0])})
    assert [verdict.passed for verdict in found] == [True, False, False]
    assert found[1].reason == (
        "visible 0.400, at least 0.500: too little of the mask was changed; "
        "grain -0.500, at most -1.000: rougher than the training photographs")
    assert found[2].reason.startswith("alike nan, at least 0.900: unlike every training photograph")
    assert found[0].scores == {"visible": 1.0, "alike": pytest.approx(0.9), "grain": -2.0}


@pytest.fixture
def run(tmp_path, gate):
    run = Run(tmp_path, {"weights_sha256": "ab", "options": {"steps": 7}})
    save_gates(run, {"wood-burn": gate})
    return run


BURN = Defect("wood", "burn", ())


def test_a_gate_comes_back_as_it_was_saved(run, gate):
    found = load_gate(run, BURN)
    for name, value in vars(gate).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name
        else:
            assert getattr(found, name) == value, name


def test_a_gate_that_is_not_the_runs_is_refused(run):
    with pytest.raises(ValueError, match="gate.json: no gate of wood/glue in this run .KeyError"):
        load_gate(run, Defect("wood", "glue", ()))
    path = run.folder / "gate.json"
    content = json.loads(path.read_text())
    for changed in ({"steps": 8}, {"weights_sha256": "cd"}):
        write_json(path, {**content, **changed})
        with pytest.raises(ValueError, match="gate.json: no gate .*another model or"):
            load_gate(run, BURN)
    path.write_text("{")
    with pytest.raises(ValueError, match="gate.json: no gate of wood/burn .*not JSON"):
        load_gate(run, BURN)
    path.unlink()
    with pytest.raises(ValueError, match="gate.json: no gate .*FileNotFound.*train_embed.py"):
        load_gate(run, BURN)
    save_gates(Run(run.folder, {**run.config, "weights_sha256": "cd"}), {})
    with pytest.raises(ValueError, match="gate.safetensors: learned on another model"):
        load_gate(run, BURN)


def draw(folder, name, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / f"{name}.png"


@pytest.fixture(scope="module")
def defect(tmp_path_factory):
    """Four photographs of 90 x 120 with a square at the right; normals of 180 x 240, lighter."""
    folder, rng = tmp_path_factory.mktemp("gate"), np.random.default_rng(0)
    examples = []
    for i in range(4):
        photograph, mask = rng.integers(60, 90, (90, 120), np.uint8), np.zeros((90, 120), np.uint8)
        mask[30:70, 70:110] = 255
        photograph[mask > 0] += 150
        examples.append(Example(draw(folder / "test", i, photograph),
                                (draw(folder / "truth", i, mask),)))
        draw(folder / "good", i, rng.integers(100, 130, (180, 240), np.uint8))
    return Defect("plate", "spot", tuple(examples), folder / "good")


def test_surfaces_are_the_normals_under_the_training_masks(defect):
    real, surfaces = frames_of(defect, SIZE, 4)
    assert len(real) == 4 and len(surfaces) == 12
    for k, frame in enumerate(surfaces):
        assert torch.equal(frame.view.mask, real[k % 4].view.mask)
        assert frame.side == real[k % 4].side == 50 and frame.grey
        assert 100 < (frame.view.image.mean() + 1) * 127.5 < 130
    assert not torch.equal(surfaces[0].view.image, surfaces[4].view.image)


def test_without_normals_surfaces_lie_beside_the_defect(defect):
    _, surfaces = frames_of(replace(defect, normals=None), SIZE, 4)
    assert len(surfaces) == 4
    for frame in surfaces:
        assert ((frame.view.image[0][frame.view.mask] + 1) * 127.5).max() < 100


@pytest.mark.parametrize("crop, new, expected", [
    (Crop(95, 0, 25), (180, 240), Crop(215, 0, 25)), (Crop(0, 65, 25), (90, 60), Crop(0, 65, 25)),
    (Crop(0, -15, 120), (120, 240), Crop(60, 0, 120))])
def test_a_crop_keeps_its_relative_place(crop, new, expected):
    assert in_place(crop, (90, 120), new) == expected


def test_a_composited_crop_is_the_photographs_own_outside_and_no_finer_inside():
    photograph = np.full((90, 120), 100, np.uint8)
    mask = np.zeros((90, 120), bool)
    mask[30:40, 30:40] = True
    crop = defect_crop(mask, SIZE)
    frame = Framed(take(photograph, mask, crop, SIZE, 4), crop.side, True)
    fine = torch.from_numpy((-1.0) ** np.indices((SIZE, SIZE)).sum(0)).float().expand(1, 3, -1, -1)
    tinted = fine + torch.tensor([0.5, 0.0, 0.0])[None, :, None, None]
    found, = composited([frame], tinted)
    inside = found[:, frame.view.mask]
    assert torch.equal(found[:, ~frame.view.mask], frame.view.image[:, ~frame.view.mask])
    assert inside.std() < 0.2 and torch.equal(inside[0], inside[2])


def test_gates_are_found_without_the_learned_words(sd, defect, monkeypatch):
    contexts = []
    real = gating.paint_crops

    def seen(sd, crops, context, noise, settings):
        contexts.append((context, settings.guidance.scale))
        return real(sd, crops, context, noise, settings)
    monkeypatch.setattr(gating, "paint_crops", seen)
    settings = Settings(SIZE, 2, Guidance(5.0, sd.context("")), torch.eye(4)[:, :3], None)
    gate = gating.gate_of(sd, defect, settings)
    assert gate.photographs == 4 and len(gate.high_passes) == 4
    assert all(scale == 1 and torch.equal(c, sd.context("").expand_as(c)) for c, scale in contexts)


def test_what_a_gate_is_worth_is_said_in_numbers(gate):
    said = "the gate rests on 12 distinct photographs; it catches 100 % of empty paintings and "
    assert replace(gate, surfaces=0.92).worth == said + "92 % of normals"
    assert replace(gate, surfaces=0.83).worth == (
        said + "83 % of normals; a hint: it lets too much pass")
