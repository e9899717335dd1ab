"""What is random about a pair, and what comes of it: a photograph and the mask to paint in it.

All of it comes from one generator, seeded with [seed, crc32("object/defect"), k, r] for try r of
pair k, so that a pair depends on no other pair, defect or process.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from anomaly.dataset import Defect
from anomaly.pairs.normals import Normal


@dataclass(frozen=True)
class Plan:
    """What the pair's generator decides before any mask is known; always in this order."""

    k: int
    noise: np.ndarray           # (4, h, w) float32: x_T
    reference: int              # which training mask gives shape, size or place
    order: np.ndarray           # the photographs, in the order they are tried
    rng: np.random.Generator    # at the first draw for a mask that is varied or generated
    attempt: int = 0            # the try


@dataclass(frozen=True)
class Target:
    """A photograph and the mask to be painted in it."""

    normal: Normal
    mask: np.ndarray        # bool (h, w)
    source: str             # the mask's file, or "learned"


def draw_plan(defect: Defect, k: int, seed: int, shape: tuple[int, int, int], references: int,
              normals: int, attempt: int = 0) -> Plan:
    """The plan of a try of pair k, out of so many training masks and photographs.

    shape: of its latents.
    """
    rng = np.random.default_rng([seed, crc32(defect.key.encode()), k, attempt])
    noise = rng.standard_normal(shape, dtype=np.float32)
    return Plan(k, noise, int(rng.integers(references)), rng.permutation(normals), rng, attempt)
