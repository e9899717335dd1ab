"""Pictures with masks and captions: what the embedded checkpoint is trained on.

    a photo of wood                                 normal
    a photo of wood with large red stain top left   the defect, its size and place in the picture
    a photo of mask with large stain top left       the mask itself, white on black

The combinations of HELD_OUT and the kind UNSEEN are in none of them: they are left to the demo.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomaly.crop import MARGIN
from anomaly.drawn.defects import DEFECTS, STAINS, DrawnDefect
from anomaly.drawn.fields import Array, Noise, View
from anomaly.drawn.products import OBJECTS, PRODUCTS, Product

HELD_OUT = {("leather", "glue"), ("metal", "stain"), ("pill", "crack")}
UNSEEN = "burn"
# A defect lies near the middle of the frame or of one of its quarters: of SPOTS places on the
# product the one that is nearest. Places anywhere would leave a word like "top left" with too
# little to say for a small model to learn it.
PLACES, SPOTS = ((0.5, 0.5), (0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)), 24
SIZES = (0.07, 0.22)    # of a defect, about half its extent, in frames; log-uniform
# Shares of the picture's side above which a defect's longer side is "large"; "huge": a crop.
LARGE, HUGE = 0.36, 0.6
# The centroid that far from the centre in x and in y: a corner's words; nearer in both: "center".
SIDE, MIDDLE = 0.08, 0.10
# Shares of normals and of masks among all, of crops among the defects.
NORMAL, MASKS, CLOSE = 0.20, 0.13, 0.5
CLOSE_UP = (1.15, 2.0)  # side of a crop over the longer side of the mask
# Shares of the captions that leave words out, so that fewer of them still mean something. A mask
# keeps its name.
NO_WORDS, NO_PLACE, NO_PRODUCT = 0.10, 0.10, 0.08
WHOLE = View(0.0, 0.0, 1.0, 64)


@dataclass(frozen=True)
class Scene:
    """A product in its light, with one defect or none; all of it drawn, nothing rendered."""

    product: Product
    light: Callable[[View], Array]
    defect: DrawnDefect | None
    tint: str               # the colour word of a stain, else ""

    def mask(self, view: View) -> Array:
        """(h, w) bool: where the defect is."""
        return self.render(view)[1]

    def render(self, view: View) -> tuple[Array, Array]:
        """The photograph (h, w, 3) uint8 and its mask (h, w) bool."""
        surface, solid = self.product.paint(view)
        image, mask = surface, np.zeros(solid.shape, dtype=bool)
        if self.defect is not None:
            distance = self.defect.shape(view)
            painted = self.defect.paint(view, distance, surface)
            image = surface + solid[..., None] * (painted - surface)
            mask = (distance < 0) & (solid > 0.5)
        lit = 255 * image * self.light(view)[..., None] + 0.5
        return np.clip(lit, 0, 255).astype(np.uint8), mask


def draw_scene(rng: np.random.Generator, product: str, defect: str | None) -> Scene:
    """A scene of the named product, with the named defect on it or with none."""
    made = PRODUCTS[product](rng)
    # The lamp is at the top left.
    cloud, (tilt_x, tilt_y) = Noise(rng, 1, 1), rng.uniform(-0.34, -0.10, 2)
    brightness = rng.uniform(0.88, 1.06)

    def light(view: View) -> Array:
        x, y = view.grid
        return brightness * (1 + tilt_x * (x - 0.5) + tilt_y * (y - 0.5) + 0.03 * cloud(view))

    if defect is None:
        return Scene(made, light, None, "")
    size, goal = np.exp(rng.uniform(*np.log(SIZES))), PLACES[rng.integers(len(PLACES))]
    centre = min((made.spot(rng) for _ in range(SPOTS)), key=lambda spot: np.hypot(*(spot - goal)))
    if defect != "stain":
        return Scene(made, light, DEFECTS[defect](rng, centre, size), "")
    tint = str(rng.choice(list(STAINS)))
    return Scene(made, light, DEFECTS["stain"](rng, centre, size, tint), tint)


def extent(mask: Array) -> tuple[float, float, float]:
    """Centre (x, y) and longer side of the box of a mask, not empty, in shares of the picture."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    n = mask.shape[0]
    return ((columns[0] + columns[-1] + 1) / (2 * n), (rows[0] + rows[-1] + 1) / (2 * n),
            (max(columns[-1] - columns[0], rows[-1] - rows[0]) + 1) / n)


def close_up(mask: Array, pixels: int, margin: float, shift: Array) -> View:
    """A window of margin times the longer side of a mask's box, all of it inside, in the frame.

    shift (x, y) from -0.5 to 0.5: from the box at the window's right and bottom to the left and
    top; 0: in its middle.
    """
    x, y, longer = extent(mask)
    side = min(1.0, longer * margin)
    left, top = np.clip(np.array([x, y]) + shift * (side - longer) - side / 2, 0, 1 - side)
    return View(float(left), float(top), float(side), pixels)


def place(mask: Array) -> str:
    """"top left" and the like, "center", or "" where the mask's centroid is between them."""
    rows, columns = np.nonzero(mask)
    y, x = (axis.mean() / mask.shape[0] - 0.5 for axis in (rows + 0.5, columns + 0.5))
    if max(abs(x), abs(y)) < MIDDLE:
        return "center"
    if min(abs(x), abs(y)) < SIDE:
        return ""
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def describe(product: str, defect: str, tint: str, mask: Array, where: bool = True) -> str:
    """The caption of a picture with a defect."""
    longer = extent(mask)[2]
    size = "huge" if longer > HUGE else "large" if longer > LARGE else "small"
    words = ["a photo of", product, "with", size, tint, defect, place(mask) if where else ""]
    return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Picture:
    """image (h, w, 3) uint8, mask (h, w) bool, caption."""

    image: Array
    mask: Array
    caption: str


def pairs() -> list[tuple[str, str]]:
    """Every (product, defect) that the checkpoint may see."""
    return [(p, d) for p in PRODUCTS for d in DEFECTS if d != UNSEEN and (p, d) not in HELD_OUT]


# An object's shape takes longer to learn than a texture: objects are drawn twice as often.
OFTEN = [*PRODUCTS, *OBJECTS]
KNOWN = [pair for product in OFTEN for pair in pairs() if pair[0] == product]


def draw_picture(seed: int, number: int, pixels: int) -> Picture:
    """Picture `number` of the pretraining set of a seed."""
    rng = np.random.default_rng([seed, number])
    kind, words = rng.uniform(), rng.uniform()
    if kind < NORMAL:
        product = str(rng.choice(OFTEN))
        image, mask = draw_scene(rng, product, None).render(View(0.0, 0.0, 1.0, pixels))
        return Picture(image, mask, "" if words < NO_WORDS else f"a photo of {product}")
    product, defect = KNOWN[rng.integers(len(KNOWN))]
    scene = draw_scene(rng, product, defect)
    view, whole = View(0.0, 0.0, 1.0, pixels), scene.mask(WHOLE)
    if rng.uniform() < CLOSE and whole.any():
        margin, shift = rng.uniform(*CLOSE_UP), rng.uniform(-0.5, 0.5, 2)
        if kind < NORMAL + MASKS:       # as the mask model frames the masks it learns
            margin, shift = MARGIN, np.zeros(2)
        view = close_up(whole, pixels, margin, shift)
    image, mask = scene.render(view)
    if not mask.any():      # a thin defect between the pixels, or beside an object's edge
        return draw_picture(seed, number + (1 << 32), pixels)
    tint = scene.tint
    if kind < NORMAL + MASKS:
        product, tint = "mask", ""
        image = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    caption = describe(product, defect, tint, mask, where=words >= NO_WORDS + NO_PLACE)
    if words < NO_WORDS:
        caption = ""
    elif words > 1 - NO_PRODUCT and product != "mask":
        caption = caption.replace(f"a photo of {product} with ", "a photo of ")
    return Picture(image, mask, caption)
