"""Labels of masks as other libraries read them: OpenCV, Pillow, COCO's API, shapely."""

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from anomaly.pairs.contours import parts, ring, run_lengths
from anomaly.pairs.exporting import yolo_label
from anomaly.pairs.selection import Entry

HEIGHT, WIDTH = 60, 90


def drawn(*shapes):
    """A mask with white and black polygons or lines drawn in turn."""
    image = Image.new("L", (WIDTH, HEIGHT))
    for value, *points in shapes:
        pen = ImageDraw.Draw(image)
        (pen.polygon if len(points) > 2 else pen.line)(points, fill=value)
    return np.array(image) > 0


SQUARE = (255, (10, 10), (70, 12), (60, 50), (14, 40))
RNG = np.random.default_rng(0)
MASKS = {
    "plain": drawn(SQUARE),
    "hole": drawn(SQUARE, (0, (30, 20), (50, 22), (40, 35))),
    "holes, of a pixel, touching at corners, one right of another": drawn(
        SQUARE, (0, (30, 20), (40, 20), (40, 25), (30, 25)), (0, (41, 26), (41, 26)),
        (0, (50, 22), (55, 22)), (0, (42, 27), (42, 27)), (0, (20, 23), (20, 23))),
    "one pixel": drawn((255, (7, 5), (7, 5))),
    "a pixel in each corner": drawn(*((255, (x, y), (x, y)) for x in (0, 89) for y in (0, 59))),
    "a level line": drawn((255, (5, 10), (80, 10))),
    "an upright line at the border": drawn((255, (89, 0), (89, 59))),
    "a diagonal of corners": drawn((255, (5, 5), (50, 50))),
    "slanting lines that cross": drawn((255, (3, 50), (80, 7)), (255, (0, 0), (89, 40))),
    "touching three borders": drawn((255, (0, 0), (89, 0), (89, 20), (40, 8), (0, 30))),
    "everything": np.ones((HEIGHT, WIDTH), bool),
    "parts in a hole": drawn(SQUARE, (0, (24, 18), (56, 18), (50, 38)), (255, (44, 22), (46, 24))),
    "noise": RNG.random((HEIGHT, WIDTH)) > 0.5,
    "chessboard": np.indices((HEIGHT, WIDTH)).sum(0) % 2 == 0}


def ultralytics(polygons):
    """As its polygon2mask: float32, cut to whole numbers, OpenCV's fillPoly."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for polygon in polygons:
        pixels = polygon.astype(np.float32) * np.float32([WIDTH, HEIGHT])
        cv2.fillPoly(mask, [pixels.astype(np.int32)], 1)
    return mask > 0


def pillow(polygons):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for polygon in polygons:
        image = Image.new("1", (WIDTH, HEIGHT))
        ImageDraw.Draw(image).polygon(list(map(tuple, polygon * (WIDTH, HEIGHT))), fill=1)
        mask |= np.asarray(image)
    return mask


def coco(polygons):
    flat = [(polygon * (WIDTH, HEIGHT)).ravel().tolist() for polygon in polygons]
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(flat, HEIGHT, WIDTH))) > 0


def polygons_of(text):
    return [np.array(line.split()[1:], float).reshape(-1, 2) for line in text.splitlines()]


@pytest.fixture
def label(tmp_path):
    def write(mask, boxes=False):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
        return yolo_label(Entry(tmp_path / "m.png", tmp_path / "m.png", "o", "d", 0, ""), 3, boxes)
    return write


@pytest.mark.parametrize("name", MASKS)
def test_outlines_give_the_mask_back_in_other_rasterisers(name, label):
    mask = MASKS[name]
    text = label(mask)
    found = polygons_of(text)
    assert len(found) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    for line, polygon in zip(text.splitlines(), found):      # YOLO's rules
        assert line.startswith("3 ") and len(polygon) >= 3
        assert polygon.min() >= 0 and polygon.max() <= 1
    for rasterised in (ultralytics(found), pillow(found), coco(found)):
        assert np.array_equal(rasterised, mask)
    area = shapely.union_all([shapely.Polygon(p * (WIDTH, HEIGHT)).buffer(0) for p in found])
    pixels = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)])
    assert area.intersection(pixels).area / area.union(pixels).area >= 0.98


def test_straight_runs_have_no_points_between_their_ends():
    assert len(ring(next(parts(MASKS["everything"])))) == 4


@pytest.mark.parametrize("name", MASKS)
def test_run_lengths_and_boxes_are_exact(name, label):
    united = np.zeros((HEIGHT, WIDTH), int)
    boxes = np.array([line.split() for line in label(MASKS[name], boxes=True).splitlines()], float)
    for part, (number, *box) in zip(parts(MASKS[name]), boxes, strict=True):
        encoded = run_lengths(part, HEIGHT, WIDTH)
        one = coco_masks.decode(encoded)
        united += one
        assert coco_masks.toBbox(encoded).tolist() == part.box
        ys, xs = np.nonzero(one)
        edges = np.array([xs.min(), xs.max() + 1, ys.min(), ys.max() + 1])
        expected = [edges[:2].mean() / WIDTH, edges[2:].mean() / HEIGHT,
                    np.ptp(edges[:2]) / WIDTH, np.ptp(edges[2:]) / HEIGHT]
        assert number == 3 and box == pytest.approx(expected, abs=1e-8)
    assert np.array_equal(united, MASKS[name])
