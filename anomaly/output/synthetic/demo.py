"""The demo data set: drawn photographs in MVTec AD layout, two of whose defects the embedded checkpoint has not seen.

    FOLDER/PRODUCT/train/good/000.png
    FOLDER/PRODUCT/test/DEFECT/000.png      FOLDER/PRODUCT/ground_truth/DEFECT/000_mask.png
"""

import shutil
from pathlib import Path
from zlib import crc32

import numpy as np

from anomaly.output.console import Progress
from anomaly.output.files import write_image
from anomaly.output.synthetic.fields import View
from anomaly.output.synthetic.pictures import draw_scene

# A combination held out of pretraining, a thin defect, and the kind that pretraining has never seen.
DEMO = (("leather", "glue"), ("metal", "scratch"), ("wood", "burn"))
DEFECTIVE, NORMALS, PIXELS = 36, 40, 256
FRAME = View(0.0, 0.0, 1.0, PIXELS)


def demo_picture(product: str, defect: str | None, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph (h, w, 3) uint8 and mask (h, w) bool, `number` of its kind."""
    rng = np.random.default_rng([crc32(f"demo/{product}/{defect}".encode()), number])
    return draw_scene(rng, product, defect).render(FRAME)


def demo_data(folder: Path) -> Path:
    """The folder, written if it is not there."""
    if folder.exists():
        return folder
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with Progress("drawing the demo photographs", len(DEMO) * (DEFECTIVE + NORMALS)) as progress:
        for product, defect in DEMO:
            for i in range(DEFECTIVE):
                image, mask = demo_picture(product, defect, i)
                write_image(part / product / f"test/{defect}/{i:03}.png", image)
                write_image(part / product / f"ground_truth/{defect}/{i:03}_mask.png", mask.astype(np.uint8) * 255)
                progress.step()
            for i in range(NORMALS):
                write_image(part / product / f"train/good/{i:03}.png", demo_picture(product, None, i)[0])
                progress.step()
    part.rename(folder)
    return folder
