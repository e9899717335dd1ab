"""Ways to learn the defects, for bench.py method and details."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from ldm.model import StableDiffusion

WIDE_CROPS = "wide crops"   # a variant for its knowledge of the place alone
BACKGROUND = "background 0.3"


class WithoutPlace(AnomalyEmbedding):
    """e_a alone."""

    def forward(self, stem: str, masks: Tensor) -> dict[str, Tensor]:
        return {"e_a": self.e_a[stem].expand(len(masks), -1, -1)}

    def rates(self, sd: StableDiffusion) -> list[dict]:
        return super().rates(sd)[:1]


class WithFixedMask(AnomalyEmbedding):
    """e_s of one mask a defect, a stripe: four vectors more for each defect, that know nothing of its masks."""

    def forward(self, stem: str, masks: Tensor) -> dict[str, Tensor]:
        stripe, i = torch.zeros_like(masks), list(self.e_a).index(stem)
        stripe[:, :, i::2 * len(self.e_a)] = 1
        return super().forward(stem, stripe)


class WithObject(AnomalyEmbedding):
    """"a photo of leather with *" in the place of "a photo of *"."""

    def __init__(self, sd: StableDiffusion, defects: list[Defect], seed: int):
        super().__init__(sd, defects, seed)
        table, self.words = sd.text_encoder.word_table, {}
        for defect in defects:
            self.words[defect.stem] = table[sd.tokenizer.tokens(f"{defect.object} with")].float()

    def forward(self, stem: str, masks: Tensor) -> dict[str, Tensor]:
        return {"words": self.words[stem].expand(len(masks), -1, -1), **super().forward(stem, masks)}


class WithoutWord(AnomalyEmbedding):
    """e_a starts at the mean word."""

    def __init__(self, sd: StableDiffusion, defects: list[Defect], seed: int):
        super().__init__(sd, defects, seed)
        table = sd.text_encoder.word_table.float()
        for defect in defects:
            token, = sd.tokenizer.tokens(defect.name)
            self.e_a[defect.stem].data += table.mean(dim=0) - table[token]


@dataclass(frozen=True)
class Variant:
    """A way to learn; steps and rates in units of the tool's."""

    learner: type[AnomalyEmbedding] = AnomalyEmbedding
    masked: bool = True
    background: float = 0.0
    steps: float = 1.0
    rates: float = 1.0
    seed: int = 0           # of the vectors, of the views and of what a step draws
    wide: bool = False      # learned from larger crops, in which most defects are off the centre


VARIANTS = {"learned": Variant(), "unmasked loss": Variant(masked=False), "without e_s": Variant(WithoutPlace),
            "e_s of a fixed mask": Variant(WithFixedMask), BACKGROUND: Variant(background=0.3),
            "a second seed": Variant(seed=1), "a third seed": Variant(seed=2),
            "prompt with the object": Variant(WithObject), "the mean word to start from": Variant(WithoutWord),
            "twice the steps": Variant(steps=2.0),
            "a third of the rates": Variant(rates=1 / 3), "three times the rates": Variant(rates=3.0),
            WIDE_CROPS: Variant(wide=True)}

# Ways to learn, each with three seeds: those that come nearer than the tools' with the first one, and the controls.
NEARER, CONTROLS = ((BACKGROUND, "prompt with the object", "twice the steps"),
                    ("without e_s", "e_s of a fixed mask", "unmasked loss"))
SEEDED = {"learned": ("learned", "a second seed", "a third seed"),
          **{name: (name, f"{name}, seed 1", f"{name}, seed 2") for name in NEARER + CONTROLS}}
WIDE_BACKGROUND = f"{WIDE_CROPS}, {BACKGROUND}"
ALL = VARIANTS | {name: replace(VARIANTS[way], seed=seed)
                  for way, names in SEEDED.items() for seed, name in enumerate(names)}
ALL[WIDE_BACKGROUND] = replace(VARIANTS[WIDE_CROPS], background=VARIANTS[BACKGROUND].background)
