"""Masked textual inversion: the loss, what moves, what stays, that it learns, that it resumes."""

import hashlib

import pytest
import torch

from anomaly.crop import Cropped
from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.train import Views, draw, encode, masked_loss, predict, rate, textual_inversion

A, B = Defect("tile", "crack", ()), Defect("tile", "hole", ())


def views(sign, cells=None, n=6, seed=0):
    """Latents with a mean that the defect shifts, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(4, 1, 1, generator=generator)
    if cells is None:
        cells = torch.zeros(16, 16, dtype=torch.bool)
        cells[4:12, 4:12] = True
    masks = cells.repeat_interleave(4, 0).repeat_interleave(4, 1)
    latents = sign * 4 * base + 0.1 * torch.randn(n, 4, 16, 16, generator=generator)
    return Views(latents, cells.expand(n, -1, -1), masks.expand(n, -1, -1))


def checksum(*modules):
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def train(sd, data, learner, start, end, batch_size=2, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(learner.rates(sd))
    return list(textual_inversion(sd, data, learner, optimizer, start, end, batch_size, seed=0))


def test_the_loss_equals_a_float64_loop_over_samples():
    torch.manual_seed(0)
    eps, eps_hat = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    cells = torch.rand(2, 6, 5) < 0.3
    per_sample = []
    for e, h, m in zip(eps.double(), eps_hat.double(), cells):
        terms = [(e[c, y, x] - h[c, y, x]) ** 2 for c in range(4) for y, x in m.nonzero().tolist()]
        per_sample.append(sum(terms) / len(terms))
    expected = torch.stack(per_sample).mean().float()
    torch.testing.assert_close(masked_loss(eps_hat, eps, cells), expected)


def test_the_gradient_of_the_loss_is_exactly_zero_outside_the_mask():
    torch.manual_seed(0)
    eps_hat = torch.randn(2, 4, 8, 8, requires_grad=True)
    cells = torch.rand(2, 8, 8) < 0.4
    masked_loss(eps_hat, torch.randn(2, 4, 8, 8), cells).backward()
    outside = ~cells[:, None].expand_as(eps_hat)
    assert (eps_hat.grad[outside] == 0).all() and (eps_hat.grad[~outside] != 0).all()


def test_a_small_and_a_large_defect_weigh_the_same():
    cells = torch.zeros(2, 8, 8, dtype=torch.bool)
    cells[0, 3, 3] = True           # one cell
    cells[1] = True                 # all of them
    eps_hat = torch.zeros(2, 4, 8, 8, requires_grad=True)
    masked_loss(eps_hat, torch.ones(2, 4, 8, 8), cells).backward()
    small, large = eps_hat.grad.sum(dim=(1, 2, 3))
    torch.testing.assert_close(small, large)


def test_a_one_pixel_mask_still_trains(sd):
    cells = torch.zeros(16, 16, dtype=torch.bool)
    cells[5, 9] = True
    learner = AnomalyEmbedding(sd, [A], 0)
    before = learner.e_a[A.stem].detach().clone()
    record, = train(sd, {A.stem: views(1, cells)}, learner, 0, 1)
    assert record.loss > 0 and ((learner.e_a[A.stem] - before).abs().sum(dim=1) > 0).all()


def test_only_the_embeddings_and_the_encoder_move_and_all_of_them_do(sd):
    frozen = checksum(sd.unet, sd.vae, sd.text_encoder)
    learner = AnomalyEmbedding(sd, [A, B], 0)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    train(sd, {A.stem: views(1), B.stem: views(-1)}, learner, 0, 4)
    for name, parameter in learner.named_parameters():
        if name.startswith("e_a"):      # each of the k vectors
            assert ((parameter - before[name]).abs().sum(dim=1) > 0).all(), name
        else:
            assert not torch.equal(parameter, before[name]), name
    first_weight = learner.spatial_encoder.stem[0].weight
    assert not torch.equal(first_weight, before["spatial_encoder.stem.0.weight"])
    assert checksum(sd.unet, sd.vae, sd.text_encoder) == frozen
    assert all(p.grad is None and not p.requires_grad
               for part in (sd.unet, sd.vae, sd.text_encoder) for p in part.parameters())


def test_a_step_on_one_defect_leaves_the_other_defects_vectors_alone(sd):
    learner = AnomalyEmbedding(sd, [A, B], 0)
    data = {A.stem: views(1), B.stem: views(-1)}
    optimizer = torch.optim.Adam(learner.rates(sd))
    loop = textual_inversion(sd, data, learner, optimizer, 0, 3, 2, 0)
    next(loop), next(loop)
    b = learner.e_a[B.stem].detach().clone()
    record = next(loop)
    assert record.stem == A.stem and torch.equal(learner.e_a[B.stem], b)


def held_out_loss(sd, learner, vectors_of, data):
    """Masked loss on fixed (t, eps) that no training step has drawn."""
    losses = []
    with torch.no_grad():
        for step in range(6):
            z_0, cells, masks, t, eps = draw(data, 8, 1000, 99, step)
            out = predict(sd, learner(vectors_of, masks), z_0, t, eps)
            losses.append(masked_loss(out, eps, cells))
    return float(torch.stack(losses).mean())


def test_it_learns_and_each_defect_learns_its_own(sd):
    data = {A.stem: views(1), B.stem: views(-1)}
    learner = AnomalyEmbedding(sd, [A, B], 0)
    start = {d.stem: held_out_loss(sd, learner, d.stem, data[d.stem]) for d in (A, B)}
    records = train(sd, data, learner, 0, 120, batch_size=4)
    for own, other in ((A.stem, B.stem), (B.stem, A.stem)):
        end = held_out_loss(sd, learner, own, data[own])
        swapped = held_out_loss(sd, learner, other, data[own])
        assert end < 0.95 * start[own]
        assert swapped > end + 0.003    # the same (t, eps): any difference is the embedding's
    for record in records:
        assert all(0.15 < norm < 4 for norm in record.norms.values()), record
        assert abs(record.norms["e_s"] - 1) < 0.01      # E cannot leave the words' scale


def test_the_released_rate_throws_the_vectors_out_of_the_words_scale(sd):
    learner = AnomalyEmbedding(sd, [A], 0)
    # The words' rms is 0.02, as CLIP's.
    groups = [{**group, "lr": 0.02} for group in learner.rates(sd)[:1]]
    records = train(sd, {A.stem: views(1)}, learner, 0, 40, optimizer=torch.optim.Adam(groups))
    assert max(r.norms["e_a"] for r in records) > 4


def test_the_rate_warms_up_holds_and_falls_without_knowing_the_end():
    assert rate(0) == pytest.approx(1 / 20) and rate(19) == rate(199) == 1
    assert rate(799) == pytest.approx(0.5)


def test_a_resumed_loop_ends_where_an_unbroken_one_does(sd):
    data = {A.stem: views(1), B.stem: views(-1)}
    unbroken = AnomalyEmbedding(sd, [A, B], 0)
    train(sd, data, unbroken, 0, 6)
    broken = AnomalyEmbedding(sd, [A, B], 0)
    first = torch.optim.Adam(broken.rates(sd))
    train(sd, data, broken, 0, 3, optimizer=first)
    second = torch.optim.Adam(broken.rates(sd))
    for parameter, state in first.state.items():
        second.state[parameter] = state
    train(sd, data, broken, 3, 6, optimizer=second)
    for name, parameter in unbroken.named_parameters():
        assert torch.equal(parameter, dict(broken.named_parameters())[name]), name


def test_draws_depend_on_seed_and_step_alone(sd):
    data = views(1)
    first, again, other = (draw(data, 4, 1000, 0, step) for step in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[4], other[4])


def test_latents_are_the_vaes_mean(sd):
    image = torch.rand(3, 64, 64) * 2 - 1
    blank = torch.ones(64, 64, dtype=torch.bool)
    encoded = encode(sd, [Cropped(image, blank, blank[:16, :16])])
    with torch.no_grad():
        mean, _ = sd.vae.encode(image[None])
    assert torch.equal(encoded.latents, mean)
