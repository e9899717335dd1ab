"""Photographs as detectors see them: cells, parts that are never divided, pasted defects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly.progress import silent
from evaluation.labelled import Labelled, in_cells, labelled
from evaluation.parts import grouped, named_parts, near_duplicates
from evaluation.pasting import pasted, poisson, varied_defect

RNG = np.random.default_rng(0)


def grain(height, width):
    return RNG.integers(60, 200, (height, width, 3), np.uint8)


def seen(pixels, box=None, side=1, name="0"):
    marked = np.zeros(pixels.shape[:2], np.float32)
    if box is not None:
        marked[box[0]:box[1], box[2]:box[3]] = 1
    return Labelled(Path(name), "tile", "spot", pixels, marked, np.ones_like(marked), side)


def test_a_cell_counts_its_pixels_and_those_that_are_marked(tmp_path):
    photograph, mask = grain(70, 100), RNG.random((70, 100)) < 0.1
    Image.fromarray(photograph).save(tmp_path / "0.png")
    cells = in_cells(mask, 3)
    assert cells.shape == (24, 34) and cells.sum() == mask.sum() and cells[5, 7] == mask[
        15:18, 21:24].sum() and cells[23, 33] == mask[69, 99]
    small = labelled("tile", "", tmp_path / "0.png", 34)
    assert small.side == 3 and small.pixels.shape == (24, 34, 3) and small.counted[23, 33] == 1
    np.testing.assert_allclose(small.pixels[5, 7], photograph[15:18, 21:24].mean(axis=(0, 1)),
                               atol=1)


def test_photographs_of_one_part_are_found_whatever_their_light_and_place():
    part = grain(150, 110)
    lit = np.clip(part[4:, 6:] * 0.6 + 70, 0, 255).astype(np.uint8)
    defective = part.copy()
    defective[20:60, 20:60] = 0
    twin = grain(150, 110)
    twin[20:60, 20:60] = 0      # the same defect on another part
    photographs = [seen(part), seen(grain(150, 110)), seen(lit),
                   seen(defective, (20, 60, 20, 60)), seen(twin, (20, 60, 20, 60))]
    assert sorted(near_duplicates(photographs, silent)) == [(0, 2), (0, 3), (2, 3)]
    other = [replace(photographs[2], object="nut"), photographs[0]]
    assert near_duplicates(other, silent) == []


def test_parts_are_named_by_a_pattern_or_a_table(tmp_path, caplog):
    caplog.set_level("INFO", "anomaly.evaluation")
    paths = [Path(f"{kind}/{name}") for kind in ("hole", "crack")
             for name in ("A1_left.png", "A1_right.png", "B2_left.png")]
    named = named_parts(paths, "/([A-Z]\\d)_")
    assert [named[p] for p in paths] == ["A1", "A1", "B2"] * 2
    assert list(grouped(paths, named, []).values()) == [0, 0, 2, 0, 0, 2]
    assert list(grouped(paths, {}, [(1, 2), (2, 4)]).values()) == [0, 1, 1, 3, 1, 5]
    assert list(grouped(paths, named, [(1, 2), (2, 4)]).values()) == [0, 0, 2, 0, 0, 2]
    table = tmp_path / "parts.csv"
    table.write_text("image,part\nhole/A1_left.png,x\nB2_left.png,x\nelse.png,x\nno.png,y\n")
    assert list(named_parts(paths, str(table))) == [paths[0], paths[2], paths[5]]
    assert "2 of 4 rows name no photograph of --data; the first is else.png" in caplog.text


def test_poisson_solves_the_equation_of_the_paper():
    source, target, mask = grain(9, 12), grain(9, 12), np.zeros((9, 12), bool)
    mask[3:7, 2:9] = mask[0, 5] = True          # one pixel at the edge of the picture
    found = poisson(source // 2 + 60, target // 2 + 60, mask).astype(int)   # nothing is cut off
    source, target = source.astype(int) // 2 + 60, target.astype(int) // 2 + 60
    assert (found[~mask] == target[~mask]).all()
    for p in np.argwhere(mask):
        beside = [q for q in p + np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])
                  if (q >= 0).all() and (q < mask.shape).all()]
        left = sum(found[tuple(p)] - found[tuple(q)] for q in beside)
        right = sum(source[tuple(p)] - source[tuple(q)] for q in beside)
        assert abs(left - right).max() <= 4       # each value is rounded to a whole one
    flat = poisson(np.full((9, 12, 3), 50, np.uint8), np.full((9, 12, 3), 200, np.uint8), mask)
    assert (flat == 200).all()


def test_a_pasted_defect_is_mirrored_turned_and_placed_where_it_fits():
    real = seen(np.full((60, 40, 3), 120, np.uint8), (50, 60, 4, 12))      # at the lower edge
    real.pixels[real.marked > 0] = 30
    small, large = (seen(np.full((height, 90, 3), 200, np.uint8)) for height in (8, 80))
    places = set()
    for _ in range(12):
        found = pasted(real, [small, large], True, RNG)
        assert found.pixels.shape == (80, 90, 3) and found.defect == "spot"
        inside = found.pixels[found.marked > 0]
        assert inside.mean() < 140 and (found.pixels[found.marked == 0] == 200).all()
        places.add(tuple(np.argwhere(found.marked)[0]))
    assert len(places) > 6
    assert pasted(real, [small], True, RNG) is None
    pixels, mask = varied_defect(real, False, np.random.default_rng(1))
    assert mask[40:].sum() == mask.sum()        # never mirrored where that is forbidden
