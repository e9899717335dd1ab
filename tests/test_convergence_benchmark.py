"""The recipes of bench.py convergence, and the whole of it in little."""

import json

import numpy as np
import pytest
import torch

from anomaly import train
from anomaly.dataset import Defect
from anomaly.prompt import learned_context
from anomaly.train import Views, masked_loss
from benchmarks import convergence, recipes
from benchmarks.convergence import reached
from benchmarks.recipes import PLAIN, TOOLS, Recipe, draw


@pytest.fixture
def views():
    return Views(torch.randn(8, 4, 8, 8), torch.rand(8, 8, 8) < 0.5, torch.rand(8, 32, 32) < 0.5)


def test_antithetic_noise_is_of_the_same_picture_and_sums_to_nothing(views):
    z_0, _, _, t, eps = draw(Recipe("", antithetic=True), views, 1000, 3)
    assert torch.equal(eps[:2], -eps[2:]) and torch.equal(t[:2], t[2:]) and torch.equal(z_0[:2], z_0[2:])


def test_stratified_times_lie_in_their_quarters_and_noisy_ones_late(views):
    for step in range(20):
        t = draw(Recipe("", stratified=True), views, 1000, step)[3]
        assert (t // 250).tolist() == [0, 1, 2, 3]
    late = torch.cat([draw(Recipe("", noisy=True), views, 1000, step)[3] for step in range(500)]).float()
    assert late.mean().item() == pytest.approx(1000 * 2 / 3, rel=0.03)


def test_one_picture_with_four_times(views):
    z_0, _, _, t, eps = draw(Recipe("", shared=True), views, 1000, 0)
    assert all(torch.equal(z, z_0[0]) for z in z_0) and len(t.unique()) == 4 and not torch.equal(eps[0], eps[1])


def test_recipes_draw_the_same_but_for_what_they_change(views):
    plain, quarters, pairs, late = (draw(recipe, views, 1000, 5) for recipe in (
        PLAIN, Recipe("", stratified=True), Recipe("", antithetic=True), Recipe("", noisy=True)))
    assert not torch.equal(plain[4], draw(Recipe("", seed=1), views, 1000, 5)[4])
    assert all(torch.equal(plain[i], quarters[i]) and torch.equal(plain[i], late[i]) for i in (0, 1, 2, 4))
    assert all(torch.equal(plain[i][:2], pairs[i][:2]) for i in range(5)) and (late[3] > plain[3]).all()


def test_the_tools_rates_fall_in_the_end_and_others_only_rise_at_first(monkeypatch):
    sd, defects, rates = convergence.load("tiny"), [Defect("wood", "burn", ())], []
    square = Views(torch.randn(2, 4, 16, 16), torch.ones(2, 16, 16, dtype=torch.bool), torch.ones(2, 128, 128))

    class Watched(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
    monkeypatch.setattr(recipes, "backward", lambda *args: None)
    monkeypatch.setattr(torch.optim, "Adam", Watched)
    monkeypatch.setattr(recipes, "WARM_UP", 2)
    monkeypatch.setattr(train, "WARM_UP", 2)
    monkeypatch.setattr(train, "PLATEAU", 3)
    for recipe, expected in ((PLAIN, (0.5, 1, 1, 1)), (TOOLS, (0.5, 1, 1, 0.75 ** 0.5))):
        rates.clear()
        learning = recipes.learn(sd, recipe, 2.0, recipes.learner_of(sd, recipe, defects), {"wood-burn": square})
        assert [next(learning) for _ in range(4)] == [1, 2, 3, 4]
        assert [r / (2 * recipes.VECTOR_RATE * recipes.word_rms(sd)) for r in rates] == pytest.approx(expected)


def test_plain_vectors_begin_at_one_point_and_spread_ones_do_not():
    sd, defects = convergence.load("tiny"), [Defect("wood", "burn", ())]
    plain, spread = (convergence.learner_of(sd, recipe, defects).e_a["wood-burn"]
                     for recipe in (PLAIN, Recipe("", spread=recipes.INITIAL_NOISE)))
    assert torch.allclose(spread, convergence.AnomalyEmbedding(sd, defects, seed=0).e_a["wood-burn"], atol=1e-6)
    assert torch.allclose(plain, spread.mean(dim=0).expand_as(plain), atol=1e-6)


def test_the_goal_is_reached_at_the_first_look_that_meets_it():
    losses = [(25, 0.5), (50, 0.3), (75, 0.2), (100, 0.3)]
    assert reached(losses, 0.3) == 50 and reached(losses[:1], 0.3) == np.inf


def test_the_loss_is_of_all_masked_cells_or_of_each_mask(monkeypatch):
    sd, defects, seen = convergence.load("tiny"), [Defect("wood", "burn", ())], []
    cells = torch.zeros(8, 16, 16, dtype=torch.bool)
    for i, area in enumerate((1, 9, 2, 100, 40, 7, 256, 3)):
        cells[i].view(-1)[:area] = True
    square = Views(torch.randn(8, 4, 16, 16), cells, torch.rand(8, 128, 128) < 0.5)
    monkeypatch.setattr(recipes, "backward", lambda loss, out, parameters: seen.append((loss.item(), out.detach())))
    for recipe in (PLAIN, Recipe("", per_mask=True)):
        next(recipes.learn(sd, recipe, 1.0, recipes.learner_of(sd, recipe, defects), {"wood-burn": square}))
    z_0, m, _, t, eps = draw(PLAIN, square, sd.schedule.config.train_timesteps, 0)
    assert len(m.sum(dim=(1, 2)).unique()) > 1
    errors = [(out - sd.schedule.target(z_0, t, eps)).square().mean(dim=1) for _, out in seen]
    assert seen[0][0] == pytest.approx(errors[0][m].mean().item(), rel=1e-5)
    assert seen[1][0] == pytest.approx(np.mean([e[c].mean().item() for e, c in zip(errors[1], m)]), rel=1e-5)


def test_batches_of_one_take_a_step_for_each_picture(monkeypatch):
    sd, defects = convergence.load("tiny"), [Defect("wood", "burn", ())]
    square = Views(torch.randn(8, 4, 16, 16), torch.rand(8, 16, 16) < 0.5, torch.rand(8, 128, 128) < 0.5)
    backward, seen = recipes.backward, []

    def spied(loss, out, parameters):
        seen.append((len(out), parameters[0].detach().clone()))
        backward(loss, out, parameters)
    monkeypatch.setattr(recipes, "backward", spied)
    for recipe, batch, steps in ((PLAIN, 4, 2), (Recipe("", single=True), 1, 8)):
        seen.clear()
        learning = convergence.learn(sd, recipe, 1.0, convergence.learner_of(sd, recipe, defects), {"wood-burn": square})
        assert [next(learning), next(learning)] == [1, 2]
        assert [size for size, _ in seen] == [batch] * steps
        assert all(not torch.equal(before, after) for (_, before), (_, after) in zip(seen, seen[1:]))


def test_averaged_vectors_are_the_mean_of_the_steps(monkeypatch, tmp_path):
    course = convergence.Course(tmp_path, None, (("wood", "burn"),), "test")
    learner = torch.nn.Linear(1, 1)

    def count(*args):
        for step in range(1, 100):
            torch.nn.init.constant_(learner.weight, step)
            yield step
    monkeypatch.setattr(convergence, "learner_of", lambda *args: learner)
    monkeypatch.setattr(convergence, "learn", count)
    monkeypatch.setattr(convergence, "held_out", lambda sd, shown, grids: shown.weight.item())
    monkeypatch.setattr(course, "prepare", lambda: None)
    losses = course.run(Recipe("", averaged=True), 1.0, 9, 3)
    assert losses == [(3, pytest.approx(2)), (6, pytest.approx(3.5)), (9, pytest.approx(5))]


def test_a_recipe_is_tried_at_every_rate_and_the_best_rate_with_every_seed(monkeypatch, tmp_path):
    course, runs = convergence.Course(tmp_path, None, (("wood", "burn"),), "test"), []

    def run(recipe, factor, *looks):
        runs.append((recipe.seed, recipe.name, factor))
        return [(300, abs(factor - 0.9) + recipe.seed)]
    monkeypatch.setattr(course, "run", run)
    found = convergence.trial(course, PLAIN, convergence.RATES)
    assert found.factor == 1.0 and found.losses == pytest.approx((0.1, 1.1)) and found.mean == pytest.approx(0.6)
    assert set(runs) == {(0, "plain", 0.3), (0, "plain", 1.0), (0, "plain", 3.0), (1, "plain, another seed", 1.0)}


def test_a_run_ends_with_the_first_look_at_the_goal_or_with_its_steps(monkeypatch, tmp_path):
    course = convergence.Course(tmp_path, None, (("wood", "burn"),), "test")
    learner = torch.nn.Linear(1, 1)

    def descend(*args):
        for step in range(1, 100):
            torch.nn.init.constant_(learner.weight, 1 - step / 16)
            yield step
    monkeypatch.setattr(convergence, "learner_of", lambda *args: learner)
    monkeypatch.setattr(convergence, "learn", descend)
    monkeypatch.setattr(convergence, "held_out", lambda sd, shown, grids: shown.weight.item())
    monkeypatch.setattr(course, "prepare", lambda: None)
    assert course.run(PLAIN, 1.0, 16, 4, goal=0.62) == [(4, 0.75), (8, 0.5)]
    assert course.run(PLAIN, 1.0, 16, 1, goal=0.875) == [(1, 0.9375), (2, 0.875)]
    assert course.run(PLAIN, 1.0, 12, 4) == [(4, 0.75), (8, 0.5), (12, 0.25)]


def test_the_whole_benchmark_in_little(monkeypatch, tmp_path, capsys):
    for name, value in {"STEPS": 4, "LOOK": 2, "TRIAL": 2, "ASKED": 2, "FINE": 1, "PAIRS": 4, "TIMES": 2, "TRAINING": 2,
                        "ROUNDS": 1, "RATES": (1.0,), "CANDIDATES": convergence.CANDIDATES[:3]}.items():
        monkeypatch.setattr(convergence, name, value)
    convergence.main(tmp_path)
    first = capsys.readouterr().out
    assert "| plain, 4 steps | 1 |" in first and "| separate rates | 1 |" in first and "nan" not in first
    assert first.count("| whole photographs, 4 steps | 1 |") == 1 and first.count("| what the tools do | 1 |") == 3
    runs = json.loads((tmp_path / "convergence.json").read_text())
    del runs["made with"]
    first_seed = {losses[0][1] for key, losses in runs.items() if key.startswith("tuning") and "seed=0" in key}
    assert len(first_seed) == 5      # recipes are not one another
    monkeypatch.setattr(convergence, "learn", None)
    convergence.main(tmp_path)
    assert capsys.readouterr().out == first


def test_the_held_out_loss_is_the_mean_of_the_masked_losses():
    sd = convergence.load("tiny")
    learner = convergence.learner_of(sd, PLAIN, [Defect("wood", "burn", ())])
    grid = convergence.grid_of(sd, "wood", "burn", 2)
    expected = []
    for i in range(len(grid.t)):
        pair = grid.pair[i:i + 1]
        with torch.no_grad():
            vectors = torch.cat(list(learner("wood-burn", grid.masks[pair]).values()), dim=1)
            out = sd.unet(grid.x_t[i:i + 1], grid.t[i:i + 1], learned_context(sd, vectors))
        expected.append(masked_loss(out, grid.target[i:i + 1], grid.cells[pair]))
    found = convergence.held_out(sd, learner, {"wood-burn": grid})
    assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)
