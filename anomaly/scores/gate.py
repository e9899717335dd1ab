"""The gate of a defect: bounds of four scores, from its own photographs, and what they let pass.

A bound is a prediction interval: where the next real defect lies with a probability of P, from the
few that are known. Ranges of few values are too tight: a new one falls below the least of n with a
chance of 1 / (n + 1). Photographs of the same surface count as one.

The gate does not judge the mask's shape; the mask model does.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly.scores.pair_scores import (
    FINE,
    changes,
    copies,
    cosines,
    details,
    features,
    grain,
    high_pass,
    visible,
)
from ldm.vae import VAE

P = 0.99                    # of a real defect to lie above a bound; the two of grain share the rest
UNCHANGED = 0.95            # share of normal pixels that change less through the VAE
SAME = 0.4                  # correlation above which two photographs show the same surface
NEAR = 1 / 16               # shifts that are tried for it, in sides of the picture
FEW, WEAK = 10, 0.9         # distinct photographs and self-test below which a gate is a hint
ROUNDING = 1e-4             # of scores: a bound may be the end of its range
LOWEST_GRAIN, HIGHEST_GRAIN = -14.0, 1.0        # log of the rounding of float32, and beyond white


@dataclass(frozen=True)
class Material:
    """What a gate is calibrated on. Pictures (., 3, h, w) in [-1, 1], masks (., h, w) bool."""

    real: Tensor                # the training photographs' crops
    masks: Tensor
    painted: Tensor             # the same with what the VAE makes of them inside the mask
    empties: Tensor             # over the first of them: what an empty prompt paints in the mask
    surfaces: Tensor            # defect-free, under masks of the training photographs; may be none
    surface_masks: Tensor
    painted_surfaces: Tensor    # with what the VAE makes of them inside the mask


@dataclass(frozen=True)
class Gate:
    """Between what bounds a pair of one defect is like its photographs."""

    least: float                # change, 0 to 2, that a pixel must exceed to be visible
    visible: float              # at least this share of the mask is
    alike: float                # at least
    grain: tuple[float, float]  # from, to
    copy: float                 # at most
    photographs: int            # distinct ones that the bounds rest on
    empties: float              # self-test: share of the empty paintings that the gate catches
    surfaces: float | None      # and of defect-free surfaces; None: there were none
    centre: Tensor              # (2c,): mean and deviation of features of what is no defect
    scale: Tensor
    known: Tensor               # (2n, 2c): features of the training views, centred and scaled
    high_passes: Tensor         # (n, s, s): details of the training views
    cores: Tensor               # (n, s, s) bool

    def likeness(self, found: Tensor) -> Tensor:
        """alike of features (b, 2c): the largest cosine to a training view, (b,)."""
        return cosines((found - self.centre) / self.scale, self.known).amax(dim=1)

    @property
    def why_a_hint(self) -> str:
        """Why the gate is no more than a hint; "" if it is more."""
        if self.photographs < FEW:
            return f"bounds need {FEW} distinct photographs"
        caught = (self.empties, 1.0 if self.surfaces is None else self.surfaces)
        return "it lets too much pass" if min(caught) < WEAK else ""

    @property
    def worth(self) -> str:
        """What the gate rests on and what it catches, for people."""
        said = (f"the gate rests on {self.photographs} distinct photographs; it catches "
                f"{self.empties:.0%} of empty paintings and "
                + ("was tried on no normals" if self.surfaces is None
                   else f"{self.surfaces:.0%} of normals"))
        hint = f"; a hint: {self.why_a_hint}" if self.why_a_hint else ""
        return (said + hint).replace("%", " %")


@dataclass(frozen=True)
class Verdict:
    """On one pair."""

    scores: dict[str, float]    # visible (with a normal photograph only), alike, grain, copy
    passed: bool
    reason: str                 # each score out of its bounds, with these; "" if it passed


def t_quantile(p: float, df: int) -> float:
    """The p quantile of Student's t, by its density: with t = sqrt(df) tan(a), cos(a)^(df-1)."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
    below = np.cumsum((angle[1] - angle[0]) * np.cos((angle[1:] + angle[:-1]) / 2) ** (df - 1))
    return float(df ** 0.5 * np.tan(np.interp(p * below[-1], below, angle[1:])))


def interval(values: Tensor, groups: int, p: float, low: float, high: float) -> tuple[float, float]:
    """Where the next value lies: above the first and below the second, each with probability p.

        mean -+ t_{p, g-1} s sqrt(1 + 1/g)

    g: how many distinct photographs the values are of; of one: the score's range, low to high.
    """
    if groups < 2:
        return low, high
    reach = t_quantile(p, groups - 1) * float(values.std()) * (1 + 1 / groups) ** 0.5
    mean = float(values.mean())
    return max(mean - reach, low), min(mean + reach, high)


def distinct(pictures: Tensor, masks: Tensor) -> list[int]:
    """A number for each picture, the same for those that show the same surface.

    Same: outside of their masks their high-passes correlate by more than SAME at a shift of at most
    NEAR, or both do with a third. Inside, defects of one shape would be taken for one.
    """
    reach = 2 * max(1, round(FINE * masks.shape[-1]))       # what the high-pass sees, and one more
    grown = F.max_pool2d(masks[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0]
    h = high_pass(pictures) * (1 - grown)
    spectra = torch.fft.rfft2(F.normalize(h.flatten(1), dim=1).view_as(h))
    near = round(NEAR * h.shape[-1])
    group = list(range(len(h)))
    for i in range(1, len(h)):
        r = torch.fft.irfft2(spectra[i].conj() * spectra[:i], h.shape[-2:])
        r = r.roll((near, near), (1, 2))[:, :2 * near + 1, :2 * near + 1]
        for j in torch.nonzero(r.flatten(1).amax(dim=1) > SAME).flatten().tolist():
            group = [group[j] if g == group[i] else g for g in group]
    return group


def apart(scores: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """The largest of each row of scores (r, c) among columns of another group: leave-one-out."""
    same = torch.tensor(rows)[:, None] == torch.tensor(columns)
    return scores.masked_fill(same, -1.0).amax(dim=1)


def calibrate(vae: VAE, material: Material) -> Gate:
    """The gate of a defect."""
    m, on = material, vae.quant_conv.weight.device
    pieces = details(m.real.to(on), m.masks.to(on))
    group = distinct(m.real, m.masks)
    groups, some = len(set(group)), m.masks[:len(m.empties)]

    real, painted, empties, surfaces = (features(vae, *pair) for pair in (
        (m.real, m.masks), (m.painted, m.masks), (m.empties, some), (m.surfaces, m.surface_masks)))
    nothing = torch.cat([empties, surfaces])
    centre, scale = nothing.mean(dim=0), torch.ones(nothing.shape[1])
    if len(nothing) > 1:
        scale = nothing.std(dim=0).clamp_min(1e-6)
    known = (torch.cat([real, painted]) - centre) / scale
    alike, _ = interval(apart(cosines(known, known), 2 * group, 2 * group), groups, P, -1.0, 1.0)

    flat = changes(m.surfaces, m.painted_surfaces)[m.surface_masks] if len(m.surfaces) else \
        changes(m.real, m.painted)[m.masks]
    least = float(np.quantile(flat.numpy(), UNCHANGED))
    shown = torch.cat([visible(m.empties, some_real[:len(some)], some, least)
                       for some_real in (m.real, m.painted)])
    half = float(shown.mean()) / 2
    low, _ = interval(shown, groups, P, 0.0, 1.0)

    grains = torch.cat([grain(m.real, m.masks), grain(m.painted, m.masks)])
    between = apart(copies(pieces, pieces).cpu(), group, group).clamp_min(0)
    gate = Gate(least, (half + max(half, low)) / 2, alike,
                interval(grains, groups, (1 + P) / 2, LOWEST_GRAIN, HIGHEST_GRAIN),
                (1 + float(between.max())) / 2, groups, 0.0, 0.0, centre, scale, known,
                *(some.cpu() for some in pieces))

    def caught(found: Tensor, pictures: Tensor, masks: Tensor) -> float:
        judged = verdicts(gate, {"alike": gate.likeness(found), "grain": grain(pictures, masks)})
        return sum(not verdict.passed for verdict in judged) / max(1, len(judged))
    tried = caught(surfaces, m.surfaces, m.surface_masks) if len(surfaces) else None
    return replace(gate, empties=caught(empties, m.empties, some), surfaces=tried)


def verdicts(gate: Gate, scores: dict[str, Tensor]) -> list[Verdict]:
    """Scores (b,) by name against their bounds. What is not a number is out of all of them."""
    bounds = {"visible": (gate.visible, 1.0, "too little of the mask was changed", ""),
              "alike": (gate.alike, 1.0, "unlike every training photograph", ""),
              "grain": (*gate.grain, "smoother than the training photographs",
                        "rougher than the training photographs"),
              "copy": (-1.0, gate.copy, "", "a piece of a training photograph")}
    found = []
    for row in zip(*(values.tolist() for values in scores.values())):
        reasons = []
        for name, value in zip(scores, row):
            low, high, below, above = bounds[name]
            if not value >= low - ROUNDING:
                reasons.append(f"{name} {value:.3f}, at least {low:.3f}: {below}")
            elif not value <= high + ROUNDING:
                reasons.append(f"{name} {value:.3f}, at most {high:.3f}: {above}")
        found.append(Verdict(dict(zip(scores, row)), not reasons, "; ".join(reasons)))
    return found


@torch.no_grad()
def judge(vae: VAE, gate: Gate, before: Tensor | None, after: Tensor,
          masks: Tensor) -> list[Verdict]:
    """A verdict on each pair of a batch: crops of the normal photograph and of the pair, b of each.

    before: None where there is no normal photograph: then visible is not judged.
    """
    on = vae.quant_conv.weight.device
    pieces, core = details(after.to(on), masks.to(on))
    same = copies((pieces, core), (gate.high_passes.to(on), gate.cores.to(on)))
    scores = {} if before is None else {"visible": visible(before, after, masks, gate.least)}
    return verdicts(gate, {**scores, "alike": gate.likeness(features(vae, after, masks)),
                           "grain": grain(after, masks),
                           "copy": same.amax(dim=1).cpu()})
