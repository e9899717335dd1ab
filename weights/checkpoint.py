"""What lies on the disk, before any weight is read: sizes, tokenizer, and which tensor goes where.

    FOLDER/unet/{config.json, diffusion_pytorch_model.safetensors}  vae/ the same
    FOLDER/text_encoder/{config.json, model.safetensors}            scheduler/scheduler_config.json
    FOLDER/tokenizer/{vocab.json, merges.txt}  or  tokenizer.json (the second since transformers 5)

or the original single file: all three parts in one, with the published sizes of its family.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.config import SD2_TEXT, SD2_UNET, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm.tokenizer import Tokenizer
from weights import configs, files, layouts
from weights.layouts import Slot
from weights.tokenizers import folder_tokenizer, published_tokenizer

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
         "text_encoder": "model"}
EXPECTED = ("expected a Stable Diffusion 1.x or 2.x folder in diffusers layout, "
            "or the original single file")
# Width of the text encoder -> sizes of the family, for the single file, which states none. The last
# number: side of the latents of a v model; those of SD 2.x were trained at 768 px.
FAMILIES = {768: (UNetConfig(), VAEConfig(), TextConfig(), 64),
            1024: (SD2_UNET, VAEConfig(), SD2_TEXT, 96)}
WIDTH_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"
# Empty tensors by which fine-tunes say that they predict v, and with a noise schedule that ends in
# noise alone. Most of SD 1.x that predict v have both, and three lines of ldm/schedule.py suffice.
MARKERS = ("v_pred", "ztsnr")


@dataclass(frozen=True)
class Source:
    """The file of one part and where each of its keys goes."""

    path: Path
    slots: dict[str, list[Slot]]    # none empty


@dataclass(frozen=True)
class Checkpoint:
    """Everything but the weights."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextConfig
    schedule: ScheduleConfig
    tokenizer: Tokenizer
    sources: dict[str, Source]
    v_sample_size: int          # side of the latents it was trained on, if it predicts v
    prediction: str | None      # what states eps or v, for the user to read; None: nothing does
    remarks: list[str]


def _no_weights(folder: Path, part: str) -> str:
    """What to say of a part without a .safetensors file: what lies there instead."""
    expected = folder / part / f"{PARTS[part]}.safetensors"
    found = sorted((folder / part).iterdir()) if (folder / part).is_dir() else []
    pickles = [path for path in found if path.suffix in files.PICKLES]
    if pickles:
        half = ".fp16" if ".fp16." in pickles[0].name else ""
        return files.pickle_refusal(pickles[0], expected.with_suffix(f"{half}.safetensors"))
    if any(".safetensors.index." in path.name for path in found):
        return (f"{expected}: not found, the weights are in shards; save the model again with "
                f"diffusers' save_pretrained(..., max_shard_size='20GB')")
    names = ", ".join(path.name for path in found[:4]) or "nothing"
    return f"{expected}: not found, only {names}; {EXPECTED}"


def weight_file(folder: Path, part: str) -> Path:
    """The part's .safetensors file; without, the .fp16. one or the only one of another variant."""
    plain = folder / part / f"{PARTS[part]}.safetensors"
    variants = [path for path in plain.parent.glob(f"{PARTS[part]}.*.safetensors")
                if "-of-" not in path.name]     # those are shards
    half = plain.with_suffix(".fp16.safetensors")
    for path in (plain, half, *(variants if len(variants) == 1 else ())):
        files.refuse_dangling(path)
        if path.is_file():
            return path
    raise FileNotFoundError(_no_weights(folder, part))


def check_folder(folder: Path) -> None:
    """Say what a folder is that is not a model's, and what a model is that is not text-to-image."""
    if (folder / "model_index.json").is_file():
        name = configs.read_json(folder / "model_index.json").get("_class_name")
        if re.search(r"XL|3|Flux|Inpaint|Depth|Pix2Pix|Upscale|ControlNet", str(name)):
            raise ValueError(f"{folder}: holds a {name} (model_index.json); {EXPECTED}")
    if (folder / "unet").is_dir():
        return
    if (folder.parent / "unet").is_dir():
        raise ValueError(
            f"{folder}: is one part of a model; give the folder that holds it, {folder.parent}")
    there = sorted(folder.iterdir())
    inside = [path for path in there if (path / "unet").is_dir() or (path / "snapshots").is_dir()]
    if inside:
        raise ValueError(f"{folder}: holds no unet folder but models; give one: "
                         f"{' or '.join(map(str, inside[:4]))}")
    first = next((path for path in there if path.suffix in (".safetensors", *files.PICKLES)), None)
    if first is not None:
        raise ValueError(f"{folder}: holds no unet folder but {first.name}; give that file itself")
    raise FileNotFoundError(f"{folder}: holds no unet folder; {EXPECTED}")


def read_folder(folder: Path) -> Checkpoint:
    """A diffusers folder: sizes from each config.json, names by layouts.FOLDER."""
    check_folder(folder)
    unet = configs.unet_config(folder / "unet/config.json")
    vae = configs.vae_config(folder / "vae/config.json")
    text = configs.text_config(folder / "text_encoder/config.json")
    if unet.context_dim != text.width:
        raise ValueError(f"{folder}: the U-Net reads a context of width {unet.context_dim}, the "
                         f"text encoder gives {text.width}; they belong to different models")
    scheduler = folder / "scheduler/scheduler_config.json"
    schedule = configs.schedule_config(scheduler)
    sources, remarks = {}, []
    for part in PARTS:
        path = weight_file(folder, part)
        if path.name != f"{PARTS[part]}.safetensors":
            remarks.append(f"{path}: taken, because there is no {PARTS[part]}.safetensors")
        with files.open_weights(path, "cpu") as file:
            found = {key: layouts.folder_slots(key, part) for key in file.keys()}
        sources[part] = Source(path, {key: slots for key, slots in found.items() if slots})
    stated = configs.read_json(scheduler)
    if stated.get("beta_schedule") is None:     # diffusers would take betas that no SD has
        remarks.append(f"{scheduler}: states no beta_schedule; the published one is taken")
    none = stated.get("prediction_type") is None
    prediction = str(scheduler) + (" states none, diffusers' default" if none else "")
    return Checkpoint(unet, vae, text, schedule, folder_tokenizer(folder / "tokenizer", text),
                      sources, unet.sample_size, prediction, remarks)


def _sibling_yaml(path: Path) -> tuple[bool, str] | None:
    """(v_prediction, the file) if latent-diffusion's configuration lies beside the single file."""
    for yaml in (path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if yaml.is_file():
            text = yaml.read_text(encoding="utf-8", errors="replace")
            files.refuse_pointer(yaml, text)
            found = re.search(r"(?:^|[{,])\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
            kind = found[1] if found else "eps"     # latent-diffusion's default
            if kind not in ("eps", "v"):
                raise ValueError(f"{yaml}: parameterization is {kind!r}, expected eps or v")
            return kind == "v", str(yaml)
    return None


def read_single_file(path: Path) -> Checkpoint:
    """The original single file: sizes from its family, names by the tables of layouts."""
    with files.open_weights(path, "cpu") as file:
        keys = list(file.keys())
        files.refuse_foreign(path, keys)
        shapes = {k: file.get_slice(k).get_shape() for k in (INPUT_KEY, WIDTH_KEY) if k in keys}
    channels, width = shapes.get(INPUT_KEY, [0, 4])[1:2], shapes.get(WIDTH_KEY, [])[-1:]
    configs.check_in_channels(channels[0] if channels else 0, f"{path}")
    if not width or width[0] not in FAMILIES:
        raise ValueError(f"{path}: the U-Net reads a context of width {width or 'unknown'} (shape "
                         f"of {WIDTH_KEY}); expected {list(FAMILIES)}, Stable Diffusion 1.x or 2.x")
    unet, vae, text, v_sample_size = FAMILIES[width[0]]
    slots: dict[str, dict[str, list[Slot]]] = {part: {} for part in PARTS}
    for key in keys:
        part, found = layouts.single_file_slots(key, text.layers)
        if found and key not in MARKERS:
            slots[part][key] = found
    remarks = []
    if sum(key.startswith("model_ema.") for key in keys) > 100:     # fewer are its counters alone
        # Of a merge or a fine-tune model_ema is often still that of the model it began with.
        remarks.append(f"{path}: holds the U-Net twice, as model.* and averaged as model_ema.*; "
                       f"model.* is taken, as by diffusers, and model_ema.* left out")
    schedule, prediction = ScheduleConfig(zero_snr="ztsnr" in keys), None
    if schedule.zero_snr:
        remarks.append(f"{path}: by its tensor ztsnr the noise schedule ends in noise alone")
    if (yaml := _sibling_yaml(path)) is not None:
        schedule, prediction = replace(schedule, v_prediction=yaml[0]), yaml[1]
    elif "v_pred" in keys:
        schedule, prediction = replace(schedule, v_prediction=True), "its tensor v_pred"
    return Checkpoint(unet, vae, text, schedule, published_tokenizer(text),
                      {part: Source(path, slots[part]) for part in PARTS},
                      v_sample_size, prediction, remarks)


def locate(path: Path) -> Path:
    """What to open: the snapshot of the hub's models--x--y, the folder of a model_index.json.

    Raises ValueError if it is one of several snapshots, and nothing says which.
    """
    if path.name == "model_index.json":
        return path.parent
    top = path.parent if path.name == "snapshots" else path
    if (path / "unet").is_dir() or not (top / "snapshots").is_dir():
        return path
    snapshots = sorted(each for each in (top / "snapshots").iterdir() if each.is_dir())
    main = top / "refs" / "main"
    named = main.read_text(errors="replace").strip() if main.is_file() else None
    found = [each for each in snapshots if each.name == named] or snapshots
    if len(found) != 1:
        give = "give " + " or ".join(map(str, found[:4])) if found else "download the model again"
        raise ValueError(f"{path}: holds {len(found)} snapshots, expected one; {give}")
    return found[0]


def read_checkpoint(path: Path) -> Checkpoint:
    """A diffusers folder or an original single file, whichever the path is."""
    files.refuse_dangling(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {EXPECTED}")
    if path.is_dir():
        return read_folder(path)
    if path.suffix in (".json", ".txt", ".yaml", ".yml", ".md"):
        models = [path.with_suffix(".safetensors"), *path.absolute().parents[:2]]
        model = next((each for each in models if each.is_file() or (each / "unet").is_dir()), None)
        give = f"give {model}" if model else files.ALL_THREE
        raise ValueError(f"{path}: is a text file and holds no weights; {give}")
    return read_single_file(path)
