"""What the pictures are made of: a view of the unit square, smooth noise, distances, light.

Everything random is drawn when an object is made, before any pixel is known; a view only reads it.
So a scene is the same at every resolution and through every window.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
# Standard deviation of white noise after a cubic B-spline in both directions: (151 / 315), the mean
# of the squared weights over a cell, once a direction.
SPLINE_STD = 151 / 315


@dataclass(frozen=True)
class View:
    """A square window of the unit square, seen with pixels x pixels; y points down."""

    left: float
    top: float
    side: float
    pixels: int

    @property
    def x(self) -> Array:
        """(pixels,): the centres of the columns."""
        return self.left + self.side * (np.arange(self.pixels) + 0.5) / self.pixels

    @property
    def y(self) -> Array:
        """(pixels,): the centres of the rows."""
        return self.top + self.side * (np.arange(self.pixels) + 0.5) / self.pixels

    @property
    def grid(self) -> tuple[Array, Array]:
        """x and y of every pixel, each (pixels, pixels)."""
        return tuple(np.meshgrid(self.x, self.y))

    def cover(self, distance: Array, softness: float = 0.0) -> Array:
        """Share of a pixel that a shape covers, by its signed distance; both in the square's units.

        softness: width of the edge beyond a pixel and a half.
        """
        width = 1.5 * self.side / self.pixels + softness
        return np.clip(0.5 - distance / width, 0, 1)

    def slope(self, height: Array) -> Array:
        """Brightness of a relief under light from the top left; 0 where it is flat."""
        dy, dx = np.gradient(height, self.side / self.pixels)
        return (dx + dy) / np.sqrt(2)


def _spline(at: Array, cells: int) -> Array:
    """Weights of a uniform cubic B-spline: (n,) in [0, 1] -> (n, cells + 3)."""
    at = np.clip(at, 0, 1) * cells
    first = np.minimum(at.astype(int), cells - 1)
    u = at - first
    weights = np.stack([(1 - u) ** 3, 3 * u ** 3 - 6 * u ** 2 + 4,
                        -3 * u ** 3 + 3 * u ** 2 + 3 * u + 1, u ** 3], axis=1) / 6
    out = np.zeros((len(at), cells + 3))
    out[np.arange(len(at))[:, None], first[:, None] + np.arange(4)] = weights
    return out


class Noise:
    """Smooth noise of mean 0 and standard deviation 1, rows x columns cells on the unit square."""

    def __init__(self, rng: np.random.Generator, rows: int, columns: int):
        self.knots = rng.standard_normal((rows + 3, columns + 3))

    def __call__(self, view: View) -> Array:
        rows, columns = (n - 3 for n in self.knots.shape)
        return _spline(view.y, rows) @ self.knots @ _spline(view.x, columns).T / SPLINE_STD


def mix(a: Array, b: Array, share: Array) -> Array:
    """a where share (h, w) is 0, b where it is 1; a and b are colours, (3,) or (h, w, 3)."""
    share = share[..., None]
    return a * (1 - share) + b * share


def colour(rng: np.random.Generator, *choices: tuple[float, float, float],
           spread: float = 0.04) -> Array:
    """One of the colours, a little off: (3,) in [0, 1]."""
    base = np.array(choices[rng.integers(len(choices))]) + rng.uniform(-spread, spread)
    return np.clip(base + rng.uniform(-spread / 3, spread / 3, 3), 0, 1)


def segment(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Distance of each point to the segment a to b, and where along it the nearest lies, 0 to 1."""
    d = b - a
    along = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-12), 0, 1)
    return np.hypot(x - a[0] - along * d[0], y - a[1] - along * d[1]), along
