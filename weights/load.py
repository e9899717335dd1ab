"""Load a published Stable Diffusion 1 or 2: strict, memory-mapped, never a pickle.

The modules are built on the meta device and receive the file's tensors one by one, each cast as it
comes, so that no memory is spent on random initial weights or on a second copy of the file.
"""

import hashlib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.model import StableDiffusion
from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE
from weights.checkpoint import PARTS, Checkpoint, Source, locate, read_checkpoint, weight_file
from weights.files import open_weights
from weights.layouts import LEFTOVER

FLOATS = ("F64", "F32", "F16", "BF16")
TINY = "tiny"       # the word for the embedded checkpoint; a Path("tiny") is a folder of that name
TINY_REMARK = ("tiny: the checkpoint that comes with the project; it has only seen pictures that "
               "the project draws, for photographs train with --weights a Stable Diffusion")


def _located(path: str | Path) -> Path:
    return Path(__file__).parent / TINY if path == TINY else locate(Path(path))


def fingerprint(path: str | Path) -> str:
    """sha256 over the weight files: tells whether a run and a checkpoint belong together."""
    path = _located(path)
    files = [path] if path.is_file() else [weight_file(path, part) for part in PARTS]
    digest = hashlib.sha256()
    for name in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more" if keys[1:] else ""
    return keys[0].encode("unicode_escape").decode() + more     # one line, whatever the file says


def _fill(module: nn.Module, source: Source, device: str, dtype: torch.dtype) -> list[str]:
    """Give a meta-device module its tensors: every one once, finite, no shape made to fit.

    Returns the remark on what was left out, if anything was.
    """
    path, expected = source.path, {key: tuple(t.shape) for key, t in module.state_dict().items()}
    loaded, extra, left_out = dict[str, Tensor](), list[str](), list[str]()
    with open_weights(path, device) as file:
        for key, slots in source.slots.items():
            if any(slot.name not in expected for slot in slots):
                (left_out if LEFTOVER.fullmatch(key) else extra).append(key)
                continue
            kind = file.get_slice(key).get_dtype()
            if kind not in FLOATS:
                raise ValueError(f"{path}: {key} is {kind}, expected one of {', '.join(FLOATS)}; "
                                 f"quantised weights are not supported, use the published ones")
            whole = file.get_tensor(key)
            for slot in slots:
                tensor, shape = slot.take(whole), expected[slot.name]
                if tensor is None or tuple(tensor.shape) != shape:
                    raise ValueError(
                        f"{path}: {key} has shape {tuple(whole.shape)}, which does not give "
                        f"{slot.name} of shape {shape}; it belongs to another model")
                if slot.name in loaded:
                    raise ValueError(f"{path}: {key} has two names; expected published weights")
                loaded[slot.name] = tensor.to(dtype)
            # The two ends: as fast as memory is read, without a copy, which isfinite() makes.
            if not torch.stack(whole.aminmax()).isfinite().all():
                raise ValueError(f"{path}: the checkpoint's weights are not finite (NaN or inf in "
                                 f"{key}); download it again, or use another one")
    missing = [key for key in expected if key not in loaded]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} tensors missing (first: {missing[:2]}), {len(extra)} "
            f"unexpected (first: {extra[:2]}); expected a whole {type(module).__name__} of "
            f"Stable Diffusion 1.x or 2.x, download the published file")
    if extra:
        raise ValueError(f"{path}: extra tensor {_names(extra)}; save the file without it")
    module.load_state_dict(loaded, strict=True, assign=True)
    return [f"{path}: {_names(left_out)} left out, no weights of its parts"] if left_out else []


@torch.no_grad()
def _predicts_v(unet: UNet, path: Path, device: str, dtype: torch.dtype) -> bool:
    """Ask the U-Net itself: at the last timestep an eps model returns its input, a v model not.

    The probe of AUTOMATIC1111's web UI: x = 0.5, context = 0.5, t = 999; v if the mean of out - x
    is below -1.
    """
    x = torch.full((1, 4, 8, 8), 0.5, device=device, dtype=dtype)
    context = torch.full((1, 2, unet.config.context_dim), 0.5, device=device, dtype=dtype)
    out = unet(x, torch.tensor([999], device=device), context)
    if not out.isfinite().all():
        raise ValueError(f"{path}: nothing says whether it predicts eps or v, and the U-Net's "
                         f"answer is not finite; give --prediction-type eps or v")
    return float((out - x).float().mean()) < -1


def _prediction(asked: str, found: Checkpoint, unet: UNet, device: str,
                dtype: torch.dtype) -> tuple[bool, str]:
    """(v_prediction, what decided): what was given, what a file states, or what the U-Net does."""
    if asked != "auto":
        return asked == "v", "as given"
    if found.prediction is not None:
        return found.schedule.v_prediction, found.prediction
    v = _predicts_v(unet, found.sources["unet"].path, device, dtype)
    return v, "no file beside it says so, its output for a flat latent does"


def load(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
         prediction_type: str = "auto") -> StableDiffusion:
    """A diffusers folder, an original single file or TINY -> StableDiffusion on device, in dtype.

    prediction_type: "eps", "v", or "auto": scheduler_config.json, else a .yaml beside the single
    file or a tensor v_pred in it, else the U-Net's own answer. The remarks of the result say what
    was decided and by what. Raises FileNotFoundError or ValueError, naming the file, for what is
    missing, damaged or another model.
    """
    if prediction_type not in ("auto", "eps", "v"):
        raise ValueError(f"prediction_type: found {prediction_type!r}, expected auto, eps or v")
    remarks = [TINY_REMARK] if path == TINY else []
    located, device = _located(path), str(device)
    source = TINY if path == TINY else str(located.resolve())
    found = read_checkpoint(located)
    with torch.device("meta"):
        unet, vae, text = UNet(found.unet), VAE(found.vae), TextEncoder(found.text_encoder)
    for name, module in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        remarks += _fill(module, found.sources[name], device, dtype)
    if device == "cpu":     # a tenth to a third faster; the U-Net is not
        vae.to(device, memory_format=torch.channels_last)   # type: ignore[call-overload]
    v_prediction, rule = _prediction(prediction_type, found, unet, device, dtype)
    if found.schedule.zero_snr and not v_prediction:
        raise ValueError(f"{located}: the noise schedule ends in noise alone (zero terminal SNR), "
                         f"but the prediction type is eps ({rule}), which says nothing of a "
                         f"picture there; expected v, give --prediction-type v if it is that")
    if v_prediction:
        unet.config = replace(unet.config, sample_size=found.v_sample_size)
    schedule = Schedule(replace(found.schedule, v_prediction=v_prediction))
    remarks += [*found.remarks, f"prediction type {'v' if v_prediction else 'eps'}: {rule}"]
    return StableDiffusion(found.tokenizer, text, unet, vae, schedule, tuple(remarks), source,
                           cache(partial(fingerprint, source)))
