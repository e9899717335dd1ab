"""A subject of fuzz.py: the files of a run and of its pairs, read as the tools do, and by them."""

import io
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fuzz import Place, bytes_changed, cut, json_damaged, tensors_damaged
from fuzz_images import png_damaged, resized
from PIL import Image

from anomaly.embedding import AnomalyEmbedding, MaskEmbedding
from anomaly.pairs.pair_folder import PairFolder
from anomaly.runs import run_folder, run_state
from anomaly.runs.gating import load_gate
from benchmarks.random_models import save_checkpoint
from commands import call
from weights import load

SIZE = 48, 40


def draw(root: Path) -> Path:
    """Photographs, normals and masks of one defect in MVTec AD layout."""
    rng, mask = np.random.default_rng(0), np.zeros(SIZE, np.uint8)
    mask[10:20, 12:30] = 255
    for name, picture in (("test/crack/0.png", None), ("ground_truth/crack/0_mask.png", mask),
                          ("train/good/0.png", None)):
        path = root / "tile" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(90, 140, SIZE, np.uint8) if picture is None
                        else picture).save(path)
    return root / "tile"


def words_changed(content: bytes, rng: random.Random) -> bytes:
    """A table with one value replaced."""
    words = content.split(b",")
    words[rng.randrange(len(words))] = rng.choice(
        [b"", b"-1", b"x", b"nan", b"1" * 5000, b"../../x", b"/", b"\0", b'"', b"a" * 200_000])
    return b",".join(words)


DAMAGE = {".json": [json_damaged], ".safetensors": [tensors_damaged],
          ".csv": [bytes_changed, cut, words_changed, words_changed],
          ".png": [bytes_changed, cut, resized, png_damaged]}


def damaged(content: bytes, rng: random.Random, kind: str) -> bytes:
    """A file of this ending."""
    return rng.choice(DAMAGE[kind])(content, rng)


def read(root: Path, sd, weights_sha256: str) -> None:
    """By what resuming and painting read first; what was read must be of use."""
    run = run_folder.read_run(root / "run")
    run_folder.check_weights(run, "weights", weights_sha256)
    for defect in run.defects:
        learner = run_folder.load_learner(run, sd, [defect])
        assert all(p.isfinite().all() for p in learner.parameters())
        assert load_gate(run, defect).likeness(torch.zeros(1, 64)).shape == (1,)
        assert run_folder.load_strength(run, defect).at(1.5)[0] > 0
        assert all(mask.any() and mask.ndim == 2 for mask in run_folder.load_masks(run, defect))
        run_folder.load_vectors(run, "mask_embeddings", defect, torch.empty(4, 32))
    run_folder.load_to_rgb(run)
    for stage, kind in (("image", AnomalyEmbedding), ("mask", MaskEmbedding)):
        learner = kind(sd, run.defects, 0)
        optimizer = torch.optim.Adam(learner.rates(sd))
        run_state.open_losses(run, stage, run_state.load_state(run, stage, learner, optimizer))
        for parameter in learner.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    run_state.sort_losses(run)
    folder = PairFolder(root / "out", {"seed": 0})
    with folder.held(run.config["size"]):
        _ = [folder.done(defect, k) for defect in run.defects for k in range(2)]
    _ = list(folder.summaries([(defect, {0, 1}, 2) for defect in run.defects]))


def use(root: Path, tool: str, *argv: object) -> None:
    """By a tool: what it refuses is raised in its words; what it writes is whole."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = call(tool, *argv, "--steps", 1)
    assert code in (0, 2), said.getvalue()
    errors = [line for line in said.getvalue().splitlines() if line.startswith(f"{tool}.py: ")]
    assert len(errors) == (code == 2), said.getvalue()
    if errors:
        raise ValueError(errors[0].removeprefix(f"{tool}.py: "))
    for image in root.glob("out/*/test/*/*.png"):
        mask = image.parents[2] / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
        assert np.asarray(Image.open(image)).shape == np.asarray(Image.open(mask)).shape == SIZE


def places(root: Path) -> list[Place]:
    """Every file of a run and of its pairs, in a copy for each case; one in ten by a tool."""
    weights, data, whole = save_checkpoint(root / "weights"), draw(root), root / "whole"
    train = ("train_embed", "--out", root / "run", "--weights", weights, "--data", data)
    sample = ("sample", "--run", root / "run", "--out", root / "out", "--masks", "train", "--n")
    use(root, *train)
    use(root, *sample, 1)
    for name in ("run", "out"):
        shutil.copytree(root / name, whole / name)
    sd = load(weights)

    def afresh(way) -> None:
        try:
            with redirect_stderr(io.StringIO()):        # remarks, once a tool has asked for them
                way()
        finally:
            for name in ("run", "out"):
                shutil.rmtree(root / name)
                shutil.copytree(whole / name, root / name)

    reading, *tools = (partial(afresh, way) for way in (
        partial(read, root, sd, sd.fingerprint()), partial(use, root, *sample, 2),
        partial(use, root, *train, "--resume")))
    files = [path for folder in ("run", "out/_meta") for path in sorted((root / folder).rglob("*"))
             if path.suffix in DAMAGE]
    return [Place(path, partial(damaged, kind=path.suffix),
                  reading if (i + turn) % 10 else tools[turn % 4 == 3], root)
            for turn in range(10) for i, path in enumerate(files)]
