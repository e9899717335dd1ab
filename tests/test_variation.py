"""One real mask made into many: mirrored, scaled within the real ones' range, turned a little."""

import numpy as np
import pytest

from anomaly.crop import MAX_ANGLE
from anomaly.mask_model import components
from anomaly.pairs.placement import mask_patch
from anomaly.pairs.variation import SHIFT, size_of_patch, varied


def patch_of(top=30, left=50, h=40, w=16):
    """An L, so that every mirroring shows, in a photograph of 120 x 160."""
    mask = np.zeros((120, 160), bool)
    mask[top:top + h, left:left + w] = True
    mask[top:top + h // 2, left + w // 2:left + w] = False
    return mask_patch(mask, 64, "m.png")


def corner(patch):
    """The quarter of the patch's box that is emptiest: (bottom, right)."""
    h, w = patch.mask.shape
    quarters = {(i, j): patch.mask[i * h // 2:(i + 1) * h // 2, j * w // 2:(j + 1) * w // 2].mean()
                for i in (0, 1) for j in (0, 1)}
    return min(quarters, key=quarters.get)


def many(patch, n=60, sizes=None, flip=True):
    size = size_of_patch(patch)
    return [varied(patch, sizes or (size, size), flip, np.random.default_rng(i)) for i in range(n)]


def test_sixty_draws_are_sixty_shapes_in_sixty_places():
    found = many(patch_of(), sizes=(15.0, 30.0))
    assert len({(p.mask.shape, p.mask.tobytes()) for p in found}) == len(found)
    assert len({p.place for p in found}) == len(found)


@pytest.mark.parametrize("flip, corners", [
    (True, {(0, 0), (0, 1), (1, 0), (1, 1)}), (False, {(0, 1)})])
def test_masks_are_mirrored_with_their_place_unless_orientation_matters(flip, corners):
    patch = patch_of()
    found = many(patch, flip=flip)
    assert {corner(p) for p in found} == corners
    for p in found:
        mirrored = [c != own for c, own in zip(corner(p), (0, 1))]
        for axis, place, own in ((0, p.place[1], patch.place[1]), (1, p.place[0], patch.place[0])):
            assert abs(place - (1 - own if mirrored[axis] else own)) <= SHIFT


def test_sizes_stay_within_those_of_the_real_masks_and_fill_their_range():
    patch = patch_of()
    size = size_of_patch(patch)
    found = [size_of_patch(p) / size for p in many(patch, 200, (0.8 * size, 1.5 * size))]
    assert 0.8 * 0.93 < min(found) < 0.9 and 1.4 < max(found) < 1.5 * 1.07
    assert all(0.93 < f < 1.07 for f in (size_of_patch(p) / size for p in many(patch)))
    far = [size_of_patch(p) / size for p in many(patch, 200, (size / 100, size * 100))]
    assert 0.45 < min(far) and max(far) < 2.15


def test_they_are_turned_no_more_than_training_turns_its_views():
    mask = np.zeros((200, 200), bool)
    mask[98:102, 20:180] = True
    angles = []
    for p in many(mask_patch(mask, 64, "m"), flip=False):
        y, x = np.nonzero(p.mask)
        angles.append(np.degrees(np.arctan(np.polyfit(x, y, 1)[0])))
    assert max(np.abs(angles)) <= MAX_ANGLE + 0.5 and np.ptp(angles) > MAX_ANGLE


def test_what_touches_an_edge_keeps_to_an_edge():
    for p in many(patch_of(top=0)):
        assert p.place[1] in (0.0, 1.0)


def test_a_thin_sloping_mask_is_not_torn_to_pieces():
    mask = np.zeros((90, 90), bool)
    for x in range(80):
        mask[5 + x // 2:6 + x // 2, 5 + x] = True
    patch = mask_patch(mask, 64, "m")
    size = size_of_patch(patch)
    for p in many(patch, 100, sizes=(0.5 * size, size)):
        assert components(p.mask) == 1 and size_of_patch(p) > 0.45 * size
