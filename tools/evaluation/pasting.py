"""Crop-and-paste, the simplest way to more defects: real ones, turned, mirrored, blended in.

Poisson image editing (Perez et al. 2003): inside the mask the real defect's differences between
neighbours, at its border the photograph's own colours.
"""

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import spsolve

from anomaly.crop import MAX_ANGLE, box, turn_mask, turn_window
from anomaly.pairs.normals import Normal
from anomaly.pairs.placement import mask_patch, placed
from evaluation.labelled import Labelled

SHIFT = 0.1         # of the room that a defect can move in, either way


def poisson(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """target with the source's differences in the mask. source, target (h, w, 3), mask (h, w) bool.

        sum over neighbours q of p: f_p - f_q = source_p - source_q,    f_q = target_q outside

    Solved directly; pixels beyond the edge are no neighbours. All that is masked is the source.
    """
    if mask.all():
        return source
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    rows, columns, values = [], [], []
    right = np.zeros((mask.sum(), source.shape[2]))
    diagonal = np.zeros(mask.sum())
    here = np.argwhere(mask)
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        there = here + step
        inside = ((there >= 0) & (there < mask.shape)).all(axis=1)
        p, q = (tuple(some[inside].T) for some in (here, there))
        i, j = number[p], number[q]
        diagonal[i] += 1
        right[i] += source[p].astype(float) - source[q]
        right[i[j < 0]] += target[q][j < 0]
        rows.append(i[j >= 0]), columns.append(j[j >= 0]), values.append(-np.ones((j >= 0).sum()))
    rows.append(number[mask]), columns.append(number[mask]), values.append(diagonal)
    where = np.concatenate(rows), np.concatenate(columns)
    matrix = csr_matrix((np.concatenate(values), where))
    out = target.copy()
    out[mask] = np.clip(np.round(spsolve(matrix.tocsc(), right).reshape(right.shape)), 0, 255)
    return out


def varied_defect(real: Labelled, flip: bool,
                  rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and mask of a real photograph, mirrored and turned round the defect."""
    pixels, mask = real.pixels, real.marked > 0
    for axis, mirrored in enumerate((rng.random(2) < 0.5) & flip):
        if mirrored:
            pixels, mask = np.flip(pixels, axis), np.flip(mask, axis)
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    if not (turned := turn_mask(mask, angle)).any():
        return pixels, mask
    left, top, right, bottom = box(mask)
    centre = (left + right) / 2, (top + bottom) / 2
    whole = slice(0, mask.shape[0]), slice(0, mask.shape[1])
    return turn_window(np.ascontiguousarray(pixels), angle, centre, *whole), turned


def pasted(real: Labelled, goods: list[Labelled], flip: bool,
           rng: np.random.Generator) -> Labelled | None:
    """A real defect in the first of the photographs that it fits into, near its relative place."""
    pixels, mask = varied_defect(real, flip, rng)
    left, top, right, bottom = box(mask)
    patch = mask_patch(mask, 1, "")
    down, across = (min(max(place + rng.uniform(-SHIFT, SHIFT), 0), 1)
                    for place in patch.place[::-1])
    patch = replace(patch, place=(across, down))
    for good in goods:
        height, width = good.marked.shape
        if height >= bottom - top and width >= right - left:
            there = placed(patch, Normal(good.path, height, width))
            to_left, to_top, _, _ = box(there)
            # What lies beyond the real photograph is its edge again: no difference, no change.
            moved = pixels[np.clip(np.arange(height) + top - to_top, 0, mask.shape[0] - 1)][
                :, np.clip(np.arange(width) + left - to_left, 0, mask.shape[1] - 1)]
            return replace(good, defect=real.defect, pixels=poisson(moved, good.pixels, there),
                           marked=there)
    return None
