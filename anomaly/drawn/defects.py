"""The defects, three thin and five blobs: each one signed distance that gives mask, rim and shadow.

A defect is made from a generator at a place and a size: shape(view) is its signed distance
(negative inside, in the frame's units), paint(view, distance, colour) the surface with the defect
in it. Relief is lit from the top left, as the products are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomaly.drawn.fields import Array, Noise, View, colour, mix, segment

Shape = Callable[[View], Array]


@dataclass(frozen=True)
class DrawnDefect:
    """shape(view) -> distance (h, w); paint(view, distance, surface (h, w, 3)) -> (h, w, 3)."""

    shape: Shape
    paint: Callable[[View, Array, Array], Array]


def _blob(rng: np.random.Generator, centre: Array, radius: float, rough: float) -> Shape:
    """A round shape whose radius has four harmonics, stretched in a random direction."""
    heights = rough * rng.standard_normal(4) / np.arange(2, 6)
    phases, turn = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, np.pi)
    stretch = rng.uniform(1.0, 1.5)

    def shape(view: View) -> Array:
        x, y = (axis - c for axis, c in zip(view.grid, centre))
        u = (x * np.cos(turn) + y * np.sin(turn)) / np.sqrt(stretch)
        v = (y * np.cos(turn) - x * np.sin(turn)) * np.sqrt(stretch)
        angle = np.arctan2(v, u)
        edge = 1 + sum(a * np.cos(k * angle + p) for k, a, p in zip(range(2, 6), heights, phases))
        return np.hypot(u, v) - radius * edge
    return shape


def _line(points: Array, widths: Array) -> Shape:
    """A polyline (n, 2) whose half width goes over widths (n,)."""
    def shape(view: View) -> Array:
        x, y = view.grid
        parts = []
        for a, b, wide, end in zip(points, points[1:], widths, widths[1:]):
            distance, along = segment(x, y, a, b)
            parts.append(distance - (wide + (end - wide) * along))
        return np.min(parts, axis=0)
    return shape


def _walk(rng: np.random.Generator, centre: Array, length: float, points: int, bend: float,
          direction: float) -> Array:
    """points (n, 2) of a way round centre, turning by bend radians (standard deviation) at each."""
    angles = direction + np.cumsum(bend * rng.standard_normal(points - 1))
    steps = length / (points - 1) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    way = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return way - way.mean(axis=0) + centre


def scratch(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """A bright groove with one dark lip, nearly straight."""
    points = _walk(rng, centre, 2.4 * size, 5, 0.12, rng.uniform(0, np.pi))
    width = rng.uniform(0.011, 0.016)
    shape = _line(points, width * np.array([0.6, 1.0, 1.1, 1.0, 0.6]))

    def paint(view: View, d: Array, surface: Array) -> Array:
        """A dark lip, a bright groove."""
        lit = view.cover(d + 0.35 * width)
        surface = mix(surface, surface * 0.45, view.cover(d))
        return mix(surface, np.array([0.94, 0.94, 0.92]), 0.85 * lit)
    return DrawnDefect(shape, paint)


def crack(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """A dark, jagged line that narrows to its ends, with a branch or two."""
    direction, width = rng.uniform(0, np.pi), rng.uniform(0.011, 0.015)
    main = _walk(rng, centre, 2.4 * size, 8, 0.5, direction)
    lines = [_line(main, width * np.array([0.6, 0.9, 1.2, 1.3, 1.3, 1.1, 0.9, 0.6]))]
    for _ in range(rng.integers(1, 3)):
        start = main[rng.integers(2, 6)]
        turn = rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)
        branch = _walk(rng, start, 0.9 * size, 4, 0.5, direction + turn)
        lines.append(_line(branch - branch[0] + start, width * np.array([1.0, 0.9, 0.7, 0.5])))

    def shape(view: View) -> Array:
        return np.min([line(view) for line in lines], axis=0)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """Dark all over."""
        return mix(surface, surface * 0.15, view.cover(d))
    return DrawnDefect(shape, paint)


def cut(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """A slit that gapes in the middle: dark inside, pale lips."""
    direction, gape = rng.uniform(0, np.pi), size * rng.uniform(0.16, 0.24) + 0.006
    points = _walk(rng, centre, 2.0 * size, 7, 0.08, direction)
    shape = _line(points, gape * np.array([0.25, 0.62, 0.9, 1.0, 0.9, 0.62, 0.25]))

    def paint(view: View, d: Array, surface: Array) -> Array:
        """Pale lips, dark inside."""
        surface = mix(surface, 0.45 * surface + 0.5, 0.9 * view.cover(d))
        return mix(surface, np.array([0.05, 0.04, 0.04]), view.cover(d + 0.42 * gape))
    return DrawnDefect(shape, paint)


def hole(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """Punched through: black, its wall lit on the far side."""
    shape = _blob(rng, centre, 0.72 * size, 0.10)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """A dark hole with a lit wall."""
        x, y = (axis - c for axis, c in zip(view.grid, centre))
        wall = np.clip(1 + d / (0.22 * size), 0, 1) * np.clip((x + y) / (0.8 * size), 0, 1)
        inside = np.array([0.05, 0.05, 0.06]) + (0.45 * wall)[..., None] * surface
        return mix(surface, inside, view.cover(d))
    return DrawnDefect(shape, paint)


STAINS = {"red": (0.72, 0.12, 0.12), "blue": (0.10, 0.20, 0.62), "green": (0.14, 0.48, 0.20),
          "black": (0.07, 0.07, 0.08)}


def stain(rng: np.random.Generator, centre: Array, size: float, tint: str) -> DrawnDefect:
    """A dried liquid: the surface shows through, and the edge is the darkest."""
    shape, pigment = _blob(rng, centre, 0.85 * size, 0.22), colour(rng, STAINS[tint], spread=0.03)
    uneven = Noise(rng, 8, 8)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """Pigment over the surface, thickest at the edge."""
        ring = np.exp(-((d + 0.10 * size) / (0.12 * size)) ** 2)
        thick = np.clip(0.74 + 0.14 * ring + 0.04 * uneven(view), 0, 1)
        wet = mix(surface, pigment * (0.75 + 0.4 * surface), thick)
        return mix(surface, wet, view.cover(d))
    return DrawnDefect(shape, paint)


def glue(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """A drop of clear amber: domed, bright where it faces the light, dark at its foot."""
    shape = _blob(rng, centre, 0.8 * size, 0.20)
    amber = colour(rng, (0.88, 0.78, 0.42), spread=0.03)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """Amber, domed, with a bright spot."""
        x, y = (axis - c for axis, c in zip(view.grid, centre))
        inside = np.clip(-d / (0.8 * size), 0, 1)
        dome = np.sqrt(np.clip(inside, 0, 1))
        facing = -(x + y) / (1.1 * size)
        shade = 0.72 + 0.34 * dome + 0.16 * facing
        body = mix(surface, amber, 0.55 + 0.25 * dome) * shade[..., None]
        spot = np.exp(-((x + 0.30 * size) ** 2 + (y + 0.30 * size) ** 2) / (0.16 * size) ** 2)
        drop = mix(body, np.array([1.0, 0.99, 0.95]), 0.9 * spot * dome)
        return mix(surface, drop, view.cover(d))
    return DrawnDefect(shape, paint)


def dent(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """Pressed in: no colour of its own, dark on the side of the light, bright on the other."""
    shape, depth = _blob(rng, centre, 0.85 * size, 0.12), rng.uniform(0.85, 1.1)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """Dark towards the light, bright on the other side."""
        x, y = (axis - c for axis, c in zip(view.grid, centre))
        facing = (x + y) / (1.2 * size)
        bowl = np.clip(-d / (0.30 * size), 0, 1)
        light = 1 + depth * (0.62 * facing * bowl - 0.22 * bowl)
        glint = 0.10 * np.clip(facing, 0, 1) * bowl
        return mix(surface, surface * light[..., None] + glint[..., None], view.cover(d))
    return DrawnDefect(shape, paint)


def burn(rng: np.random.Generator, centre: Array, size: float) -> DrawnDefect:
    """Scorched: a charred core in a brown halo, both ragged."""
    shape, ragged = _blob(rng, centre, 0.9 * size, 0.18), Noise(rng, 14, 14)
    halo = colour(rng, (0.46, 0.24, 0.09), spread=0.03)

    def paint(view: View, d: Array, surface: Array) -> Array:
        """A brown halo, black where it is deep."""
        depth = -d / (0.9 * size) + 0.05 * ragged(view)
        scorched = mix(surface, halo * (0.5 + 0.6 * surface), np.clip(0.55 + 1.2 * depth, 0, 0.95))
        charred = mix(scorched, np.array([0.06, 0.05, 0.05]), np.clip((depth - 0.30) / 0.15, 0, 1))
        return mix(surface, charred, view.cover(d))
    return DrawnDefect(shape, paint)


DEFECTS: dict[str, Callable[..., DrawnDefect]] = {
    f.__name__: f for f in (scratch, crack, cut, hole, stain, glue, dent, burn)}
THIN = ("scratch", "crack", "cut")
