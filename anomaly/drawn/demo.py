"""The demo data set, drawn in MVTec AD layout; two of its defects the checkpoint has never seen.

    FOLDER/PRODUCT/train/good/000.png
    FOLDER/PRODUCT/test/DEFECT/000.png      FOLDER/PRODUCT/ground_truth/DEFECT/000_mask.png
"""

import os
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from anomaly.drawn.fields import View
from anomaly.drawn.scenes import draw_scene
from anomaly.progress import Report, each, silent

# A combination held out of pretraining, a thin defect, and the kind that pretraining has never
# seen.
DEMO = (("leather", "glue"), ("metal", "scratch"), ("wood", "burn"))
DEFECTIVE, NORMALS, PIXELS = 36, 40, 256
FRAME = View(0.0, 0.0, 1.0, PIXELS)


def demo_picture(product: str, defect: str | None, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph (h, w, 3) uint8 and mask (h, w) bool, `number` of its kind."""
    rng = np.random.default_rng([crc32(f"demo/{product}/{defect}".encode()), number])
    return draw_scene(rng, product, defect).render(FRAME)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def demo_data(folder: Path, report: Report = silent) -> Path:
    """The folder, written if it is not there."""
    if folder.exists():
        return folder
    part = folder.with_name(f".{folder.name}-{os.getpid()}")
    pictures = [(product, kind, i) for product, defect in DEMO
                for kind, count in ((defect, DEFECTIVE), (None, NORMALS)) for i in range(count)]
    for product, defect, i in each(pictures, "drawing the demo photographs", len(pictures), report):
        image, mask = demo_picture(product, defect, i)
        root = part / product
        _save(root / (f"test/{defect}" if defect else "train/good") / f"{i:03}.png", image)
        if defect:
            _save(root / f"ground_truth/{defect}/{i:03}_mask.png", mask.astype(np.uint8) * 255)
    (part / ".drawn").touch()       # the folder is this project's own
    part.rename(folder)
    return folder
