"""What bench.py method compares with, its statistics on cases with a known answer, and the whole of it in little."""

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from anomaly.dataset import Defect
from anomaly.output import calibrate
from anomaly.output.quality import contrast_ratio, share
from anomaly.output.synthetic import demo
from benchmarks import location, material, method, painting, sampling, variants
from benchmarks.tables import interval, paired
from weights import load


@pytest.fixture(scope="module")
def sd():
    return load("tiny")


@pytest.mark.parametrize("shape", ["own", "branched"])
def test_scenes_with_and_without_the_defect_differ_under_the_mask_only(sd, shape):
    scene = material.material(sd, "test", "leather", "glue", 2, 128, shape)
    for a, b in zip(scene.normal, scene.real):
        moved = (a.image - b.image).abs().amax(dim=0)
        assert torch.equal(a.cells, b.cells)
        assert float(moved[a.mask].mean()) > 0.2 and float(moved[~a.mask].mean()) < 0.02


def test_in_wide_crops_the_defect_can_be_anywhere(sd):
    own, wide = (material.material(sd, "test", "leather", "glue", 6, 128, wide=w).masks for w in (False, True))

    def overlap(masks):
        return float(((masks & masks.flip(2)).sum(dim=(1, 2)) / (masks | masks.flip(2)).sum(dim=(1, 2))).mean())
    assert overlap(wide) < 0.6 * overlap(own) and 0 < wide.float().mean() < 0.4 * own.float().mean()


def test_scenes_of_two_labels_are_not_the_same(sd):
    a, b = (material.material(sd, label, "leather", "glue", 1, 128) for label in ("tune", "report"))
    assert not torch.equal(a.masks, b.masks)


def test_the_real_defect_is_at_one_and_the_normal_surface_at_nothing(sd):
    scene = material.material(sd, "test", "leather", "glue", 3, 128)
    for painted, goal in ((scene.real_seen, 1), (scene.normal_seen, 0)):
        n = material.measure(painted, scene.normal_seen + 0.01, scene)
        assert share(np.mean(n["colour"]), np.mean(n["whole colour"])) == goal
        assert share(np.mean(n["histogram"]), np.mean(n["whole histogram"])) == goal
        if goal:
            assert n["fill"] == n["real fill"] and n["contrast"] == n["real contrast"] and min(n["fill"]) > 0.8
        else:
            assert n["fill"] == [0, 0, 0] and contrast_ratio(np.mean(n["contrast"]), np.mean(n["real contrast"])) < 0.2


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2, size=40)
    middle, low, high = interval(np.asarray, list(values))
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert middle == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.04)


def test_the_interval_of_a_ratio_draws_the_same_pictures_above_and_below():
    whole = list(np.random.default_rng(0).uniform(0.1, 5, 20))
    assert interval(share, [0.25 * w for w in whole], whole) == pytest.approx((0.75, 0.75, 0.75))


def test_a_paired_difference_has_its_standard_error():
    assert paired(np.array([1.0, 2.0, 3.0])) == f"+2.000 +- {1 / 3 ** 0.5:.3f}"


def test_rows_are_told_apart_by_all_that_they_do_and_not_by_their_names():
    row = painting.Row("a name")
    changes = {"variant": "without e_s", "guidance": 1.75, "steps": 7, "negative": "wood",
               "weigh": partial(method.paper, gain=2.0, tau=0.5), "calibrated": method.constant, "again": True,
               "another": True, "way": sampling.trailing}
    assert {f.name for f in fields(row)} == {"name", *changes}
    keys = {replace(row, **{name: value}).key for name, value in changes.items()}
    assert len(keys) == len(changes) and row.key not in keys and replace(row, name="another").key == row.key
    assert replace(row, weigh=partial(method.paper, gain=2.0, tau=1.0)).key not in keys


def test_rows_of_another_checkpoint_are_refused(tmp_path):
    (tmp_path / "method.json").write_text(json.dumps({"made with": {"weights": "others"}}))
    with pytest.raises(ValueError, match="method.json: made with .*others.*; give another --out"):
        painting.Bench(tmp_path, painting.Scale())


def test_another_seed_has_its_own_views_and_wide_ones_are_larger(sd, monkeypatch, tmp_path):
    for name, value in {"DEMO": (("wood", "burn"),), "DEFECTIVE": 6, "NORMALS": 1}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(painting.train_embed, "VIEWS", 4)
    bench = object.__new__(painting.Bench)
    bench.sd, bench.size = sd, 128
    bench.defects = [painting.first_third(d) for d in painting.find_defects(demo.demo_data(tmp_path / "demo"))]
    a, b, wide = (bench.views(*which)["wood-burn"] for which in ((0, False), (1, False), (0, True)))
    assert len(a.latents) == len(b.latents) == 8 and not any(torch.equal(x, y) for x, y in zip(a.latents, b.latents))
    assert len(wide.latents) == 2 * painting.ROUNDS and 0 < wide.masks.float().mean() < 0.5 * a.masks.float().mean()


class Known:
    """A benchmark whose rows are known: as real but for a colour or a fill that is off, each scene differently."""

    defects, scale = [Defect("wood", "burn", ()), Defect("leather", "glue", ())], method.Scale(main=(4, 1))

    def __init__(self, off):
        self.off = off

    def row(self, label, row, defect, amount, shape="own"):
        colour, fill = self.off[row.name]
        scenes = np.arange(1, 5)
        return {"colour": (colour * scenes).tolist(), "whole colour": scenes.tolist(), "fill": (0.5 + fill * scenes).tolist(),
                "real fill": [0.5] * 4} | {name: [1.0] * 4 for name in ("contrast", "real contrast", "whole histogram")
                                           } | {"histogram": [0.0] * 4}


def test_rows_are_ordered_by_distance_and_compared_with_the_tools_scene_by_scene():
    base, far = method.BASE, replace(method.BASE, name="far")
    found = method.nearest(Known({base.name: (0.2, 0), "far": (0.6, 0)}), "tune", [far, base], (4, 1))
    assert found == [[base.name, *["0.05 (0.05 to 0.05)"] * 2, "0.050", "0.000 (0.000 to 0.000)"],
                     ["far", *["0.15 (0.15 to 0.15)"] * 2, "0.150", "0.100 (0.100 to 0.100)"]]


def test_adapting_is_better_where_it_is_below_the_constant(monkeypatch):
    plain, control, adapted = (method.main_rows()[i] for i in (4, 6, 7))
    assert (plain.name, control.weigh.func, adapted.weigh.func) == ("masked loss, e_s", method.constant, method.paper)
    monkeypatch.setattr(method, "groups", lambda *args: {"all": np.ones(4, dtype=bool), "two": np.arange(4) < 2})
    known = Known({plain.name: (0, 0.02), control.name: (0.3, 0.01), adapted.name: (0.2, 0.03)})
    everyone, two = list(method.adaptivity(known))[:2]
    assert everyone[:4] == ["wood/burn", "its own", "all", "4"] and two[2:4] == ["two", "2"]
    assert everyone[4].startswith("+0.050 ") and everyone[5].startswith("-0.250 ") and two[5].startswith("-0.150 ")
    assert everyone[7].startswith("+0.025 ") and everyone[8].startswith("+0.500 ") and two[8].startswith("+0.300 ")


def test_the_gain_is_on_the_lines_between_those_tried_or_has_the_most_contrast(monkeypatch, tmp_path):
    bench, row = object.__new__(painting.Bench), painting.Row("", guidance=1.0, calibrated=method.constant)
    bench.scale, bench.learners, bench.sd = method.Scale(gains=(1.0, 2.0, 3.0, 4.0)), {"learned": None}, None
    bench.keep = lambda key, value: bench.found.update({key: value})
    monkeypatch.setattr(bench, "settings", lambda row: row, raising=False)
    for goal, reached, gain in ((0.45, [0.1, 0.3, 0.6, 0.5], 2.5), (0.9, [0.1, 0.3, 0.6, 0.5], 3.0),
                                (0.05, [0.1, 0.3, 0.6, 0.5], 1.0), (0.9, [0.1, 0.2, 0.3, 0.4], 4.0)):
        bench.found = {}
        monkeypatch.setattr(painting, "contrasts", lambda *args: (goal, reached))
        assert bench.gain(Defect("wood", "burn", ()), row) == pytest.approx(gain)


def test_a_row_can_be_painted_with_e_s_of_another_scenes_mask(sd):
    burn, masks = Defect("wood", "burn", ()), torch.zeros(3, 128, 128, dtype=torch.bool)
    for i in range(3):
        masks[i, 30 * i:30 * i + 40, 50:90] = True
    bench = object.__new__(painting.Bench)
    bench.sd, bench.learners = sd, {"learned": painting.AnomalyEmbedding(sd, [burn], 0).requires_grad_(False)}
    scene = material.Material([], [], masks, masks, masks)
    own, another = (bench.context(painting.Row("", another=other), burn, scene) for other in (False, True))
    assert torch.allclose(another, own[[2, 0, 1]], atol=1e-5) and not torch.allclose(another, own, atol=1e-3)


def test_the_variants_words(sd):
    burn, glue = Defect("wood", "burn", ()), Defect("leather", "glue", ())
    masks = torch.ones(2, 128, 128, dtype=torch.bool)
    plain, with_object, mean_word = (learner(sd, [burn], 0) for learner in (
        painting.AnomalyEmbedding, variants.WithObject, variants.WithoutWord))
    vectors, longer = plain(burn.stem, masks), with_object(burn.stem, masks)
    assert list(longer) == ["words", *vectors] and list(variants.WithoutPlace(sd, [burn], 0)(burn.stem, masks)) == ["e_a"]
    tokens = sd.tokenizer.tokens("wood with")
    assert torch.equal(longer["words"][1], sd.text_encoder.word_table[tokens].float())
    table, (token,) = sd.text_encoder.word_table.float(), sd.tokenizer.tokens("burn")
    moved = (mean_word.e_a[burn.stem] - plain.e_a[burn.stem]).detach()      # the same noise round another word
    assert torch.allclose(moved, (table.mean(dim=0) - table[token]).expand_as(moved), atol=1e-6)
    fixed, corner = variants.WithFixedMask(sd, [burn, glue], 0), torch.zeros_like(masks)
    corner[:, :40, :40] = True
    e_s = [fixed(stem, m)["e_s"] for stem in (burn.stem, glue.stem) for m in (masks, corner)]
    assert torch.equal(e_s[0], e_s[1]) and torch.equal(e_s[2], e_s[3])
    assert not torch.allclose(e_s[0], e_s[2], atol=1e-3) and not torch.allclose(
        plain(burn.stem, corner)["e_s"], vectors["e_s"], atol=1e-3)


def test_the_whole_benchmark_in_little(monkeypatch, tmp_path, capsys):
    scale = method.Scale(main=(4, 2), single=(2, 1), defaults=(2, 1), learning=1,
                         variants=(*method.QUICK.variants, variants.WIDE_CROPS),
                         gains=(1.0, 2.0))
    for module, values in ((method, {"QUICK": scale, "GAINS": (2.0,), "TAUS": (0.5,), "STEPS": 3, "SHOWN": (1,),
                                     "SEEN": method.SEEN[:1]}),
                           (location, {"TIMES": (500,), "STEPS": 3}),
                           (demo, {"DEMO": (("wood", "burn"),), "DEFECTIVE": 6, "NORMALS": 2}),
                           (painting.train_embed, {"VIEWS": 4})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    paint, painted = painting.paint_crops, []

    def paint_in_two_steps(*args):
        painted.append(args)
        return paint(*args[:-1], replace(args[-1], steps=2))
    for module in (painting, calibrate, method):
        monkeypatch.setattr(module, "paint_crops", paint_in_two_steps)
    method.main(tmp_path, quick=True)
    first, count = capsys.readouterr().out, len(painted)
    assert "nan" not in first and (tmp_path / "weight_maps.png").exists()
    for line in ("| the real defect | wood/burn | 1.00 (1.00 to 1.00) |", "| words only | wood/burn |",
                 "| no guidance, paper, gain of the defect | wood/burn |", "| the tools' defaults | wood/burn |",
                 "| guidance: without e_s |", "| gain: no guidance, constant, gain of the defect |",
                 "| its own caption, guidance 4 | plastic/glue |",
                 "| wood/burn | branched | irregular |", "| wood/burn | learned |", "| wood/burn | wide crops |"):
        assert line in first
    kept = json.loads((tmp_path / "method.json").read_text())
    del kept["made with"]
    assert {len(values) for row in kept.values() if isinstance(row, dict) for values in row.values()} == {2, 4}
    assert {key.split("/")[0] for key in kept} == {"tune", "report", "defaults", "guidance", "gain", "location"}
    method.main(tmp_path, quick=True)           # the rows are read; only what they are compared with is painted
    assert capsys.readouterr().out == first and len(painted) - count < count / 8
