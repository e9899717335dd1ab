"""The card of a folder of pairs, OUT/_meta/README.md: what it is, from what, and how to make it.

A data set that leaves the house must say where it comes from. The card says it from the manifest,
from config.json, and from what painting has recorded there under "source"; it names no time, so
that the same command writes the same bytes.
"""

import shlex
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from anomaly.files.atomic_files import read_json, write_text
from anomaly.files.names import shown
from anomaly.runs.run_folder import Run
from ldm.model import StableDiffusion

# Width of the text encoder -> licence of the family that has it.
LICENCES = {768: "CreativeML Open RAIL-M, that of Stable Diffusion 1.x",
            1024: "CreativeML Open RAIL++-M, that of Stable Diffusion 2.x"}
# What source_of writes; older versions wrote none.
SOURCE = {"weights": str, "weights_sha256": str, "licence": str, "steps": int, "batch_size": int,
          "defects": [{"defect": str, "folder": str, "photographs": int}]}
OPTIONS = ("masks", "foreground", "normals", "steps", "guidance", "strength", "negative",
           "reweight", "reweight_gain", "gate", "tries", "dtype", "seed")


def source_of(run: Run, sd: StableDiffusion, batch_size: int) -> dict[str, Any]:
    """What the card says of checkpoint and training, as plain data for config.json."""
    family = LICENCES.get(sd.text_encoder.config.width)
    known = f"{family}; a fine-tuned one may have its own" if family else "the checkpoint's own"
    own = "MIT, like the project; it is trained on drawings"
    return {"weights": shown(Path(run.config["options"]["weights"]).name),
            "weights_sha256": run.config["weights_sha256"],
            "licence": own if sd.source == "tiny" else known,
            "steps": run.config["options"]["steps"], "batch_size": batch_size,
            "defects": [{"defect": d.key, "folder": shown(d.examples[0].image.parent),
                         "photographs": len(d.examples)} for d in run.defects]}


def read_config(pairs: Path) -> dict[str, Any]:
    """What OUT/_meta/config.json says."""
    kind = {"source": (None, SOURCE), "white": (range(1, 2 ** 16), None)}
    return read_json(pairs / "_meta/config.json", kind, "give a folder that sample.py wrote")


def command(config: dict[str, Any], rows: list[dict[str, str]]) -> str:
    """That which makes the pairs again, but for the folders of the run and of the pairs."""
    source, keys = config.get("source") or {}, {f"{row['object']}/{row['defect']}" for row in rows}
    said = {"n": 1 + max(int(row["k"]) for row in rows),
            **{name: config.get(name) for name in OPTIONS},
            "batch_size": source.get("batch_size")}
    if keys < {learned["defect"] for learned in source.get("defects", [])}:
        said["only"] = ",".join(sorted(keys))
    if said["strength"] == 1:
        del said["strength"]        # belongs to --guidance auto
    words = [word for name, value in said.items() if value is not None
             for word in (f"--{name.replace('_', '-')}", f"{value}")]
    return shlex.join(["python", "tools/sample.py", "--run", "RUN", *words, "--out", "OUT"])


def _table(rows: list[dict[str, str]]) -> list[str]:
    """A line a defect: how many pairs, and what the gate says of them."""
    verdicts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        left_out = row["image"].startswith("_meta/")
        verdicts[f"{row['object']}/{row['defect']}"]["left out" if left_out else
                                                     row["verdict"]] += 1
    lines = ["| defect | pairs | passed the gate | doubtful | not judged | left out |",
             "|---|---|---|---|---|---|"]
    for key, found in verdicts.items():
        judged = found.total() - found[""]
        share = f" ({found['pass'] / judged:.0%})" if judged else ""
        lines.append(f"| {key} | {found.total() - found['left out']} | {found['pass']}{share} | "
                     f"{found['doubtful']} | {found['']} | {found['left out']} |")
    return lines


def _origins(config: dict[str, Any], rows: list[dict[str, str]], told: str) -> list[str]:
    """A line each: the checkpoint, the training photographs, those that are painted into."""
    source = config.get("source")
    lines = ["* Checkpoint and training photographs: not recorded, as by older versions; "
             "see the config.json of the run, and the checkpoint's own licence."]
    if source:
        lines = [f"* Checkpoint: {source['weights']}, sha256 {source['weights_sha256']}. Licence: "
                 f"{source['licence']}."]
        lines += [f"* {d['defect']}: learned from {d['photographs']} photographs and masks in "
                  f"{d['folder']}, {source['steps']} steps." for d in source["defects"]]
    folders: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        folders[row["normal"].rpartition("/")[0]].add(row["normal"])
    return lines + [f"* Painted into {len(names)} defect-free photographs in {folder}{told}."
                    for folder, names in sorted(folders.items())]


def card(config: dict[str, Any], rows: list[dict[str, str]], picture: bool,
         told: str = "; manifest.csv names that of each pair") -> str:
    """The card in Markdown, but for its title.

    picture: contact_sheet.jpg lies beside it. told: what of the photographs does.
    """
    made = config.get("version", "0.1")
    lines = [
        f"The defects in these pictures are not real. few-shot-defects {made} has painted them "
        "into photographs of parts without defects (AnomalyDiffusion, arXiv 2312.05767); all but "
        "a mask's pixels are the photograph's. A mask is 255 on the defect and 0 elsewhere.", "",
        *(["![pairs](contact_sheet.jpg)", ""] if picture else []),
        *_table(rows), "", "## Where they come from", "", *_origins(config, rows, told), "",
        "## To make them again", "",
        f"RUN is the run whose spatial_encoder.safetensors has the sha256 {config.get('run')}.", "",
        f"    {command(config, rows)}"]
    return "\n".join(lines) + "\n"


def exported_card(config: dict[str, Any], rows: list[dict[str, str]], picture: bool,
                  options: dict[str, Any], found: Counter[tuple[str, str]]) -> str:
    """The card of a data set that tools/export.py has written with these options.

    found: how many pictures each class has for train and for val.
    """
    form, rest = options["format"], "test" if options["format"] == "mvtec" else "val"
    which = "all pairs" if options["all"] else "the pairs that the gate passed or did not judge"
    if options["review"]:
        which += ", but for those that a review accepted or rejected: its word goes before"
    normals = "none" if options["normals"] is None else f"from {shown(options['normals'])}"
    return "\n".join([
        "# Painted defects", "",
        f"Exported as {form}{' with boxes' if options['boxes'] else ''}, of the pairs below: "
        f"{which}. A share of {options['split']} of the "
        f"{'defect-free ' if form == 'mvtec' else ''}photographs is for training. Defect-free "
        f"photographs: {normals}. Pictures may be hard links of the originals: edit a copy.", "",
        f"| class | train | {rest} |", "|---|---|---|",
        *(f"| {kind} | {found[kind, 'train']} | {found[kind, 'val']} |"
          for kind in sorted({kind for kind, _ in found})), "", card(config, rows, picture, "")])


def write_card(pairs: Path, rows: list[dict[str, str]]) -> None:
    """OUT/_meta/README.md, if there is a pair."""
    if rows:
        picture = (pairs / "_meta/contact_sheet.jpg").is_file()
        write_text(pairs / "_meta/README.md", "# Painted defects\n\n"
                   + card(read_config(pairs), rows, picture))
