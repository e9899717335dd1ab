"""Each score of the gate on cases whose answer is known, or against a loop over pixels."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from anomaly.scores import pair_scores
from anomaly.scores.pair_scores import (
    copies,
    cosines,
    details,
    eroded,
    features,
    grain,
    middle,
    visible,
)
from anomaly.scores.pictures import ring


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def square(top, left, bottom, right, size=64):
    mask = torch.zeros((1, size, size), dtype=torch.bool)
    mask[0, top:bottom, left:right] = True
    return mask


def test_visible_is_the_share_of_a_loop_over_the_masks_pixels():
    before, after = noise(2, 3, 7, 5), noise(2, 3, 7, 5, seed=1)
    masks = noise(2, 7, 5, seed=2) > 0.3
    masks[1] = False
    masks[1, 6, 4] = True
    found = visible(before, after, masks, 0.6)
    for b, a, m, value in zip(before.numpy(), after.numpy(), masks.numpy(), found):
        changed = [sum(abs(float(a[c, y, x]) - float(b[c, y, x])) for c in range(3)) / 3 > 0.6
                   for y in range(7) for x in range(5) if m[y, x]]
        assert value == pytest.approx(np.mean(changed))


def test_what_is_drawn_beside_the_mask_is_not_visible():
    before, mask = torch.zeros(1, 3, 64, 64), square(10, 10, 30, 30)
    after = before + square(40, 40, 60, 60)[:, None]
    assert visible(before, after, mask, 0.1) == 0
    assert visible(before, before + mask[:, None], mask, 0.1) == 1


def test_middle_features_are_what_the_encoder_sees_before_the_latents(sd):
    pictures, encoder = noise(2, 3, 64, 64), sd.vae.encoder
    expected = encoder.conv_in(pictures)
    for block in encoder.down_blocks:
        expected = block(expected)
    assert torch.equal(middle(sd.vae, pictures), encoder.mid_block(expected))
    assert not encoder.mid_block._forward_hooks


def test_middle_features_that_overflow_in_half_precision_are_computed_again(sd):
    vae, pictures = deepcopy(sd.vae), noise(1, 3, 64, 64)
    vae.encoder.conv_in.weight.data *= 1e5
    expected = middle(vae, pictures)
    found = middle(vae.half(), pictures)
    assert found.isfinite().all() and found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_features_are_the_differences_and_deviations_of_a_loop_over_cells(sd, monkeypatch):
    """The mask fills cells; the ring, 4 pixels wide, half of those around or all."""
    monkeypatch.setattr(pair_scores, "BATCH", 1)
    f, pictures = sd.vae.config.factor, noise(2, 3, 64, 64)
    masks = torch.cat([square(16, 16, 32, 48), square(0, 0, 16, 16)])
    seen, found = middle(sd.vae, pictures).double(), features(sd.vae, pictures, masks)
    for i in range(2):
        cells = [(y, x) for y in range(64 // f) for x in range(64 // f)]
        share = {name: {(y, x): float(m[i, y * f:y * f + f, x * f:x * f + f].double().mean())
                        for y, x in cells} for name, m in (("m", masks), ("ring", ring(masks)))}
        mean = {name: sum(seen[i, :, y, x] * w for (y, x), w in weights.items())
                / sum(weights.values()) for name, weights in share.items()}
        spread = sum((seen[i, :, y, x] - mean["m"]) ** 2 * w for (y, x), w in share["m"].items())
        spread = (spread / sum(share["m"].values())).sqrt()
        expected = torch.cat([mean["m"] - mean["ring"], spread])
        assert torch.allclose(found[i].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_that_fills_the_picture_has_features(sd):
    assert features(sd.vae, noise(1, 3, 64, 64), square(0, 0, 64, 64)).isfinite().all()


def test_cosines_do_not_know_lengths_but_directions():
    found = cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0], [-4.0, 3.0], [-3.0, -4]]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, -1.0]]), atol=1e-6)


@pytest.mark.parametrize("height", [0.5, 0.001])
def test_the_grain_of_a_chequerboard_is_eight_ninths_of_its_height(height):
    """Its mean over 3 x 3 pixels is a ninth of the pixel."""
    y, x = np.mgrid[:64, :64]
    board = torch.from_numpy(height * (-1.0) ** (x + y))[None, None].expand(1, 3, 64, 64)
    assert grain(0.2 + board, square(10, 10, 40, 30)).item() == pytest.approx(
        np.log(8 / 9 * height), rel=1e-5)


def test_grain_sees_the_mask_only_and_a_flat_picture_has_some():
    mask, picture = square(10, 10, 40, 30), noise(1, 3, 64, 64)
    inside = torch.where(mask[:, None], picture, 0.0)
    assert grain(inside, mask) == grain(picture, mask)
    assert grain(0 * picture, mask).isfinite().all()


def test_masks_lose_their_rim_unless_they_are_all_rim():
    thick, line = square(10, 10, 20, 30), square(10, 10, 12, 60)
    assert torch.equal(eroded(torch.cat([thick, line])), torch.cat([square(11, 11, 19, 29), line]))
    assert torch.equal(eroded(square(0, 0, 64, 64)), square(0, 0, 64, 64))


@pytest.mark.parametrize("flips", [(), (1,), (2,), (1, 2)])
def test_copies_equal_a_loop_over_shifts(flips):
    """Of one found piece in one known, where a loop over all shifts and this flip alone is less."""
    s = 9
    h, g = (noise(1, s, s, seed=i).double() for i in (1, 2))
    m, n = noise(1, s, s, seed=3) > -0.2, noise(1, s, s, seed=4) > -0.2
    best = -1.0
    for flip in ((), (1,), (2,), (1, 2)):
        gn = (g * n).flip(flip)[0]
        for dy in range(-s + 1, s):
            for dx in range(-s + 1, s):
                over = under = energy = 0.0
                for y in range(s):
                    for x in range(s):
                        if m[0, y, x]:
                            inside = 0 <= y + dy < s and 0 <= x + dx < s
                            other = float(gn[y + dy, x + dx]) if inside else 0.0
                            over += float(h[0, y, x]) * other
                            under += other ** 2
                            energy += float(h[0, y, x]) ** 2
                floor = 1e-3 * float(gn.square().sum())
                best = max(best, over / (energy * max(under, floor)) ** 0.5)
    found = copies((h.flip(flips), m.flip(flips)), (g, n))
    assert found.item() == pytest.approx(best, abs=1e-6)


def test_a_piece_pasted_elsewhere_and_mirrored_is_found_and_nothing_else():
    known, other, surface = (noise(1, 3, 64, 64, seed=i) for i in range(3))
    mask, place = square(20, 20, 50, 44), square(4, 30, 34, 54)
    pasted = surface.clone()
    pasted[:, :, 4:34, 30:54] = known[:, :, 20:50, 20:44].flip(3)
    both = [torch.cat([a, b]) for a, b in zip(details(known, mask), details(other, mask))]
    found = copies(details(torch.cat([pasted, surface]), place.expand(2, -1, -1)), tuple(both))
    assert found[0, 0] == pytest.approx(1, abs=1e-4)
    assert found.flatten()[1:].max() < 0.3


def test_large_pictures_are_compared_at_a_smaller_side_where_no_pixel_of_a_mask_is_lost():
    large, thin = noise(1, 3, 256, 256), square(100, 10, 101, 200, size=256)
    h, m = details(large, thin)
    assert h.shape == m.shape == (1, 128, 128) and m.sum() == 95
