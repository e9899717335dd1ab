"""bench.py details: its ways to sample and to rank on cases with a known answer, and the whole of it in little."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import bench
import pytest
import torch
from diffusers import DDIMScheduler

from anomaly.dataset import Defect
from anomaly.output.synthetic import demo
from anomaly.sampler import STEPS, Guidance, blended_ddim
from benchmarks import details, method, painting, sampling, variants
from weights import load


@pytest.fixture(scope="module")
def sd():
    return load("tiny")


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_trailing_timesteps_are_those_of_diffusers(steps):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    pairs = sampling.Trailing().timesteps(steps)
    assert [t for t, _ in pairs] == scheduler.timesteps.tolist()
    assert [t for _, t in pairs] == [t for t, _ in pairs[1:]] + [0]


def painted(sd, way):
    """x after every step of blended DDIM, with the mask's cells and the noise that it was given."""
    y_0, m = torch.ones(2, 4, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool)
    m[:, 4:9, 5:12] = True
    noise = torch.randn(y_0.shape, generator=torch.Generator().manual_seed(0))
    other, noise_of = way(sd, y_0, m, noise)
    context = sd.context("a photo of wood").expand(2, -1, -1)
    steps = list(blended_ddim(other, y_0, m.float(), noise_of, context, Guidance(1.0, context[:1]), 4, torch.eye(4, 3)))
    return steps, y_0, m, noise, noise_of


def test_new_noise_surrounds_the_mask_in_every_step_and_is_none_of_the_tools(sd):
    steps, y_0, m, noise, _ = painted(sd, sampling.fresh)
    found = []
    for step in steps[:-1]:
        t = torch.full((2,), step.t_prev)
        alpha = sd.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        found.append(((step.x - alpha.sqrt() * y_0) / (1 - alpha).sqrt()).movedim(1, -1)[~m].flatten())
    found.append(noise.movedim(1, -1)[~m].flatten())
    for i, a in enumerate(found):
        assert abs(float(a.std()) - 1) < 0.1
        assert all(abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.1 for b in found[:i])
    assert torch.equal(steps[-1].x.movedim(1, -1)[~m], y_0.movedim(1, -1)[~m])


def test_started_from_the_surface_the_mask_knows_it_and_the_surroundings_stay(sd):
    _, y_0, m, noise, noise_of = painted(sd, sampling.from_the_surface)
    t = torch.full((2,), sd.schedule.timesteps(STEPS)[0][0])
    inside = m[:, None].expand_as(noise)
    assert torch.equal(noise_of[~inside], noise[~inside])
    assert torch.equal(noise_of[inside], sd.schedule.q_sample(y_0, t, noise)[inside])


def test_half_of_the_steps_are_weighted_batch_after_batch():
    d, m = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    twice = partial(method.constant, gain=2.0)
    first, second = (sampling.Half(twice, "twice", late) for late in (False, True))
    for _ in range(2):
        answers = [[float(half(d, m).mean()) for half in (first, second)] for _ in range(STEPS)][:-1]  # for steps 2 to 20
        assert answers == [[2, 1]] * (STEPS // 2 - 1) + [[1, 2]] * (STEPS // 2)
    assert first.__name__ != second.__name__


def test_a_row_is_painted_its_own_way(sd, monkeypatch):
    seen = []
    bench = object.__new__(painting.Bench)
    bench.sd, bench.size, bench.to_rgb = sd, 128, torch.eye(4, 3)
    monkeypatch.setattr(painting, "paint_crops", lambda sd, crops, context, noise, settings: seen.append((sd, noise)) or noise)
    scene = painting.material(sd, "test", "wood", "burn", 2, 128)
    context = sd.context("").expand(2, -1, -1)
    for way in (None, sampling.trailing, sampling.from_the_surface):
        bench.paint(painting.Row("", guidance=1.0, way=way), scene, context, 0)
    assert seen[0][0] is sd and isinstance(seen[1][0].schedule, sampling.Trailing) and torch.equal(seen[0][1], seen[1][1])
    assert seen[2][0] is sd and not torch.equal(seen[0][1], seen[2][1])


def test_correlations_are_of_the_ranks_of_each_scenes_own_cells():
    a = torch.arange(32.0).view(2, 4, 4)
    cells = torch.zeros(2, 4, 4, dtype=torch.bool)
    cells[:, 1:3] = True
    b = torch.where(cells, torch.stack([a[0].exp(), -a[1] ** 3]), torch.tensor(-5.0))
    assert details.correlations(a, b, cells) == pytest.approx([1, -1])


def test_seeds_are_told_one_by_one(monkeypatch):
    class Known:
        """Rows whose colour alone is off: by the seed, the way to learn and the defect."""

        defects, scale = [Defect("wood", "burn", ()), Defect("leather", "glue", ())], method.Scale()

        def row(self, label, row, defect, amount):
            assert (label, amount, row.guidance) == ("tune", self.scale.single, method.BARE.guidance)
            way, seed = next((w, names.index(row.variant)) for w, (_, names) in enumerate(variants.SEEDED.items())
                             if row.variant in names)
            n = {name: [1.0] * 4 for name in details.MEASURED} | {"histogram": [0.0] * 4}
            return n | {"colour": [0.04 * way + 0.4 * seed + 0.8 * (defect.name == "glue")] * 4}

    rows = list(details.seeds(Known(), ("learned", "background 0.3"), method.BARE))
    assert rows[0] == ["learned", "0.200", "0.10 / 0.20 / 0.30", "0.00 / 0.10 / 0.20", "0.20 / 0.30 / 0.40"]
    assert rows[1][:3] == ["background 0.3", "0.210", "0.11 / 0.21 / 0.31"]


def test_a_way_to_learn_differs_from_its_other_seeds_by_the_seed_alone():
    assert set(variants.SEEDED) == {"learned", *variants.NEARER, *variants.CONTROLS}
    for way, names in variants.SEEDED.items():
        assert names[0] == way and [variants.ALL[name].seed for name in names] == [0, 1, 2]
        assert {replace(variants.ALL[name], seed=0) for name in names} == {variants.VARIANTS[way]}


def test_the_whole_benchmark_in_little(monkeypatch, tmp_path, capsys):
    seeded = {way: variants.SEEDED[way][:2] for way in ("learned", "without e_s")}
    for module, values in ((details, {"Scale": partial(method.Scale, single=(2, 1), learning=1), "SEEDED": seeded,
                                      "NEARER": (), "CONTROLS": ("without e_s",), "STEPS": 2, "TIMES": (501, 1)}),
                           (demo, {"DEMO": (("wood", "burn"),), "DEFECTIVE": 6, "NORMALS": 1}),
                           (painting.train_embed, {"VIEWS": 4})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    paint = painting.paint_crops
    monkeypatch.setattr(painting, "paint_crops", lambda *args: paint(*args[:-1], replace(args[-1], steps=2)))
    monkeypatch.setattr(painting.Bench, "guidance", lambda *args: 1.5)
    details.main(tmp_path)
    out = capsys.readouterr().out
    assert "nan" not in out and out.count("| without e_s |") == 1
    for row in details.ways():
        assert f"| {row.name} |" in out
    same = [line for line in out.splitlines() if line.startswith("| wood/burn | decoded, of the last step |")]
    assert len(same) == 1 and same[0].endswith("| 1.00 |")      # at the last step it is itself
    details.main(tmp_path)
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", ["parity", "checkpoint", "method", "details", "convergence"])
def test_the_tool_runs_each_benchmark_in_its_folder(name, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(f"benchmarks.{name}.main", lambda *args: asked.append(args))
    keeps = name in ("method", "details", "convergence")
    bench.main([name])
    bench.main([name, "--out", str(tmp_path)] if keeps else [name])
    more = ((False,) if name == "method" else ())
    assert asked == ([(Path("runs/method"), *more), (tmp_path, *more)] if keeps else [(), ()])


@pytest.mark.parametrize("argv, words", [
    (["details", "--quick"], "--quick belongs to method, not details"),
    (["parity", "--out", "x"], "--out belongs to method, details and convergence, not parity")])
def test_options_of_another_benchmark_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(argv)
    assert words in capsys.readouterr().err
