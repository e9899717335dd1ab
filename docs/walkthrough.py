"""Write docs/walkthrough.md: one mask through the whole method, with the numbers of one run.

A section of the page is a function. Its docstring is the text: {name} stands for a variable, and
<<file: text>> for the one line of the file that holds the text.
"""

import argparse
import re
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import ImageFont
from torch import Tensor, nn

from anomaly import crop, dataset, prompt, reweight, sampler, train
from anomaly.files import atomic_files, photographs
from anomaly.pairs import composite, review
from anomaly.pairs.paint import normals_of
from anomaly.runs import run_folder, sheets
from ldm.attention import CrossAttention
from weights import TINY, load


def line(file: str, text: str) -> str:
    """The only line of a file with the text in it: a link to it, and its code."""
    code = (Path(__file__).parents[1] / file).read_text(encoding="utf-8").splitlines()
    found = [n for n, each in enumerate(code, 1) if text in each]
    if len(found) != 1:
        raise ValueError(f"{file}: {len(found)} lines hold {text!r}, expected one to quote")
    link, quoted = f"[{file}:{found[0]}](../{file}#L{found[0]})", code[found[0] - 1].strip()
    return f"\n\n{link}\n\n```python\n{quoted}\n```\n\n"


def told(section: object, variables: dict[str, object], sheet: str = "") -> str:
    """The docstring of a section and a sheet as Markdown, in lines of at most 100 columns."""
    text = str(section.__doc__).format(**variables) + sheet
    text = re.sub(r"<<(\S+): (.+?)>>", lambda found: line(*found.groups()), text)
    return "\n\n".join(
        block if block.startswith(("```", "![")) else textwrap.fill(" ".join(block.split()), 100)
        for block in re.split(r"\s*\n\n\s*", text.strip()))


def heat(values: Tensor, high: float = 1.0) -> np.ndarray:
    """(n, n) -> uint8 picture with whole cells: black 0, orange half of high, white high."""
    v, times = 2 * values.float() / high, max(1, sheets.TILE // len(values))
    rgb = (torch.stack([v, v / 2, v - 1], dim=-1).clamp(0, 1) * 255).byte().numpy()
    return np.kron(rgb, np.ones((times, times, 1), dtype=np.uint8))


class Walk:
    """One mask in two photographs, x with a burn and y without, and what a run has learned."""

    def __init__(self, folder: Path, steps: int, out: Path):
        self.run, self.sd, self.out = run_folder.read_run(folder), load(TINY), out
        run_folder.check_weights(self.run, self.sd.source, self.sd.fingerprint())
        scratch, burn = dataset.select(self.run.defects, "metal/scratch,wood/burn")
        self.thin = dataset.read_example(scratch.examples[2])[1]
        photograph, self.mask = dataset.read_example(burn.examples[-3])
        self.y = photographs.read_photograph(normals_of(burn, None)[1].path)
        self.square = crop.defect_crop(self.mask, self.run.config["size"])
        self.x, y = (crop.take(each, self.mask, self.square, self.run.config["size"],
                               self.sd.vae.config.factor) for each in (photograph, self.y))
        self.z_0, self.y_0 = (self.sd.vae.encode(each.image[None])[0] for each in (self.x, y))
        self.m = self.x.cells[None].float()
        self.e = run_folder.load_learner(self.run, self.sd, [burn])(burn.stem, self.x.mask[None])
        self.context = prompt.learned_context(self.sd, torch.cat([*self.e.values()], dim=1))
        place = 1 + len(self.sd.tokenizer.tokens(prompt.PROMPT.removesuffix("*")))
        self.cuts = np.cumsum([place, *(e.shape[1] for e in self.e.values())]).tolist()
        self.noise = torch.randn(self.y_0.shape, generator=torch.Generator().manual_seed(0))
        to_rgb = run_folder.load_module(self.run, "latent_to_rgb")["latent_to_rgb"]
        self.paint = partial(
            sampler.blended_ddim, self.sd, self.y_0, self.m, self.noise, self.context,
            sampler.Guidance(1.0, self.context), steps, to_rgb)
        self.steps, self.half = list(self.paint(reweight.adaptive)), steps // 2
        self.d = reweight.difference(self.steps[self.half - 1].x0_hat, self.y_0, self.m, to_rgb)

    def decoded(self, latents: Tensor) -> np.ndarray:
        """D(latents), uint8 (size, size, 3)."""
        return sheets.to_pixels(self.sd.vae.decode(latents)[0])

    def picture(self, name: str, alt: str, *rows: dict[str, np.ndarray]) -> str:
        """A sheet with a label above each picture, written; the Markdown that shows it."""
        wide = ImageFont.load_default().getlength
        labelled = [("".join(x + " " * round((sheets.TILE + 4 - wide(x)) / wide(" ")) for x in row),
                     [*row.values()]) for row in rows]
        atomic_files.write_image(self.out / "walkthrough" / name, sheets.sheet(labelled))
        return f"\n\n![{alt}](walkthrough/{name})\n\n"


def crops(w: Walk) -> str:
    """# One mask through AnomalyDiffusion

    This page follows one mask through the method of
    [AnomalyDiffusion](https://arxiv.org/abs/2312.05767) (AAAI 2024). A burn in wood is learned from
    photographs such as x, and painted into a photograph y that has none. Each step shows the
    equation of the paper with its section, the line of this project that computes it, and the
    shapes and numbers of one run.

    ## 1. The crop and its cells

    Training and painting see a square crop round the mask. Its side is 1.25 times the longer side
    of the mask, here {w.square.side} pixels. <<anomaly/crop.py: side = min(>>
    The crop is resized to {size} x {size} pixels and encoded: z_0 has the shape {shape}. A cell of
    this grid belongs to m if the mask touches it: {n[0]} of {n[1]} cells do.
    <<anomaly/crop.py: return count > 0>>
    A thin scratch touches {n[2]} cells in its whole photograph (middle row) and {n[4]} in its crop
    (lower row). The released code shrinks the mask bilinearly and cuts it at 0.5, which leaves
    {n[3]} and {n[5]}. In the cells that are lost, nothing is learned and nothing is painted.
    """
    n, shape, size = [int(w.m.sum()), w.m.numel()], tuple(w.z_0.shape), len(w.x.mask)
    rows = [{"y and the crop": review.framed(w.y, **vars(w.square)), "x in the crop":
             sheets.to_pixels(w.x.image), "mask": heat(w.x.mask), "m": heat(w.m[0])}]
    for square in (crop.Crop(0, 0, len(w.thin)), crop.defect_crop(w.thin, len(w.x.mask))):
        mask = torch.from_numpy(crop.cut(w.thin, square)).float()
        m = torch.from_numpy(crop.touched(w.thin, square, w.m.shape[-1])).float()
        kept = nn.functional.interpolate(mask[None, None], m.shape, mode="bilinear")[0, 0] >= 0.5
        n += [int(m.sum()), int(kept.sum())]
        rows += [{"mask of a scratch": heat(mask), "touched cells": heat(m),
                  "shrunk, cut at 0.5": heat(kept), "orange: lost": heat((m + kept) / 2)}]
    return told(crops, locals(), w.picture("cells.png", "masks and their cells", *rows))


def learning(w: Walk) -> str:
    """## 2. The learned words

    In "{text}", e = {{e_a, e_s}} takes the place of the star (section 3.2): {k} vectors e_a,
    learned for this defect, and {n} vectors e_s = E(m), made of the mask by the spatial encoder.
    <<anomaly/embedding.py: e_s = self.spatial_encoder(>> <<anomaly/prompt.py: words = torch.cat(>>
    {k} + {n} of the {shape[1]} positions are learned: {spans[0]} are e_a, and {spans[1]} are e_s.
    Before them stand the start token and "a photo of", behind them the end token and padding. The
    frozen text encoder turns the sequence into the context, of shape {shape}.
    <<anomaly/prompt.py: return sd.text_encoder.encode(>>

    ## 3. The masked loss

    Only e_a and E are learned, by masked textual inversion (section 3.2):

    `L = || m * (eps - eps_theta(z_t, t, {{e_a, e_s}})) ||^2`
    <<ldm/schedule.py: return alpha.sqrt() * x_0>> <<anomaly/train.py: error = (m *>>
    This checkpoint predicts v in the place of eps. At t = {t[0]}, for one noise, the loss is
    {loss:.3f}, a mean over m. The gradient at the output of the U-Net is {outside:g} in all
    {around} cells outside m; its largest value inside is {inside:.4f}.
    """
    text, shape, (k, n) = prompt.PROMPT, tuple(w.context.shape), (e.shape[1] for e in w.e.values())
    spans, t = [f"{a} to {b - 1}" for a, b in zip(w.cuts, w.cuts[1:])], torch.tensor([500])
    out = train.predict(w.sd, w.e, w.z_0, t, w.noise).requires_grad_()
    loss = train.masked_loss(out, w.sd.schedule.target(w.z_0, t, w.noise), w.m)
    gradient, around = torch.autograd.grad(loss, out)[0].abs(), int((w.m == 0).sum())
    inside, outside = (gradient * w.m).max(), (gradient * (1 - w.m)).max()
    return told(learning, locals())


def painting(w: Walk) -> str:
    """## 4. Blended DDIM, step by step

    y has the latents y_0 in the crop. Each step keeps what the model makes inside m, and takes y_0
    with its noise outside (section 3.1):

    `x_{{t-1}} = p_theta(x_{{t-1}} | x_t, e) * m + q(y_{{t-1}} | y_0) * (1 - m)`
    <<anomaly/sampler.py: x_t = torch.where(inside > 0, painted>>
    Inside m, p_theta is a step of DDIM with eta 0 from x0_hat, the end that the U-Net predicts.
    <<ldm/schedule.py: return alpha_prev.sqrt() * x0_hat>>
    The {count} steps have t = {ts}. They begin with pure noise in m. After the last, x differs from
    y_0 by {outside:g} outside m. They have w_m (section 5) and no guidance, as with `sample.py
    --reweight adaptive`; the default is guidance and no w_m. The sheet shows x, x0_hat and y_0
    decoded. w_m is black at 0, orange at 1.5 and white from 3 up. It compares the x0_hat of the
    step before with y_0, so that step 1 has none. The decoder sees the whole crop, so that the wood
    round the burn changes its colour with it; section 7 takes only the burn.
    """
    count, outside = len(w.steps), ((w.steps[-1].x - w.y_0).abs() * (1 - w.m)).max()
    ts = ", ".join(str(t) for t, _ in w.sd.schedule.timesteps(count))
    shown = [(i + 1, w.steps[i]) for i in sorted({round(i) for i in np.linspace(0, count - 1, 6)})]
    return told(painting, locals(), w.picture(
        "steps.jpg", "x, x0_hat and w_m over the steps",
        {f"x after step {i}": w.decoded(step.x) for i, step in shown},
        {f"x0_hat of step {i}": w.decoded(step.x0_hat) for i, step in shown},
        {"y_0": w.decoded(w.y_0)} | {f"w_m of step {i}": heat(step.weight[0], 3)
                                     for i, step in shown if step.weight is not None}))


def weights(w: Walk) -> str:
    """## 5. Four readings of w_m

    w_m makes the prompt louder where the defect is still faint (section 3.3):

    `w_m = |m|_1 * Softmax(f(|| m*y - m*x0_hat ||^2)), f(x) = 1/x`

    The difference d is taken on the latent grid, through a linear map from latents to colours. The
    sheet has it after step {w.half}. <<anomaly/reweight.py: d = m * rgb.square()>>
    `paper` is the formula as printed. 1/d is huge where d is small: one of {count} cells has
    {share:.0%} of all weight, and {silent} cells have less than 0.1.
    <<anomaly/reweight.py: torch.where(d > 0, 1 / d>>
    `adaptive` has a gain of {GAIN}, its mean, a contrast tau of {TAU}, and a bound eps of {EPS}.
    <<anomaly/reweight.py: logits = -tau>>
    `released` is the weight of the authors' code, held between 1 and 1.5. `constant` is the gain
    alone. All are 1 outside m. The lower row is painted with each, from the same noise.
    """
    forms, m = [reweight.adaptive, reweight.paper, reweight.released, reweight.constant], w.m > 0
    maps = {"d": w.d} | {form.__name__: form(w.d, w.m) for form in forms}
    paper, count = maps["paper"][m], int(m.sum())
    share, silent = paper.max() / paper.sum(), int((paper < 0.1).sum())
    upper = {f"{name}: {each[m].min():.2f} to {each[m].max():.2f}": heat(each[0], 3)
             for name, each in maps.items()}
    lower = {f"painted, {form.__name__ if form else 'no w_m'}": w.decoded([*w.paint(form)][-1].x)
             for form in (None, *forms)}
    return told(weights, vars(reweight) | locals(),
                w.picture("weights.png", "four readings of w_m, what each paints", upper, lower))


def attention(w: Walk) -> str:
    """## 6. Cross-attention with w_m

    Every position of a level reads the words, and w_m scales what it reads (section 3.3):

    `RW-Attn = m'_c V, m'_c = m_c * w_m, m_c = Softmax(Q K^T / sqrt(d))`
    <<ldm/attention.py: m_c = einsum(q, k,>> <<ldm/attention.py: m_c = m_c * rearrange(weight_map>>
    The finest level with cross-attention has {n} x {n} positions. In its last layer, m_c has
    {m_c.shape[1]} heads of {m_c.shape[2]} positions by {m_c.shape[3]} words, and rows that sum to 1
    within {one:.0e}. What this layer reads with w_m, here {low:.2f} to {high:.2f}, is w_m times
    what it reads without, within {error:.0e} of the largest value. A coarser level has the mean of
    w_m over the part of m in a cell.
    <<anomaly/reweight.py: maps.append(>>
    The sheet shows m_c in step {step}: the mean of the heads, summed over the words before e, over
    e_a, over e_s, and over the words behind e. Black is 0, white is 1, and the percentages are
    means over the positions. The finer level reads e where the burn is.
    """
    # found: positions -> m_c of the last layer that has so many, the layer, what it was called with
    found, reads, rows, before, step = {}, [], [], w.steps[w.half - 1], w.half + 1

    def keep(layer: CrossAttention, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        q = rearrange(layer.to_q(inputs[0]), "b i (h d) -> b h i d", h=layer.heads) * layer.scale
        k = rearrange(layer.to_k(inputs[1]), "b j (h d) -> b h j d", h=layer.heads)
        found[q.shape[2]] = (q @ k.mT).softmax(dim=-1), layer, inputs
    for layer in filter(lambda each: isinstance(each, CrossAttention), w.sd.unet.modules()):
        layer.register_forward_hook(keep)
    maps = reweight.pyramid(reweight.adaptive(w.d, w.m), w.m, w.sd.unet.config.levels)
    w.sd.unet(before.x, torch.tensor([before.t_prev]), w.context, maps)
    for w_m in (each[0] for each in reversed(maps) if each.numel() in found):   # coarse to fine
        m_c, layer, inputs = found[w_m.numel()]
        parts = [part.sum(-1) for part in m_c[0].mean(dim=0).tensor_split(w.cuts, dim=-1)]
        rows += [{f"w_m, {len(w_m)} x {len(w_m)}": heat(w_m, 3)} | {
            f"{name}: {part.mean():.0%}": heat(part.view_as(w_m))
            for name, part in zip(("before e", "e_a", "e_s", "behind e"), parts)}]
    layer.to_out.register_forward_pre_hook(lambda _, read: reads.append(*read))
    layer(*inputs), layer(*inputs[:2])      # of the finest level: with w_m, without
    error = (reads[0] - w_m.view(1, -1, 1) * reads[1]).abs().max() / reads[0].abs().max()
    low, high, n, one = w_m.min(), w_m.max(), len(w_m), (m_c.sum(-1) - 1).abs().max()
    return told(attention, locals(), w.picture("attention.png", "m_c as heat maps", *rows[::-1]))


def result(w: Walk) -> str:
    """## 7. Back into the photograph

    The last x is decoded, resized to the {w.square.side} pixels of the crop, and pasted under the
    mask. <<anomaly/pairs/composite.py: out.colours[rows, columns] = >>
    Outside the mask {outside} values differ from y. Inside, the mean change is {inside:.2f} on a
    scale from 0 (none) to 1 (black to white). {sheet}
    This page is the output of `python docs/walkthrough.py` on a CPU, from a run of
    {w.run.config[options][steps]} steps a defect with the embedded checkpoint
    (`python tools/train_embed.py`).
    """
    image = w.sd.vae.decode(w.steps[-1].x)[0]
    y = photographs.Photograph(w.y, white=255)
    pair = composite.composite(y, w.mask, w.square, image)
    after = pair.seen
    outside, inside = (after != w.y)[~w.mask].sum(), composite.change(y, pair, w.mask)
    sheet = w.picture("result.jpg", "the photograph, the decoded crop and the pair", {
        "y": w.y, "the last x, decoded": sheets.to_pixels(image), "image of the pair": after,
        "its mask": heat(torch.from_numpy(w.mask)), "image, close": crop.cut(after, w.square)})
    return told(result, locals())


def main(argv: list[str] | None = None) -> None:
    """Write the page and its pictures; exit 2 with one line if the run is at fault."""
    parser = argparse.ArgumentParser(description="Write docs/walkthrough.md from a run of the demo")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="from train_embed.py")
    parser.add_argument("--steps", type=int, default=10, choices=(4, 10, 20, 50), help="of DDIM")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (default: docs)")
    args = parser.parse_args(argv)
    try:
        w = Walk(args.run, args.steps, args.out)
        page = [section(w) for section in (crops, learning, painting, weights, attention, result)]
    except (FileNotFoundError, ValueError) as err:
        parser.exit(2, f"walkthrough.py: {err}\n")
    (args.out / "walkthrough.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(args.out / "walkthrough.md")


if __name__ == "__main__":
    main()
