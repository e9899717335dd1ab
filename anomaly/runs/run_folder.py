"""The folder of a training run: what was asked, what was learned, and what resuming needs.

    RUN/config.json                               options, versions, checkpoint hash, training files
                                                  (a path in RUN is relative to it, so RUN can move)
    RUN/loss.csv                                  a row a step
    RUN/embeddings/OBJECT-DEFECT.safetensors      e_a under "<object-defect>": diffusers opens it
    RUN/mask_embeddings/OBJECT-DEFECT.safetensors e_m under "<object-defect-mask>"
    RUN/spatial_encoder.safetensors               E
    RUN/gate.{json,safetensors}                   each defect's gate: bounds, what they rest on
    RUN/latent_to_rgb.safetensors                 the (4, 3) map of the re-weighting
    RUN/masks/OBJECT-DEFECT/00000.png             the training masks as they were read: painting
                                                  needs no training photograph
    RUN/state/{image,mask}.safetensors            parameters, Adam's moments; metadata: their step
    RUN/state/add/OBJECT-DEFECT/                  a run of its own: what --add has not joined yet
    RUN/preview.jpg                               what to judge it by
    RUN/previews/OBJECT-DEFECT.jpg                and the defects that --add has joined to it
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly import processes
from anomaly.dataset import Defect, check_names, read_example_mask
from anomaly.embedding import AnomalyEmbedding, defects_in
from anomaly.files.atomic_files import misfit, read_json, write_image, write_json, write_tensors
from anomaly.files.holding import refuse_foreign
from anomaly.files.mask_reading import read_mask
from anomaly.files.names import same_path
from anomaly.prompt import PROMPT
from anomaly.runs.guidance import Strength
from anomaly.runs.run_tensors import fitted, read_tensors, step_of
from anomaly.training_files import check_same, described, hashes
from ldm.model import StableDiffusion

# What of config.json is read again. None: older versions did not write it.
COUNT, TEXT = range(1, 2 ** 31), (str, None)
RUN = {
    "size": COUNT, "weights_sha256": str, "prediction_type": ("eps", "v"),
    "options": {
        "weights": str, "steps": COUNT, "batch_size": COUNT, "size": (COUNT, None),
        "seed": range(10 ** 100), "no_flip": bool, "no_masks": bool,
        "prediction_type": ("auto", "eps", "v", None), "split": ("third", "all", None),
        "dtype": ("auto", "fp32", "bf16", "fp16", None), "data": TEXT, "images": TEXT,
        "masks": TEXT, "name": TEXT, "only": TEXT, "processes": (COUNT, None),
        "added": ([str], None), "no_masked_loss": (bool, None), "no_spatial": (bool, None)},
    "defects": [{"object": str, "defect": str, "normals": TEXT, "train": [{
        "image": str, "mask": TEXT, "masks": ([str], None), "sha256": ([str], None)}]}]}
POINT = [float, float]
STRENGTH = {"guidance": float, "goal": float, "line": ([POINT, POINT], [POINT, POINT, POINT])}


@dataclass(frozen=True)
class Run:
    """A run's folder and its config.json."""

    folder: Path
    config: dict[str, Any]

    @property
    def preview(self) -> Path:
        """The picture to judge it by."""
        return self.folder / "preview.jpg"

    @property
    def defects(self) -> list[Defect]:
        """What the run learned, with its training files."""
        return described(self.folder, self.config["defects"])

    @property
    def hashes(self) -> dict[Path, str]:
        """sha256 of each training file; of none in runs of version 0.1."""
        return hashes(self.folder, self.config["defects"])


def read_run(folder: Path) -> Run:
    """The run in a folder; FileNotFoundError or ValueError if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        what = "no config.json in it" if folder.is_dir() else \
            "it is a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: not a training run ({what}); train one first: "
                                f"train_embed.py --out {folder}, without --resume")
    remedy = "restore it, or train again into another folder"
    run = Run(folder, read_json(path, RUN, remedy))
    try:
        check_names(run.defects)
    except (ValueError, KeyError) as err:       # KeyError: an example without a mask
        raise ValueError(f"{path}: not a run's ({err}); {remedy}") from None
    return run


def check_out(folder: Path, resume: bool) -> None:
    """FileExistsError or FileNotFoundError if a run is there without resume, or none with it."""
    if resume:
        read_run(folder)
        return
    if not (folder / "config.json").is_file():
        own = {"demo"} if (folder / "demo/.drawn").is_file() else set()
        refuse_foreign(folder, {"config.json.part", *own})
        return
    read_run(folder)
    if any((folder / learned).exists() for learned in ("state", "embeddings")):
        raise FileExistsError(f"{folder}: holds a training run already; continue it with --resume "
                              f"or choose another --out")


def _learned_steps(run: Run) -> int:
    """Steps a defect that the saved states have behind them."""
    states = ((path, *read_tensors(path)) for path in run.folder.glob("state/*.safetensors"))
    return max((-(-step_of(path, metadata) // defects_in(tensors))
                for path, tensors, metadata in states), default=0)


def start_run(folder: Path, config: dict[str, Any], resume: bool) -> Run:
    """Create the run, or find the one to resume; config as it is to be written.

    Raises ValueError if the one to resume was made with other options, files or model. --steps may
    be any that is not learned yet, the checkpoint may have moved, and other processes may share the
    same batch.
    """
    if not resume:
        write_json(folder / "config.json", config)
        return Run(folder, config)
    old = read_run(folder)
    check_weights(old, config["options"]["weights"], config["weights_sha256"])
    before = old.config["options"]
    options = {name: value for name, value in config["options"].items()
               if name not in ("batch_size", "processes")}      # however many share it now
    if (batch := processes.batch_of(config["options"])) != processes.batch_of(before):
        raise ValueError(f"--batch-size: {batch} views a step in all (processes: "
                         f"{processes.count()}), but the run in {folder} was made with "
                         f"{processes.batch_of(before)} (processes: {before.get('processes', 1)}); "
                         f"give as many, or another --out")
    for name, value in options.items():
        texts = [str(folder / each) if isinstance(each, str) else each
                 for each in (value, before.get(name, value))]      # paths may be relative to it
        if name not in ("steps", "weights") and not same_path(*texts):
            found, made = ("none" if v is None else v for v in (value, before[name]))
            raise ValueError(f"--{name.replace('_', '-')}: {found}, but the run in {folder} was "
                             f"made with {made}; resume with that or train into another --out")
    if config["prediction_type"] != old.config["prediction_type"]:
        raise ValueError(f"--prediction-type: found to be {config['prediction_type']}, but the run "
                         f"in {folder} was made with {old.config['prediction_type']}; give that")
    check_same(folder, old.config["defects"], config["defects"])
    if config["options"]["steps"] < (learned := _learned_steps(old)):
        raise ValueError(f"--steps: {config['options']['steps']}, but the run in {folder} has "
                         f"learned {learned}; --resume takes as many or more")
    config = {**config, "options": {**before, **options}}
    write_json(folder / "config.json", config)
    return Run(folder, config)


def save_module(run: Run, name: str, tensors: dict[str, Tensor], **more: str) -> None:
    """RUN/name.safetensors: the spatial encoder, the latent-to-RGB map, or a defect's vectors."""
    write_tensors(run.folder / f"{name}.safetensors", tensors, {
        "format": "pt", "prompt": PROMPT, "steps": str(run.config["options"]["steps"]),
        "weights_sha256": run.config["weights_sha256"], **more})


def save_masks(run: Run, defects: list[Defect]) -> None:
    """RUN/masks: the training masks, 0 and 255."""
    for defect in defects:
        for i, example in enumerate(defect.examples):
            write_image(run.folder / "masks" / defect.stem / f"{i:05}.png",
                        read_example_mask(example).astype(np.uint8) * 255)


def load_masks(run: Run, defect: Defect) -> list[np.ndarray]:
    """The training masks of a defect, bool (h, w)."""
    paths = [run.folder / "masks" / defect.stem / f"{i:05}.png"
             for i in range(len(defect.examples))]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; run train_embed.py with --resume")
    return [read_mask(path) for path in paths]


def save_vectors(run: Run, folder: str, suffix: str, vectors: nn.ParameterDict,
                 strengths: dict[str, Strength] | None = None) -> None:
    """One file a defect, of e_a with its strength in the metadata.

    The key is lower case because CLIP's tokenizer lower-cases the prompts.
    """
    for defect in run.defects:
        key = f"<{defect.stem.lower()}{suffix}>"
        more = {} if strengths is None else {
            key: json.dumps(value) for key, value in asdict(strengths[defect.stem]).items()}
        save_module(run, f"{folder}/{defect.stem}", {key: vectors[defect.stem].float()},
                    object=defect.object, defect=defect.name, **more)


def _load(run: Run, name: str, begin: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """read_tensors of RUN/name.safetensors; ValueError if it is older than config.json."""
    path = run.folder / f"{name}.safetensors"
    tensors, metadata = read_tensors(path, begin)
    if metadata.get("weights_sha256") != run.config["weights_sha256"]:
        raise ValueError(f"{path}: learned on another model than the run in {run.folder}; put its "
                         f"own file back, or run train_embed.py with --resume")
    found, expected = metadata.get("steps"), str(run.config["options"]["steps"])
    if found != expected:
        found = str(found).encode("unicode_escape").decode()
        raise ValueError(f"{path}: after {found} steps of {expected}; training did not finish, "
                         f"run train_embed.py with --resume")
    return tensors, metadata


def load_module(run: Run, name: str, like: Mapping[str, Tensor] | None = None,
                begin: str = "") -> dict[str, Tensor]:
    """What save_module wrote; ValueError if it is older than config.json, or unlike others."""
    tensors = _load(run, name, begin)[0]
    return tensors if like is None else fitted(run.folder / f"{name}.safetensors", tensors, like)


def load_to_rgb(run: Run) -> Tensor:
    """The (4, 3) map from latents to colours; ValueError if it is older than config.json."""
    return load_module(run, "latent_to_rgb", {"latent_to_rgb": torch.empty(4, 3)})["latent_to_rgb"]


def load_vectors(run: Run, folder: str, defect: Defect, like: Tensor) -> Tensor:
    """The (k, d) vectors of a defect, of a shape; ValueError if they are older than config.json."""
    found = load_module(run, f"{folder}/{defect.stem}")
    return next(iter(fitted(run.folder / f"{folder}/{defect.stem}.safetensors", found,
                            dict.fromkeys(found or "-", like)).values()))


def load_strength(run: Run, defect: Defect) -> Strength:
    """The strength that training found for a defect; ValueError if there is none."""
    name = f"embeddings/{defect.stem}"
    metadata = _load(run, name)[1]
    try:
        found = {key: json.loads(metadata[key]) for key in STRENGTH}
    except (ValueError, KeyError, RecursionError):
        found = {}
    scales = [] if misfit(found, STRENGTH) else [found["guidance"], *(x for x, _ in found["line"])]
    if not scales or min(scales) <= 0 or scales[1:] != sorted(set(scales[1:])):
        raise ValueError(f"{run.folder / name}.safetensors: no guidance in its metadata; give "
                         f"--guidance, or run train_embed.py with --resume")
    return Strength(found["guidance"], found["goal"], tuple(map(tuple, found["line"])))


def added_preview(run: Run, defect: Defect) -> Path:
    """What to judge a defect by that --add has joined to the run."""
    return run.folder / "previews" / f"{defect.stem}.jpg"


def check_weights(run: Run, source: str, sha256: str) -> None:
    """ValueError if the checkpoint at source, with this fingerprint, is not the run's."""
    made_with = run.config["weights_sha256"]
    if sha256 != made_with:
        raise ValueError(
            f"{run.folder}: made with another model than {source} (sha256 {made_with[:12]}, "
            f"found {sha256[:12]}); use the model of the run or train again")


def load_encoder(run: Run, learner: AnomalyEmbedding) -> None:
    """Put the run's spatial encoder into the learner, frozen."""
    encoder = learner.spatial_encoder
    encoder.load_state_dict(load_module(run, "spatial_encoder", encoder.state_dict()))
    encoder.requires_grad_(False)


def load_learner(run: Run, sd: StableDiffusion, defects: list[Defect]) -> AnomalyEmbedding:
    """The run's embeddings of these defects and its spatial encoder, frozen."""
    if run.config["size"] % sd.size_multiple:
        raise ValueError(f"{run.folder}/config.json: size is {run.config['size']}, but the model "
                         f"takes multiples of {sd.size_multiple}; restore it or train again")
    learner = AnomalyEmbedding(sd, defects, 0, not run.config["options"].get("no_spatial"))
    for defect in defects:
        e_a = learner.e_a[defect.stem].data
        e_a.copy_(load_vectors(run, "embeddings", defect, e_a))
    load_encoder(run, learner)
    return learner.requires_grad_(False)
