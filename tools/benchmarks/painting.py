"""Learning and painting for bench.py method and details: rows, and what is kept of them on the disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import train_embed
from anomaly.crop import defect_crop, take, turned
from anomaly.dataset import Defect, find_defects, first_third, read_example
from anomaly.embedding import ENCODER_RATE, VECTOR_RATE, AnomalyEmbedding
from anomaly.output.calibrate import LARGEST, TRIED, VIEWS, contrasts, strength_of
from anomaly.output.console import Progress
from anomaly.output.files import replacing
from anomaly.output.generate import Settings, context_of, paint_crops
from anomaly.output.quality import diversity
from anomaly.output.synthetic.demo import demo_data
from anomaly.output.synthetic.pictures import describe
from anomaly.sampler import STEPS, Guidance
from anomaly.train import Views, encode, textual_inversion
from benchmarks.material import BATCH, WIDE, Material, encoded, material, measure
from benchmarks.sampling import Way
from benchmarks.tables import check_made_with
from benchmarks.variants import ALL, VARIANTS, Variant
from weights import fingerprint, load

Weigh = Callable[[Tensor, Tensor], Tensor]
Numbers = dict[str, list[float]]            # of each scene

ROUNDS = 6                                  # views of each photograph in wide crops: as many as the tools draw
NOTHING = 1 << 16                           # a seed apart from those of the rows
WORDS = "words only"                        # a prompt in the place of anything learned
OBJECT = "object"                           # a negative prompt to be replaced by the defect's own
CAPTION = "its own caption"                 # the words that the checkpoint was pretrained with


@dataclass(frozen=True)
class Row:
    """How a defect was learned, and how it is painted."""

    name: str
    variant: str = "learned"
    guidance: float | None = None                       # None: the defect's own, of the tools
    steps: int = STEPS
    negative: str = ""                                  # prompt to guide away from; OBJECT: the defect's object
    weigh: Weigh | None = None
    calibrated: Callable[..., Tensor] | None = None     # in the place of weigh: with the defect's own gain
    again: bool = False                                 # drawn twice, the second time with the first one's map
    another: bool = False                               # e_s of the next scene's mask
    way: Way | None = None                              # to sample, in the place of the tools'

    @property
    def key(self) -> str:
        """All of it but the name: rows that say the same are painted once."""
        weigh = f"{self.calibrated.__name__}, own gain" if self.calibrated else described(self.weigh)
        guidance = "own guidance" if self.guidance is None else f"guidance {self.guidance:g}"
        return "/".join([self.variant, guidance, f"{self.steps} steps", self.negative or "empty", weigh,
                         "again" if self.again else "once", *["another mask"] * self.another,
                         *([self.way.__name__] if self.way else [])])


def described(weigh: Weigh | None) -> str:
    """A re-weighting's name and arguments."""
    if isinstance(weigh, partial):
        return f"{weigh.func.__name__}({', '.join(f'{k}={v:g}' for k, v in weigh.keywords.items())})"
    return "off" if weigh is None else weigh.__name__


@dataclass(frozen=True)
class Scale:
    """How much is painted: images and noises. How much is learned: steps a defect, from how much, which variants."""

    main: tuple[int, int] = (32, 3)
    single: tuple[int, int] = (16, 1)
    defaults: tuple[int, int] = (64, 3)
    learning: int = train_embed.TRAINING_STEPS
    photographs: int | None = None                                  # of each defect, the first; None: all
    variants: tuple[str, ...] = tuple(VARIANTS)
    gains: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)      # tried when a defect's gain is calibrated


class Recorder:
    """A re-weighting that keeps what it was asked and what it answered, step by step."""

    def __init__(self, weigh: Weigh):
        self.weigh = weigh
        self.asked: list[Tensor] = []
        self.answers: list[Tensor] = []

    def __call__(self, d: Tensor, m: Tensor) -> Tensor:
        self.asked.append(d)
        self.answers.append(self.weigh(d, m))
        return self.answers[-1]


class Bench:
    """The checkpoint, what was learned with it, the scenes, and what has been found so far."""

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale, self.sd = folder, scale, load("tiny")
        self.size = self.sd.native_size
        self.results = folder / "method.json"
        self.found: dict = json.loads(self.results.read_text()) if self.results.exists() else {}
        now = {"weights": fingerprint("tiny"), "learning": scale.learning, "rates": [VECTOR_RATE, ENCODER_RATE],
               "guidance": [*TRIED, LARGEST, VIEWS], "gains": list(scale.gains)}
        check_made_with(self.results, self.found, now)
        self.defects = [replace(d, examples=first_third(d).examples[:scale.photographs])
                        for d in find_defects(demo_data(folder / "demo"))]
        self.to_rgb = train_embed.fit_latent_to_rgb(self.sd, self.defects, self.size)
        self.learners = {name: self.learned(name, ALL[name]) for name in scale.variants}
        self.materials: dict[tuple, tuple[Material, Tensor]] = {}

    def keep(self, key: str, value: object) -> None:
        """Add to what has been found, on the disk."""
        self.found[key] = value
        with replacing(self.results) as temporary:
            temporary.write_text(json.dumps(self.found, indent=1) + "\n")

    @cache
    def views(self, seed: int, wide: bool) -> dict[str, Views]:
        """What variants of a seed learn from."""
        if not wide:
            return {d.stem: train_embed.encode_views(self.sd, d, self.size, True, seed) for d in self.defects}
        rng, factor, found = np.random.default_rng(seed), self.sd.vae.config.factor, {}
        for d in self.defects:
            pairs = [turned(*read_example(e), True, rng) for e in d.examples * ROUNDS]
            crops = [take(*pair, defect_crop(pair[1], self.size, rng, WIDE), self.size, factor) for pair in pairs]
            found[d.stem] = encode(self.sd, crops)
        return found

    def learned(self, name: str, variant: Variant) -> AnomalyEmbedding:
        """The variant's vectors: learned once with the tool's own loop, then read."""
        learner = variant.learner(self.sd, self.defects, variant.seed)
        path = self.folder / f"{name.replace(' ', '-')}.pt"
        if not path.exists():
            views = self.views(variant.seed, variant.wide)
            if not variant.masked:
                views = {stem: Views(v.latents, torch.ones_like(v.cells), v.masks) for stem, v in views.items()}
            steps = round(variant.steps * self.scale.learning) * len(views)
            optimizer = torch.optim.Adam([{**g, "lr": variant.rates * g["lr"]} for g in learner.rates(self.sd)])
            with Progress(f"learning: {name}", steps) as progress:
                for _ in textual_inversion(self.sd, views, learner, optimizer, 0, steps, train_embed.BATCH_SIZE,
                                           variant.seed, variant.background):
                    progress.step()
            with replacing(path) as temporary:
                torch.save(learner.state_dict(), temporary)
        learner.load_state_dict(torch.load(path, weights_only=True))
        return learner.requires_grad_(False)

    def material(self, label: str, defect: Defect, count: int, shape: str = "own") -> tuple[Material, Tensor]:
        """The scenes, and what an empty prompt without guidance paints into them."""
        key = label, defect.key, count, shape
        if key not in self.materials:
            scene = material(self.sd, label, defect.object, defect.name, count, self.size, shape)
            empty = self.sd.context("").expand(count, -1, -1)
            self.materials[key] = scene, self.paint(Row("nothing", guidance=1.0), scene, empty, NOTHING)
        return self.materials[key]

    def context(self, row: Row, defect: Defect, scene: Material) -> Tensor:
        """What the row is painted with, (n, L, d)."""
        if row.variant == CAPTION:
            captions = [describe(defect.object, defect.name, "", mask.numpy()) for mask in scene.masks]
            return torch.cat([self.sd.context(caption) for caption in captions])
        if row.variant == WORDS:
            words = self.sd.context(f"a photo of {defect.object} with {defect.name}")
            return words.expand(len(scene.normal), -1, -1)
        masks = scene.masks.roll(1, 0) if row.another else scene.masks
        return context_of(self.sd, self.learners[row.variant], defect.stem, masks)

    def paint(self, row: Row, scene: Material, context: Tensor, seed: int) -> Tensor:
        """Every scene, (n, 3, size, size)."""
        noise = torch.randn((len(context), 4, *scene.cells.shape[1:]), generator=torch.Generator().manual_seed(seed))
        sd, settings, painted = self.sd, self.settings(row), []
        if row.way:
            sd, noise = row.way(sd, encoded(sd, scene.normal), scene.cells, noise)
        for i in range(0, len(context), BATCH):
            part = slice(i, i + BATCH)
            job = sd, scene.normal[part], context[part], noise[part]
            if row.again:
                first = Recorder(row.weigh)
                paint_crops(*job, replace(settings, weigh=first))
                settings = replace(settings, weigh=lambda d, m, fixed=first.answers[-1]: fixed)
            painted.append(paint_crops(*job, settings))
        return torch.cat(painted)

    def settings(self, row: Row) -> Settings:
        """What a settled row paints with."""
        guidance = Guidance(row.guidance, self.sd.context(row.negative))
        return Settings(self.size, row.steps, guidance, self.to_rgb, row.weigh)

    def gain(self, defect: Defect, row: Row) -> float:
        """The gain of row.calibrated at which the defect, painted over its training crops, has their contrast.

        On straight lines between the scale's gains; the first, or, where none is enough, the one with the most contrast.
        """
        key = f"gain/{row.key}/{defect.key}"
        if key not in self.found:
            trials = [self.settings(replace(row, weigh=partial(row.calibrated, gain=g))) for g in self.scale.gains]
            goal, reached = contrasts(self.sd, defect, self.learners[row.variant], trials)
            rising = slice(int(np.argmax(reached)) + 1)
            self.keep(key, float(np.interp(goal, np.maximum.accumulate(reached[rising]), self.scale.gains[rising])))
        return self.found[key]

    def guidance(self, defect: Defect, row: Row) -> float:
        """The scale that the tools find for what the row has learned, whatever it is then painted with."""
        variant = "learned" if row.variant == WORDS else row.variant
        key = f"guidance/{variant}/{STEPS} steps/{defect.key}" + f"/negative {row.negative}" * bool(row.negative)
        if key not in self.found:
            settings = self.settings(Row("", guidance=1.0, negative=row.negative))
            self.keep(key, strength_of(self.sd, defect, self.learners[variant], settings).guidance)
        return self.found[key]

    def settled(self, row: Row, defect: Defect) -> Row:
        """The row with the defect's object as its negative prompt, the defect's own guidance and gain."""
        if row.negative == OBJECT:
            row = replace(row, negative=defect.object)
        if row.guidance is None:
            row = replace(row, guidance=self.guidance(defect, row))
        return replace(row, weigh=partial(row.calibrated, gain=self.gain(defect, row))) if row.calibrated else row

    def row(self, label: str, row: Row, defect: Defect, amount: tuple[int, int], shape: str = "own") -> Numbers:
        """The row's measures of a defect; means over the noises. Painted once, then read."""
        count, seeds = amount
        key = f"{label}/{defect.key}/{shape}/{count} x {seeds}/{row.key}"
        if key not in self.found:
            scene, nothing = self.material(label, defect, count, shape)
            row = self.settled(row, defect)
            context, paintings = self.context(row, defect, scene), []
            with Progress(f"{label}: {row.name}: {defect.key}", seeds) as progress:
                for seed in range(seeds):
                    paintings.append(self.paint(row, scene, context, seed))
                    progress.step()
            found = [measure(painted, nothing, scene) for painted in paintings]
            numbers = {name: np.mean([f[name] for f in found], axis=0).tolist() for name in found[0]}
            if seeds > 1:
                numbers["diversity"] = diversity(paintings, scene.masks).tolist()
            self.keep(key, numbers)
        return self.found[key]
