"""bench.py details: its ways to sample, rank, composite and so on on cases with a known answer; the whole in little."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import bench
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.stats import rankdata

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.output.synthetic import demo
from anomaly.sampler import STEPS, Guidance, Step, blended_ddim
from anomaly.train import Views, masked_loss, predict
from benchmarks import compositing, details, detectors, gradients, location, method, painting, sampling, variants
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
    steps = blended_ddim(other, y_0, m.float(), noise_of, context, Guidance(1.0, context[:1]), STEPS, torch.eye(4, 3))
    return list(steps), y_0, m, noise


def test_new_noise_surrounds_the_mask_in_every_step_and_is_none_of_the_tools(sd):
    steps, y_0, m, noise = painted(sd, sampling.fresh)
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


def test_started_from_the_surface_the_first_call_sees_it_under_the_mask(sd, monkeypatch):
    seen, unet = [], sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda x_t, t, *rest: seen.append((x_t, int(t[0]))) or unet(x_t, t, *rest))
    _, y_0, m, noise = painted(sd, sampling.from_the_surface)
    x_t, t = seen[0]
    alpha = float(sd.schedule.alphas_cumprod[t])
    assert t == 951 and torch.allclose(x_t, alpha ** 0.5 * y_0 + (1 - alpha) ** 0.5 * noise, atol=1e-6)


def test_half_of_the_steps_are_weighted_batch_after_batch():
    d, m = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    twice = partial(method.constant, gain=2.0)
    first, second = (sampling.Half(twice, "twice", late) for late in (False, True))
    for _ in range(2):
        answers = [[float(half(d, m).mean()) for half in (first, second)] for _ in range(STEPS)][:-1]   # steps 2 to 20
        assert answers == [[2, 1]] * (STEPS // 2 - 1) + [[1, 2]] * (STEPS // 2)
    assert first.__name__ != second.__name__


def test_a_row_is_painted_its_own_way(sd, monkeypatch):
    seen = []
    bench = object.__new__(painting.Bench)
    bench.sd, bench.size, bench.to_rgb = sd, 128, torch.eye(4, 3)
    monkeypatch.setattr(painting, "paint_crops", lambda sd, crops, context, noise, settings: seen.append((sd, noise))
                        or noise)
    scene = painting.material(sd, "test", "wood", "burn", 2, 128)
    context = sd.context("").expand(2, -1, -1)
    for way in (None, sampling.trailing, sampling.from_the_surface):
        bench.paint(painting.Row("", guidance=1.0, way=way), scene, context, 0)
    assert isinstance(seen[1][0].schedule, sampling.Trailing) and torch.equal(seen[0][1], seen[1][1])
    assert seen[0][0] is sd and seen[2][0] is sd and not torch.equal(seen[0][1], seen[2][1])


def test_correlations_are_of_the_ranks_of_each_scenes_own_cells():
    a = torch.arange(32.0).view(2, 4, 4)
    cells = torch.zeros(2, 4, 4, dtype=torch.bool)
    cells[:, 1:3] = True
    b = torch.where(cells, torch.stack([a[0].exp(), -a[1] ** 3]), torch.tensor(-5.0))
    assert details.correlations(a, b, cells) == pytest.approx([1, -1])


def test_maps_are_ranked_by_the_vae_the_photograph_and_the_tools_own_difference(sd, monkeypatch):
    bench, burn = object.__new__(painting.Bench), Defect("wood", "burn", ())
    bench.sd, bench.size, bench.scale = sd, 128, method.Scale(single=(2, 1))
    bench.to_rgb = torch.arange(12.0).view(4, 3).cos()
    bench.found, bench.keep = {}, lambda key, value: None
    scene = painting.material(sd, "test", "wood", "burn", 2, 128)
    y_0 = details.encoded(sd, scene.normal)
    x0_hat, last = y_0 + 0.1 * torch.randn((2, *y_0.shape), generator=torch.Generator().manual_seed(0))
    for name, value in {"material": (scene, None), "settled": replace(method.BARE), "context": None}.items():
        monkeypatch.setattr(bench, name, lambda *args, value=value: value, raising=False)
    monkeypatch.setattr(details, "blended_ddim", lambda *args: [Step(1, x0_hat, x0_hat, None)] * (STEPS - 1)
                        + [Step(None, last, last, None)])
    found = details.ranked(bench, burn)

    def spearman(name, i):      # in float64, of the ranks, cell by cell
        cells = scene.cells[i].nonzero().tolist()
        z, seen = (x0_hat - y_0)[i].double(), sd.vae.decode(x0_hat)[i].double()
        own, normal = scene.normal_seen[i].double(), scene.normal[i].image.double()
        end = sd.vae.decode(last)[i].double()
        rgb = (bench.to_rgb.double().T @ z.flatten(1)).view(3, 32, 32).square().sum(0)

        def of(y, x):
            at = (slice(None), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
            near = [rgb[v, u] for v, u in cells if abs(v - y) < 2 and abs(u - x) < 2]
            return {"latents": (z[:, y, x] ** 2).sum(), "latent-to-RGB map": rgb[y, x],
                    "latent-to-RGB map, mean of 3 x 3 (the tools')": sum(near) / len(near),
                    "decoded, from the photograph itself": ((seen - normal)[at] ** 2).sum(),
                    "decoded, of the last step": ((end - own)[at] ** 2).sum()}[name]
        true = rankdata([float(((seen - own)[:, 4 * y:4 * y + 4, 4 * x:4 * x + 4] ** 2).sum()) for y, x in cells])
        return np.corrcoef(rankdata([float(of(*cell)) for cell in cells]), true)[0, 1]
    names = {key.rpartition("/")[0] for key in found}
    assert len(names) == 5 and len(found) == 5 * len(details.TIMES)
    for name in names:
        assert found[f"{name}/901"] == pytest.approx([spearman(name, i) for i in range(2)], abs=2e-3), name
    assert len({round(found[f"{name}/901"][0], 3) for name in names}) == 5


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


def test_losses_with_a_wrong_mask_are_told_in_the_mask_and_outside(sd, monkeypatch):
    bench, burn = object.__new__(painting.Bench), Defect("wood", "burn", ())
    bench.sd, bench.size, bench.scale = sd, 128, method.Scale(main=(2, 1))
    bench.found, bench.learners, bench.to_rgb = {}, {"learned": None}, None
    bench.keep = bench.found.__setitem__
    scene = painting.material(sd, "test", "wood", "burn", 2, 128)
    for name, value in {"material": (scene, None), "settled": replace(method.BARE)}.items():
        monkeypatch.setattr(bench, name, lambda *args, value=value: value, raising=False)
    monkeypatch.setattr(location, "unblended", lambda sd, y_0, *args: y_0)
    # A U-Net that answers with the share of the right half that e_s was told to be masked.
    monkeypatch.setattr(location, "context_of", lambda sd, learner, stem, masks: masks[:, :, 64:].float().mean((1, 2)))
    monkeypatch.setattr(sd.unet, "forward", lambda x_t, t, told: told.view(-1, 1, 1, 1).expand_as(x_t))
    found = location.location(bench, "learned", burn)
    x_0 = location.encoded(sd, scene.real)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    masks = scene.masks.numpy()
    for name, given in (("right", masks), ("mirrored", masks[:, :, ::-1]), ("another", masks[::-1])):
        for where, cells in (("loss", scene.cells), ("background", ~scene.cells)):
            for i in range(2):
                expected = []
                for t in location.TIMES:
                    target = sd.schedule.target(x_0, torch.full((2,), t), eps)[i].double()
                    error = (target - float(given[i, :, 64:].mean())) ** 2
                    expected.append(float(error[:, cells[i]].mean()))
                assert found[f"{where}, {name}"][i] == pytest.approx(np.mean(expected), rel=1e-5), (where, name)


def test_each_samples_gradient_is_that_of_a_batch_of_its_own(sd):
    burn = Defect("wood", "burn", ())
    learner = AnomalyEmbedding(sd, [burn], 0)
    masks, cells = torch.zeros(3, 128, 128, dtype=torch.bool), torch.zeros(3, 32, 32, dtype=torch.bool)
    for n in range(3):
        cells[n, n:3 * n + 4, 5:9] = True
    masks = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    latents, noise = torch.randn((2, 3, 4, 32, 32), generator=torch.Generator().manual_seed(0))
    i = torch.tensor([2, 0, 1])
    found = gradients.of_samples(sd, learner, burn.stem, Views(latents, cells, masks), i, 600, noise)
    for n, k in enumerate(i):
        t = torch.tensor([600])
        out = predict(sd, learner(burn.stem, masks[k][None]), latents[k][None], t, noise[n][None])
        loss = masked_loss(out, sd.schedule.target(latents[k][None], t, noise[n][None]), cells[k][None])
        gradient, = torch.autograd.grad(loss, learner.e_a[burn.stem])
        assert torch.allclose(found[n], gradient.flatten().double(), rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_signal_to_noise_is_that_of_the_distribution():
    generator = torch.Generator().manual_seed(0)
    noise = 3 * torch.randn((4000, 50), generator=generator, dtype=torch.float64)
    at_two = torch.stack([noise + 2, noise + 4])
    assert gradients.signal_to_noise(at_two).tolist() == pytest.approx([4 / 9, 16 / 9], rel=0.03)
    assert float(gradients.signal_to_noise(noise[:40])) == pytest.approx(0, abs=0.012)      # 1 / 40 with what is chance


def test_pairs_of_opposite_noise_cancel_it_and_pairs_of_one_noise_are_half_a_batch():
    noise, other = torch.randn((2, 2, 4000, 20), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[1], other[1] = noise[1] + 5, other[1] + 5     # another t has another mean, which is no noise
    assert gradients.paired(1 + noise, 1 - noise) == pytest.approx(0, abs=1e-9)
    assert gradients.paired(noise, noise) == pytest.approx(2, rel=1e-3)
    assert gradients.paired(noise, other) == pytest.approx(1, rel=0.05)


@pytest.fixture(scope="module")
def flat():
    """A surface with texture, of which D(E(y)) has none; painted over, in half of the mask only."""
    rng = np.random.default_rng(0)
    normal = torch.from_numpy(rng.choice([-0.3, 0.3], (2, 3, 64, 64))).float()
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 20:40, 10:50] = masks[1, 5:30, 5:40] = True

    def inside(values):
        return torch.where(masks[:, None], values, normal)
    nothing = inside(torch.zeros_like(normal))
    painted = nothing.clone()
    painted[:, :, :, 30:][masks[:, None, :, 30:].expand(-1, 3, -1, -1)] = 0.6
    return compositing.Painted(masks, normal, inside(0.6 + normal), painted, nothing, inside(0.6 + 0 * normal))


def test_composites_keep_the_surroundings_and_the_texture_that_they_say(flat):
    ways, m = flat.ways(), flat.masks
    for picture in ways.values():
        assert torch.equal(picture.movedim(1, -1)[~m], flat.normal.movedim(1, -1)[~m])
    changed, bare = m.clone(), m.clone()
    changed[:, :, :32], bare[:, :, 28:] = False, False      # away from the border of what was painted
    at = {name: [x.movedim(1, -1)[part] for part in (changed, bare)] for name, x in (
        *ways.items(), ("normal", flat.normal))}
    assert torch.allclose(at["change added"][0], at["normal"][0] + 0.6)
    # A corner's 3 x 3 changed by four ninths of 0.6, all others by more.
    assert torch.allclose(at["mixed"][0], torch.tensor(0.6), atol=0.3 * np.exp(-0.6 * 4 / 9 / 0.1) + 1e-6)
    for column, change, near in ((40, 0.6, 0.6), (30, 0.6, 0.4), (29, 0, 0.2)):    # near: of 3 columns, 3, 2, 1 changed
        texture = float(flat.normal[0, 0, 30, column]) * np.exp(-near / 0.1)
        assert float(ways["mixed"][0, 0, 30, column]) == pytest.approx(change + texture, abs=1e-6)
    assert torch.equal(at["replaced (the tools)"][0], torch.full_like(at["normal"][0], 0.6))
    for name in ("change added", "mixed"):
        assert torch.allclose(at[name][1], at["normal"][1])      # nothing was painted: y itself
    assert at["replaced (the tools)"][1].abs().max() == 0


def test_fine_texture_is_what_the_eye_sees_and_no_slope(flat):
    slope = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    board = slope + 0.1 * (-1) ** torch.arange(64)
    m = flat.masks
    assert float(compositing.fine_energy(slope, m).max()) < 1e-10
    patch = torch.where(m[:, None], 0.6, flat.normal)
    assert float(compositing.fine_energy(patch, m).max()) < 1e-10     # a seam is no texture
    edge = torch.zeros_like(m)
    edge[:, :9] = True
    # Nor is the picture's edge: a mask there is measured as far as a 3 x 3 reaches.
    assert float(compositing.fine_energy(board, edge)[0]) == pytest.approx((0.1 * 4 / 3) ** 2, rel=1e-3)
    with pytest.raises(ValueError, match="thinner than 3 pixels"):
        compositing.fine_energy(board, edge & (torch.arange(64)[:, None] < 2))
    # A stripe of +-0.1 has a mean of a third of that, with the other sign, over 3 columns.
    assert torch.allclose(compositing.fine_energy(board, m), torch.tensor((0.1 * 4 / 3) ** 2), rtol=1e-3)
    assert compositing.shows_through(flat.normal + slope, flat.normal, m).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert compositing.shows_through(slope - flat.normal, flat.normal, m).tolist() == pytest.approx([-1, -1], abs=1e-3)
    other = flat.normal.flip(3)
    inside = (slice(None), slice(21, 39), slice(11, 49))        # of the mask, without its border
    a, b = (compositing.fine(x)[0][inside].flatten().numpy() for x in (other, flat.normal))
    assert float(compositing.shows_through(other, flat.normal, m)[0]) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)


def test_composited_photographs_are_what_the_tools_write(sd):
    bench = object.__new__(painting.Bench)
    bench.sd, bench.size = sd, 128
    seen = painting.material(sd, "test", "wood", "burn", 2, 128)
    p = compositing.painted_photographs(bench, None, "test", Defect("wood", "burn", ()), 2)
    assert torch.equal(p.painted, p.nothing) and p.masks.shape == (2, 256, 256)
    for i, crop in enumerate(seen.normal):
        mask = p.masks[i]
        moved = (p.normal[i] - p.real[i]).abs().amax(dim=0)
        assert float(moved[mask].mean()) > 0.2 and float(moved[~mask].mean()) < 1e-3    # soft edges alone
        assert torch.equal(p.nothing[i][:, ~mask], p.normal[i][:, ~mask])
        assert torch.equal(p.real_seen[i][:, ~mask], p.normal[i][:, ~mask])
        # Through the VAE, but in its place: nearer to itself than to the other.
        own, other = ((p.nothing[i] - x)[:, mask].abs().mean() for x in (p.normal[i], p.real[i]))
        assert own < other
        assert ((p.real_seen[i] - p.real[i])[:, mask].abs().mean() < (p.real_seen[i] - p.normal[i])[:, mask].abs().mean())


def test_windows_lie_round_the_mask_and_inside_the_picture():
    looks = torch.zeros(2, 256, 256, dtype=torch.bool)
    looks[0, 100:121, 90:151] = looks[1, :10, 240:] = True
    assert detectors.corner(looks[0], torch.zeros(2)) == (46, 56)
    assert detectors.corner(looks[0], torch.tensor([0.5, -0.5])) == (78, 24)
    assert detectors.corner(looks[1], torch.zeros(2)) == (0, 128)
    wide = torch.zeros(160, 400, dtype=torch.bool)
    wide[150:, 390:] = True
    assert detectors.corner(wide, torch.zeros(2)) == (32, 272)
    pictures = torch.arange(2.0 * 3 * 256 * 256).view(2, 3, 256, 256)
    images, masks = detectors.Examples(pictures, looks, looks).windows(torch.tensor([1, 0]), torch.zeros(2, 2))
    assert torch.equal(images[1], pictures[0, :, 46:174, 56:184]) and torch.equal(masks[1], looks[0, 46:174, 56:184])
    assert torch.equal(images[0], pictures[1, :, :128, 128:])


def test_detectors_learn_from_what_their_names_say(flat):
    trained = detectors.Detectors(None, None)
    few = detectors.Examples(*(x[:1] for x in (flat.real_seen, flat.masks, flat.masks)))
    trained.__dict__ |= {"painted": flat, "surfaces": torch.zeros(2, 3, 64, 64), "photographs": few}
    shown = {name: trained.examples(name) for name in detectors.KINDS}
    pictures = {detectors.REAL: [flat.real], detectors.SEEN: [flat.real_seen], detectors.FEW: [few.pictures], detectors.PAIRS: [flat.painted],
                detectors.BOTH: [flat.painted, few.pictures, few.pictures], detectors.PASTED: [flat.painted],
                detectors.ADDED: [flat.ways()["change added"]]}
    masks = {detectors.FEW: [flat.masks[:1]], detectors.BOTH: [flat.masks, flat.masks[:1], flat.masks[:1]]}
    for name, (defects, without) in shown.items():
        assert torch.equal(defects.pictures, torch.cat(pictures[name])), name
        assert torch.equal(defects.defects, torch.cat(masks.get(name, [flat.masks]))), name
        assert torch.equal(defects.looks, defects.defects) and without.looks.any(dim=2).any(dim=1).all()
        surfaces = [trained.surfaces, *[flat.nothing] * (name == detectors.PASTED)]
        assert torch.equal(without.pictures, torch.cat(surfaces)) and not without.defects.any(), name


def test_what_a_detector_marks_is_told_of_each_kind_of_photograph(monkeypatch):
    bench = object.__new__(painting.Bench)
    bench.found = {}
    bench.keep = bench.found.__setitem__
    trained = detectors.Detectors(bench, method.BASE)
    masks = torch.zeros(2, 64, 128, dtype=torch.bool)
    masks[:, 20:40, 40:80] = True
    bare = torch.zeros(2, 3, 64, 128)
    real, nothing = bare.clone(), bare.clone()
    real[:, :, 20:40, 40:70] = 1        # three quarters of the mask
    real[1, :, 60:62, 0:100] = 1        # 200 pixels outside
    nothing[:, :, 20:30, 40:80] = 1     # half
    bare[1, :, 5, 5] = 1                # a false alarm in one of two
    trained.__dict__ |= {"tested": {"wood/burn": compositing.Painted(masks, bare, real, bare, nothing, real)},
                         "net": lambda trained_on, seed: lambda x: 20 * x[:, 0] - 10}
    monkeypatch.setattr(detectors, "BATCH", 1)
    precision, *marked = trained.measured(detectors.PAIRS, 0)["wood/burn"]
    assert marked == pytest.approx([0.75, 200 / (2 * (64 * 128 - 800)), 0.5, 0.5])
    # Marked first, at a precision of 1200 / 1401; then all the rest, at that of the mask in all pixels.
    assert precision == pytest.approx(0.75 * 1200 / 1401 + 0.25 * 1600 / (4 * 64 * 128), abs=1e-6)
    found = trained.picture(detectors.PAIRS)[16:16 + 64, 2 * 132:2 * 132 + 128, 0]
    assert found[30, 50] == 255 and found[30, 75] == 0


def test_half_of_a_detectors_batch_shows_defects_mirrored_as_their_masks_are(monkeypatch):
    masks = torch.zeros(2, 256, 256, dtype=torch.bool)
    masks[:, 100:120, 95:125] = masks[:, 100:106, 85:95] = True     # its box lacks the corner at the bottom left
    marked = torch.where(masks[:, None], 1.0, -1.0).expand(-1, 3, -1, -1)
    trained = detectors.Detectors(None, None)
    plain = detectors.Examples(torch.full_like(marked, 0.5), torch.zeros_like(masks), masks)
    monkeypatch.setattr(trained, "examples", lambda name: (detectors.Examples(marked, masks, masks), plain))
    monkeypatch.setattr(detectors, "fit", lambda seed, steps, batch, name: torch.manual_seed(seed) and batch)
    batch, lacking = trained.train(detectors.PAIRS, 0), set()
    for _ in range(12):
        pictures, defects = batch()
        shown = pictures[:, 0] == 1
        assert torch.equal(shown.float(), defects) and pictures.shape == (detectors.BATCH, 3, 128, 128)
        assert shown.flatten(1).any(dim=1).tolist() == [True] * 8 + [False] * 8
        assert (pictures[8:] == 0.5).all()
        for mask in shown[:8]:
            rows, columns = (mask.any(dim=d).nonzero().flatten()[[0, -1]] for d in (1, 0))
            lacking.add(tuple((~mask[rows][:, columns]).flatten().tolist()))
    assert lacking == {tuple(n == corner for n in range(4)) for corner in range(4)}     # mirrored in all ways


def test_a_detector_made_otherwise_is_trained_again(monkeypatch, tmp_path):
    bench, seen = object.__new__(painting.Bench), []
    bench.folder = tmp_path
    monkeypatch.setattr(detectors.Detectors, "train", lambda self, *args: seen.append(args) or detectors.Segmenter())
    for steps, row, seed in ((300, method.BASE, 0), (300, method.BASE, 0), (200, method.BASE, 0), (300, method.BARE, 0),
                             (300, method.BASE, 1)):
        monkeypatch.setattr(detectors, "STEPS", steps)
        detectors.Detectors(bench, row).net(detectors.PAIRS, seed)
    assert seen == [(detectors.PAIRS, 0)] * 3 + [(detectors.PAIRS, 1)]


def test_the_whole_benchmark_in_little(monkeypatch, tmp_path, capsys):
    seeded = {way: variants.SEEDED[way][:2] for way in ("learned", "without e_s")}
    for module, values in ((details, {"Scale": partial(method.Scale, (2, 1), (2, 1), learning=1), "SEEDED": seeded,
                                      "NEARER": (), "CONTROLS": ("without e_s",), "STEPS": 2, "TIMES": (501, 1)}),
                           (demo, {"DEMO": (("wood", "burn"),), "DEFECTIVE": 6, "NORMALS": 1}),
                           (painting.train_embed, {"VIEWS": 4}), (location, {"TIMES": (500,), "STEPS": 3}),
                           (gradients, {"TIMES": (500,), "VIEWS": 2}), (details, {"GRADIENTS": (500,)}),
                           (detectors, {"PAINTED": 2, "TESTED": 2, "STEPS": 2, "BATCH": 4, "SEEDS": (0,)})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    paint, blended, calls = painting.paint_crops, details.blended_ddim, []
    monkeypatch.setattr(painting, "paint_crops", lambda *args: calls.append("painted") or paint(
        *args[:-1], replace(args[-1], steps=2)))
    monkeypatch.setattr(details, "blended_ddim", lambda *args: calls.append("ranked") or blended(*args))
    monkeypatch.setattr(painting.Bench, "guidance", lambda *args: 1.5)
    details.main(tmp_path)
    out = capsys.readouterr().out
    assert "nan" not in out and out.count("| without e_s |") == 1
    for row in details.ways():
        assert f"| {row.name} |" in out
    same = [line for line in out.splitlines() if line.startswith("| wood/burn | decoded, of the last step |")]
    assert len(same) == 1 and same[0].endswith("| 1.00 |")      # at the last step it is itself
    assert calls.count("ranked") == 1 and calls.count("painted") > len(details.ways())
    del calls[:]
    details.main(tmp_path)
    assert capsys.readouterr().out == out and not calls     # all is read


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
