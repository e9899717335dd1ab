"""bench.py speed: this CPU, with Stable Diffusion's sizes, and the demo."""

import torch

from benchmarks.measuring import Bench, Sizes, markdown
from benchmarks.rows import TABLES

CPU = Sizes(matrix=2048, repeats=3, seconds=2, dtypes=(torch.float32, torch.bfloat16),
            unet=((256, 1), (256, 4)), pairs=((256, 1, 20, 1.0), (512, 1, 2, 2.0)),
            training=((256, 1), (512, 1)), training_steps=1)


def main(sizes: Sizes = CPU) -> None:
    """Print each table when it is done."""
    for table in TABLES:
        title = (table.__doc__ or "").splitlines()[0]
        print(f"{title}\n\n{markdown(list(table(Bench('cpu', sizes))))}", flush=True)
