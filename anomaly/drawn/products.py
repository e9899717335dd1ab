"""The products: six surfaces and two objects, each with a random look, seen in even light.

Objects lie as in a fixture: a few degrees and pixels of play, not any way round. A product is made
from a generator and painted through a view: colour (h, w, 3) in [0, 1] and the share of each pixel
that is product rather than background (h, w). Features are 1/30 of the frame or larger: four pixels
of a picture of 128, which is what a small VAE with a downsampling of 4 can carry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomaly.drawn.fields import Array, Noise, View, colour, mix


@dataclass(frozen=True)
class Product:
    """paint(view) -> colour, solid; spot(rng) -> (x, y), a place on the product."""

    paint: Callable[[View], tuple[Array, Array]]
    spot: Callable[[np.random.Generator], Array]


def _anywhere(rng: np.random.Generator) -> Array:
    return rng.uniform(0.14, 0.86, 2)


def _surface(paint: Callable[[View], Array]) -> Product:
    """A product that fills the picture."""
    return Product(lambda view: (paint(view), np.ones((view.pixels, view.pixels))), _anywhere)


def metal(rng: np.random.Generator) -> Product:
    """Brushed steel: fine lines along x under a broad sheen."""
    base = colour(rng, (0.60, 0.62, 0.65), (0.52, 0.54, 0.58), (0.66, 0.63, 0.58))
    lines, sheen = Noise(rng, 34, 2), Noise(rng, 1, 3)

    def paint(view: View) -> Array:
        return base + (0.045 * lines(view) + 0.05 * sheen(view))[..., None]
    return _surface(paint)


def wood(rng: np.random.Generator) -> Product:
    """Planed wood: bent growth rings along x and a fine grain."""
    light = colour(rng, (0.78, 0.60, 0.40), (0.70, 0.50, 0.32), (0.82, 0.68, 0.50))
    dark = light * np.array([0.72, 0.66, 0.60])
    rings, bend, grain = rng.uniform(5, 8), Noise(rng, 3, 2), Noise(rng, 28, 3)
    phase = rng.uniform(0, 1)

    def paint(view: View) -> Array:
        depth = rings * (view.grid[1] + 0.07 * bend(view)) + phase
        early = (depth % 1.0)       # a ring darkens slowly and ends at once
        ring = early ** 2 * np.clip((1 - early) / 0.15, 0, 1)
        return mix(light, dark, np.clip(1.1 * ring + 0.10 * grain(view), 0, 1))
    return _surface(paint)


def fabric(rng: np.random.Generator) -> Product:
    """Plain weave: threads over and under each other, 12 to the frame."""
    base = colour(rng, (0.30, 0.38, 0.55), (0.62, 0.58, 0.50), (0.50, 0.24, 0.26),
                  (0.32, 0.46, 0.38))
    shade = Noise(rng, 3, 3)
    offset = rng.uniform(0, 1, 2)

    def paint(view: View) -> Array:
        x, y = (12 * axis + o for axis, o in zip(view.grid, offset))
        over = np.cos(np.pi * x) * np.cos(np.pi * y)        # which thread lies on top
        relief = np.where(over > 0, np.abs(np.cos(np.pi * x)), np.abs(np.cos(np.pi * y)))
        return base * (0.62 + 0.42 * relief + 0.05 * shade(view))[..., None]
    return _surface(paint)


def leather(rng: np.random.Generator) -> Product:
    """Grained leather: pebbles between creases, which are the zeros of two noises."""
    base = colour(rng, (0.42, 0.26, 0.16), (0.55, 0.36, 0.22), (0.22, 0.19, 0.18))
    noises, shade = [Noise(rng, 13, 13), Noise(rng, 13, 13)], Noise(rng, 2, 2)

    def paint(view: View) -> Array:
        crease = np.minimum(*(np.abs(noise(view)) for noise in noises))
        pebble = np.sqrt(np.clip(crease / 0.6, 0, 1))
        return base * (0.70 + 0.42 * pebble + 0.05 * shade(view))[..., None]
    return _surface(paint)


def tile(rng: np.random.Generator) -> Product:
    """Glazed stoneware: pale, with soft clouds and grey veins."""
    base = colour(rng, (0.86, 0.85, 0.82), (0.80, 0.83, 0.85), (0.87, 0.82, 0.74))
    veins, clouds, strength = Noise(rng, 4, 4), Noise(rng, 6, 6), Noise(rng, 3, 3)

    def paint(view: View) -> Array:
        vein = np.exp(-(veins(view) / 0.09) ** 2) * np.clip(0.5 + 0.5 * strength(view), 0, 1)
        return mix(base * (1 + 0.02 * clouds(view))[..., None], base * 0.66, 0.8 * vein)
    return _surface(paint)


def plastic(rng: np.random.Generator) -> Product:
    """A moulded cover: round studs on a square lattice, lit from the top left."""
    base = colour(rng, (0.20, 0.22, 0.25), (0.16, 0.28, 0.42), (0.34, 0.35, 0.36))
    shade, offset = Noise(rng, 2, 2), rng.uniform(0, 1, 2)

    def paint(view: View) -> Array:
        x, y = ((9 * axis + o) % 1.0 - 0.5 for axis, o in zip(view.grid, offset))
        stud = np.exp(-((x ** 2 + y ** 2) / 0.06) ** 2)
        lit = -(x + y) * stud
        return base * (0.9 + 0.25 * stud + 0.08 * shade(view))[..., None] + (0.55 * lit)[..., None]
    return _surface(paint)


def _conveyor(rng: np.random.Generator) -> Callable[[View], Array]:
    """The dark, soft background of the objects."""
    base, shade = colour(rng, (0.12, 0.13, 0.14), (0.10, 0.12, 0.17)), Noise(rng, 5, 5)
    return lambda view: base * (1 + 0.10 * shade(view))[..., None]


def nut(rng: np.random.Generator) -> Product:
    """A hexagon nut from above: six sides, a chamfer, a threaded hole."""
    base = colour(rng, (0.68, 0.66, 0.62), (0.58, 0.60, 0.64), (0.72, 0.62, 0.42))
    centre, turn = rng.uniform(0.47, 0.53, 2), rng.uniform(-0.12, 0.12)
    reach, hole = rng.uniform(0.34, 0.38), rng.uniform(0.15, 0.18)
    lines, back = Noise(rng, 24, 5), _conveyor(rng)

    def paint(view: View) -> tuple[Array, Array]:
        """Face, chamfer and thread, each by its distance from the axis."""
        x, y = (axis - c for axis, c in zip(view.grid, centre))
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        side = (angle - turn + np.pi / 6) % (np.pi / 3) - np.pi / 6
        outside = radius * np.cos(side) - reach
        solid = view.cover(np.maximum(outside, hole - radius))
        # The chamfer is a cone: its brightness follows the direction it faces.
        facing = np.cos(angle + 3 * np.pi / 4)
        chamfer = view.cover(reach - 0.045 - radius, 0.01)
        thread = view.cover(radius - hole - 0.035, 0.01)
        light = 1 + 0.28 * facing * chamfer - 0.38 * facing * thread - 0.12 * thread
        face = base * (0.95 + 0.035 * lines(view))[..., None] * light[..., None]
        return mix(back(view), face, solid), solid

    def spot(rng: np.random.Generator) -> Array:
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(hole + 0.05, reach - 0.05)
        return centre + radius * np.array([np.cos(angle), np.sin(angle)])
    return Product(paint, spot)


def pill(rng: np.random.Generator) -> Product:
    """A capsule of two colours, lying along x."""
    caps = [colour(rng, (0.80, 0.22, 0.18), (0.20, 0.42, 0.72), (0.24, 0.56, 0.36)),
            colour(rng, (0.90, 0.88, 0.82), (0.90, 0.78, 0.42))]
    centre, turn = rng.uniform(0.47, 0.53, 2), rng.uniform(-0.25, 0.25)
    length, radius = rng.uniform(0.21, 0.25), rng.uniform(0.16, 0.19)
    axis, back = np.array([np.cos(turn), np.sin(turn)]), _conveyor(rng)

    def paint(view: View) -> tuple[Array, Array]:
        """A round body over the background, darker where it turns away from the lamp."""
        x, y = (grid - c for grid, c in zip(view.grid, centre))
        along, across = x * axis[0] + y * axis[1], y * axis[0] - x * axis[1]
        beyond = along - np.clip(along, -length, length)
        distance = np.hypot(beyond, across)
        solid = view.cover(distance - radius)
        height = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0.02, 1))
        # The light's direction in the plane, on the round flank.
        away = across * (axis[0] - axis[1]) + beyond * (axis[0] + axis[1])
        flank = -away / (radius * np.sqrt(2))
        gloss = np.clip(flank + 0.75 * height - 0.80, 0, 1)
        shade = 0.62 + 0.34 * height + 0.22 * flank + 0.30 * gloss
        seam = 1 - 0.18 * np.exp(-(along / 0.012) ** 2)
        body = mix(caps[0], caps[1], view.cover(along)) * (shade * seam)[..., None]
        return mix(back(view), body, solid), solid

    def spot(rng: np.random.Generator) -> Array:
        along, across = rng.uniform(-length, length), rng.uniform(-0.5, 0.5) * radius
        return centre + along * axis + across * np.array([-axis[1], axis[0]])
    return Product(paint, spot)


PRODUCTS: dict[str, Callable[[np.random.Generator], Product]] = {
    f.__name__: f for f in (metal, wood, fabric, leather, tile, plastic, nut, pill)}
OBJECTS = ("nut", "pill")       # a shape on a background; the others fill the picture
