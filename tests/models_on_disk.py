"""Small models of the three families on disk, ways to damage them, and how load refuses them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.original_layout import write_original
from benchmarks.random_models import SMALL, write_folder
from ldm.config import TextConfig, UNetConfig, VAEConfig
from weights import load

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"

# benchmarks.random_models.SMALL as weights.checkpoint.FAMILIES has the published sizes.
SMALL_VAE = VAEConfig(channels=(8, 16, 24, 24), norm_groups=4)
SMALL_FAMILIES = {
    16: (UNetConfig(channels=(32, 32, 64, 64), context_dim=16), SMALL_VAE,
         TextConfig(width=16, layers=2, heads=2, mlp_width=48), 64),
    32: (UNetConfig(channels=(32, 32, 64, 64), context_dim=32, heads=(2, 4, 8, 8),
                    linear_projection=True, upcast_attention=True), SMALL_VAE,
         TextConfig(width=32, layers=3, heads=4, mlp_width=96, quick_gelu=False), 96),
}


def edit_json(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **changes}))


def edit_tensors(path, change):
    """Rewrite a safetensors file; change takes the dict of tensors and returns another."""
    save_file(change(load_file(path)), path)


def refusal(path, error=ValueError):
    """The message of the error that load raises: one line."""
    with pytest.raises(error) as caught:
        load(path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_small(folder: Path) -> dict[str, Path]:
    """Family name -> its single file; the folder NAME it was written from lies beside it."""
    files = {}
    for family in SMALL:
        write_folder(family, folder / family.name)
        files[family.name] = folder / f"{family.name} single.safetensors"
        write_original(folder / family.name, files[family.name], family.second)
    return files
