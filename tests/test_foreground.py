"""Finding the object in normal photographs of known truth."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, label

from anomaly.drawn.fields import View
from anomaly.drawn.products import OBJECTS, PRODUCTS
from anomaly.drawn.scenes import draw_scene
from anomaly.pairs.foreground import objects_found, regions
from anomaly.pairs.normals import find_normals
from anomaly.progress import silent

SIDE = 200
Y, X = np.mgrid[0:1:SIDE * 1j, 0:1:SIDE * 1j]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def objects_of(folder, images):
    """The objects that auto finds in the images: a list, or None if it finds none."""
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    normals = find_normals(folder)
    found = list(map(objects_found(normals, silent), normals))
    assert all((mask is None) == (found[0] is None) for mask in found)
    return None if found[0] is None else found


def drawn(product, number, pixels):
    scene, view = draw_scene(np.random.default_rng(number), product, None), View(0, 0, 1, pixels)
    return scene.render(view)[0], scene.product.paint(view)[1] > 0.5


# objects

@pytest.mark.parametrize("pixels", [256, 900])
@pytest.mark.parametrize("product", OBJECTS)
def test_the_drawn_objects_are_found(product, pixels, tmp_path):
    pictures = [drawn(product, i, pixels) for i in range(16 if pixels == 256 else 5)]
    found = objects_of(tmp_path, [image for image, _ in pictures])
    assert min(iou(mask, solid) for mask, (_, solid) in zip(found, pictures)) > 0.95


def blob(rng, where=(0.5, 0.5), size=0.25, hole=0.0):
    """bool (h, w): an ellipse, any way round, with a hole."""
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
    x, y = X - where[0], Y - where[1]
    radius = np.hypot(x * np.cos(angle) + y * np.sin(angle),
                      (y * np.cos(angle) - x * np.sin(angle)) / flat)
    return (radius < size) & (radius >= hole * size)


def photograph(rng, solid, back=(200, 200, 200), front=(90, 90, 90), noise=4.0, slope=0.0,
               bend=0.0, shadow=0.0):
    """uint8 (h, w, 3): an object on a background, lit from the left or the middle; its shadow."""
    colour = np.full((*solid.shape, 3), back, float)
    cast = gaussian_filter(np.roll(solid, (6, 10), (0, 1)).astype(float), 8)
    colour = colour * (1 - shadow * cast)[..., None]
    colour[solid] = front + 8 * gaussian_filter(rng.standard_normal(solid.shape), 3)[solid][:, None]
    colour = gaussian_filter(colour, (0.6, 0.6, 0)) * (1 + slope * (0.5 - X))[..., None]
    colour = colour / (1 + bend * ((X - 0.5) ** 2 + (Y - 0.5) ** 2))[..., None]
    noisy = colour + noise * rng.standard_normal(colour.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


SEEN = {"plain": {}, "noisy": {"noise": 10.0}, "uneven light": {"slope": 0.5},
        "a lamp above": {"bend": 0.8},
        "shadow": {"shadow": 0.1}, "blue": {"back": (30, 60, 160)},
        "of the background's brightness": {"back": (60, 160, 60), "front": (190, 60, 180)},
        "white": {"back": (255, 255, 255), "noise": 1.0}, "black": {"back": (4, 4, 4)}}


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("kind", SEEN)
def test_objects_anywhere_and_of_any_size_are_found_on_any_plain_background(kind, grey, tmp_path):
    rng, images, truth = np.random.default_rng(0), [], []
    for i in range(9):
        size = rng.uniform(0.17, 0.3)
        solid = blob(rng, rng.uniform(size + 0.06, 0.94 - size, 2), size, hole=(0, 0.5)[i % 2])
        image = photograph(rng, solid, **SEEN[kind])
        images.append(image[..., 0] if grey else image)
        truth.append(solid)
    found = objects_of(tmp_path, images)
    assert min(map(iou, found, truth)) > 0.95


def test_an_object_may_have_spots_and_hardly_touch_the_border(tmp_path):
    rng = np.random.default_rng(0)
    solid = np.hypot(X - 0.24, Y - 0.5) < 0.25
    assert solid[:, 0].mean() > 0.1
    spot = np.hypot(X - 0.25, Y - 0.5) < 0.03
    found, = objects_of(tmp_path, [photograph(rng, solid & ~spot)])
    assert iou(found, solid) > 0.95 and found[spot].all()


def test_one_photograph_in_ten_may_show_no_object_and_gets_no_mask(tmp_path):
    rng = np.random.default_rng(0)
    images = [photograph(rng, blob(rng)) for _ in range(9)]
    images.append(photograph(rng, np.zeros((SIDE, SIDE), bool)))
    *found, empty = objects_of(tmp_path / "a", images)
    assert all(mask.any() for mask in found) and not empty.any()
    assert objects_of(tmp_path / "b", images + images[-1:]) is None


# what is none

@pytest.mark.parametrize("product", [name for name in PRODUCTS if name not in OBJECTS])
def test_no_drawn_texture_is_cut_not_even_a_single_photograph(product, tmp_path):
    for i in range(12):
        assert objects_of(tmp_path / str(i), [drawn(product, i, 256)[0]]) is None


def clutter(rng):
    """Several things on a plain background."""
    solid = np.zeros((SIDE, SIDE), bool)
    for where in ((0.25, 0.3), (0.7, 0.3), (0.5, 0.75)):
        solid |= blob(rng, where + rng.uniform(-0.05, 0.05, 2), rng.uniform(0.1, 0.17))
    return photograph(rng, solid)


def spotlight(rng):
    light = np.exp(-((X - 0.5) ** 2 + (Y - 0.5) ** 2) / rng.uniform(0.05, 0.2))
    return np.uint8(40 + 180 * light + rng.uniform(0, 5, (SIDE, SIDE)))


def vignette(rng):
    """A grained surface through a lens: cos^4 of the angle."""
    grain = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 1.5)
    light = 1 / (1 + rng.uniform(1, 3) * ((X - 0.5) ** 2 + (Y - 0.5) ** 2)) ** 2
    return np.uint8(np.clip((150 + 40 * grain) * light, 0, 255))


def patches(rng):
    """A surface with large soft stains."""
    return np.uint8(np.clip(128 + 600 * gaussian_filter(
        rng.standard_normal((SIDE, SIDE)), rng.uniform(6, 30)), 0, 255))


NONE = {
    "flat": lambda rng: np.full((SIDE, SIDE), 120, np.uint8),
    "noise": lambda rng: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
    "stripes": lambda rng: np.uint8(127 + 80 * np.sin(rng.uniform(20, 90) * X + 9 * Y)),
    "checks": lambda rng: np.uint8(60 + 130 * ((X * 7 // 1 + Y * 7 // 1) % 2)),
    "halves": lambda rng: np.uint8(50 + 150 * (X > rng.uniform(0.3, 0.7))),
    "speck": lambda rng: photograph(rng, blob(rng, size=0.04)),
    "at the border": lambda rng: photograph(rng, blob(rng, (0.1, 0.5), 0.3)),
    "band": lambda rng: photograph(rng, np.abs(Y - 0.5) < 0.2),
    "faint": lambda rng: photograph(rng, blob(rng), front=(194, 194, 194), noise=6.0),
    "clutter": clutter, "spotlight": spotlight, "vignette": vignette, "patches": patches,
    "one row": lambda rng: rng.integers(0, 256, (1, 40), np.uint8),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_plain_object_is_not_cut(kind, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(1 if kind in ("flat", "checks") else 8):
        assert objects_of(tmp_path / str(i), [NONE[kind](rng)]) is None, i


def test_real_photographs_of_a_surface_are_not_cut(photographs):
    normals = find_normals(photographs / "train" / "good")
    assert objects_found(normals, silent)(normals[0]) is None


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.59, 0.8, 1])
def test_regions_are_those_of_scipy(share):
    grid = np.random.default_rng(0).random((60, 41)) < share
    ours, theirs = regions(grid), label(grid)[0]
    assert np.array_equal(ours > 0, grid) and ours.max() == theirs.max()
    assert len(set(zip(ours.flat, theirs.flat))) == theirs.max() + (not grid.all())
