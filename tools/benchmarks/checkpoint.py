"""bench.py checkpoint: what the embedded checkpoint can do. The tables of weights/tiny/README.md.

The VAE on pictures it has not seen; whether place words put a defect where they say; the three demo defects,
learned and painted with the tools' defaults, against the real ones; generated masks against the generator's own.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from scipy.stats import ks_2samp

import train_embed
from anomaly.crop import Crop, cut, to_image
from anomaly.dataset import Defect, image_files, read_example, read_photograph
from anomaly.embedding import AnomalyEmbedding
from anomaly.mask_model import mask_picture, parts, sample_masks
from anomaly.output import run as runs
from anomaly.output.console import Progress
from anomaly.output.generate import Settings, context_of, paint_crops
from anomaly.output.quality import colour_share, elongation, overlap
from anomaly.output.synthetic.defects import THIN
from anomaly.output.synthetic.demo import FRAME
from anomaly.output.synthetic.pictures import draw_scene, pairs
from anomaly.output.synthetic.products import PRODUCTS
from anomaly.sampler import STEPS, Guidance, ddim
from benchmarks.material import BATCH, material
from benchmarks.segmenter import accuracy, quadrants, train_segmenter
from benchmarks.tables import table
from ldm.model import StableDiffusion
from pretraining.autoencoder import encode_all, quality
from pretraining.diffusion import TEXT_GUIDANCE
from pretraining.pictures import PictureSet, picture_set
from sample import load_learner
from weights import load

UNSEEN, SEED = 500, 1 << 30         # pictures that no training has seen
IMAGES, SEEDS = 32, 3               # painted a defect; their noises
MASKS = 200                         # drawn a defect
LIKE, COPY = 0.1, 0.9               # a mask distance above the training masks' own; an overlap that is a copy
CORNERS = ("top left", "top right", "bottom left", "bottom right")
OPPOSITE = dict(zip(CORNERS, reversed(CORNERS)))


def photographs(folder: Path, pixels: int) -> PictureSet:
    """The middle squares of a category's photographs, shrunk; no masks are needed."""
    files = [path for kind in sorted((folder / "test").iterdir()) for path in image_files(kind)]
    images = []
    for path in files:
        photograph = read_photograph(path)
        height, width = photograph.shape[:2]
        side = min(height, width)
        square = cut(photograph, Crop((width - side) // 2, (height - side) // 2, side))
        images.append(((to_image(square, pixels) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return PictureSet(np.stack(images), np.ones((len(files), pixels, pixels), dtype=bool), [""] * len(files))


def is_mask_picture(image: np.ndarray, mask: np.ndarray) -> bool:
    """True if the picture is nothing but its mask, white on black."""
    return bool((image == np.where(mask, 255, 0)[..., None]).all())


def subset(pictures: PictureSet, some: list[int]) -> PictureSet:
    """Some of the pictures."""
    return PictureSet(pictures.images[some], pictures.masks[some], [pictures.captions[i] for i in some])


def autoencoder_rows(sd: StableDiffusion, unseen: PictureSet) -> list[list[str]]:
    """Reconstruction of drawn pictures and, where DEFECT_PHOTOS names a data set, of photographs."""
    thin = [i for i, caption in enumerate(unseen.captions) if set(caption.split()) & set(THIN)]
    sets = {"drawn photographs": unseen, "those with a thin defect": subset(unseen, thin)}
    if "DEFECT_PHOTOS" in os.environ:
        sets["photographs of DEFECT_PHOTOS"] = photographs(Path(os.environ["DEFECT_PHOTOS"]), sd.native_size)
    rows = []
    for name, found in sets.items():
        values = quality(sd.vae, found, str(sd.device))
        deviations = encode_all(sd.vae, found.images, str(sd.device)).float().std(dim=(0, 2, 3))
        inside = f"{values['PSNR in masks']:.1f} dB" if found.captions[0] else ""
        rows.append([name, str(len(found.images)), f"{values['PSNR']:.1f} dB", inside, f"{values['colour error']:.4f}",
                     ", ".join(f"{s:.2f}" for s in deviations)])
    return rows


def placed(sd: StableDiffusion) -> tuple[float, float]:
    """(the segmenter's own accuracy, share of 64 text-to-image samples with the defect in the named corner)."""
    net = train_segmenter(SEED + 1)
    kinds = []      # two a product, in rotation, so that every kind occurs
    for number, product in enumerate(PRODUCTS):
        known = [defect for p, defect in pairs() if p == product]
        kinds += [(product, known[i % len(known)]) for i in (2 * number, 2 * number + 1)]
    prompts = [(f"a photo of {product} with small {'red ' if defect == 'stain' else ''}{defect} {corner}", corner)
               for product, defect in kinds for corner in CORNERS]
    noise = torch.randn((len(prompts), 4, *[sd.unet.config.sample_size] * 2),
                        generator=torch.Generator().manual_seed(0))
    right, uncond = 0, sd.context("")
    with Progress("text to image", len(prompts)) as progress, torch.no_grad():
        for i in range(0, len(prompts), BATCH):
            context = torch.cat([sd.context(prompt) for prompt, _ in prompts[i:i + BATCH]])
            latents = ddim(sd, noise[i:i + BATCH].to(sd.device), context, Guidance(TEXT_GUIDANCE, uncond), STEPS)
            found = quadrants(net, sd.vae.decode(latents).clamp(-1, 1).cpu())
            right += sum(place == corner for place, (_, corner) in zip(found, prompts[i:i + BATCH]))
            for _ in found:
                progress.step()
    return accuracy(net, SEED), right / len(prompts)


@torch.no_grad()
def wrong_places(sd: StableDiffusion, unseen: PictureSet) -> tuple[float, float]:
    """Mean and standard error of loss(opposite corner's caption) - loss(own caption), paired: same t and noise."""
    some = [i for i, caption in enumerate(unseen.captions) if caption.endswith(CORNERS)]
    x_0 = encode_all(sd.vae, unseen.images[some], str(sd.device)).float().to(sd.device)
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(x_0.shape, generator=generator).to(sd.device)
    t = ((torch.arange(len(some)) + 0.5) / len(some) * sd.schedule.config.train_timesteps).long().to(sd.device)
    t = t[torch.randperm(len(some), generator=generator)]
    x_t, target = sd.schedule.q_sample(x_0, t, eps), sd.schedule.target(x_0, t, eps)
    losses = []
    for swap in (False, True):
        texts = [unseen.captions[i] for i in some]
        if swap:
            texts = [" ".join(words[:-2] + [OPPOSITE[" ".join(words[-2:])]]) for words in map(str.split, texts)]
        context = torch.cat([sd.context(text) for text in texts])
        out = torch.cat([sd.unet(*batch) for batch in zip(*(x.split(BATCH) for x in (x_t, t, context)))])
        losses.append((out - target).square().mean(dim=(1, 2, 3)))
    difference = (losses[1] - losses[0]).double()
    return float(difference.mean()), float(difference.std() / len(some) ** 0.5)


def demo_row(sd: StableDiffusion, run: runs.Run, defect: Defect, learner: AnomalyEmbedding) -> list[str]:
    """Share of the way to the real defect in mean colour, with the tools' defaults."""
    scene = material(sd, "checkpoint", defect.object, defect.name, IMAGES, run.config["size"])
    settings = Settings(run.config["size"], STEPS, Guidance(runs.load_guidance(run, defect), sd.context("")),
                        runs.load_module(run, "latent_to_rgb")["latent_to_rgb"], None)
    shares = []
    with Progress(f"painting {defect.key}", IMAGES * SEEDS) as progress:
        for seed in range(SEEDS):
            noise = torch.randn((IMAGES, 4, *scene.cells.shape[1:]), generator=torch.Generator().manual_seed(seed))
            painted = []
            for i in range(0, IMAGES, BATCH):
                crops = scene.normal[i:i + BATCH]
                context = context_of(sd, learner, defect.stem, scene.masks[i:i + BATCH])
                painted.append(paint_crops(sd, crops, context, noise[i:i + BATCH], settings))
                for _ in painted[-1]:
                    progress.step()
            to_go, whole = colour_share(torch.cat(painted), scene.normal_seen, scene.real_seen, scene.masks)
            shares.append(float(1 - to_go.mean() / whole.mean()))
    return [defect.key, f"{np.mean(shares):.2f}", " ".join(f"{share:.2f}" for share in shares)]


Distances = dict[str, float]


def distances(found: list[np.ndarray], fresh: list[np.ndarray], factor: int) -> Distances:
    """Kolmogorov-Smirnov distances of area and elongation, total variation of the number of parts."""
    def count(mask: np.ndarray) -> int:         # no mask at all is of area 0, elongation 1 and no parts
        return parts(torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), factor)[0].bool().numpy())
    numbers: dict[str, Callable] = {"area": np.mean, "elongation": elongation}
    out = {name: float(ks_2samp([f(m) for m in found], [f(m) for m in fresh]).statistic)
           for name, f in numbers.items()}
    counts = [np.bincount([count(m) for m in masks], minlength=1024) / len(masks) for masks in (found, fresh)]
    return out | {"parts": float(np.abs(counts[0] - counts[1]).sum() / 2)}


def alike(found: Distances, own: Distances) -> bool:
    """True if every distance is at most LIKE above that of the training masks themselves."""
    return all(found[name] <= own[name] + LIKE for name in own)


def crop_masks(masks: list[np.ndarray], size: int, factor: int) -> list[np.ndarray]:
    """Masks as the mask model sees them."""
    return [mask_picture(mask, size, factor).mask.numpy() for mask in masks]


def mask_rows(sd: StableDiffusion, run: runs.Run) -> list[list[str]]:
    """Generated masks, none refused, against fresh ones of the generator; beside them others of each kind."""
    size, factor = run.config["size"], sd.vae.config.factor
    rows, fresh, more = [], {}, {}
    for defect in run.defects:
        rng = np.random.default_rng(crc32(f"masks/{defect.key}".encode()))
        drawn = crop_masks([draw_scene(rng, defect.object, defect.name).render(FRAME)[1]
                            for _ in range(2 * MASKS)], size, factor)
        fresh[defect.key], more[defect.key] = drawn[:MASKS], drawn[MASKS:]
    for defect in run.defects:
        training = crop_masks([read_example(e)[1] for e in defect.examples], size, factor)
        e_m = runs.load_vectors(run, "mask_embeddings", defect).to(sd.device)
        noise = torch.randn((MASKS, 4, size // factor, size // factor), generator=torch.Generator().manual_seed(0))
        drawn: list[np.ndarray] = []
        with Progress(f"masks of {defect.key}", MASKS) as progress:
            for part in noise.split(BATCH):
                drawn += list(sample_masks(sd, e_m, part.to(sd.device), STEPS).numpy())
                progress.done = len(drawn)
        own = distances(training, fresh[defect.key], factor)
        others = {f"the generator's {d.name}": more[d.key] for d in run.defects}
        for name, masks in {"training masks": training, "generated": drawn, **others}.items():
            found = distances(masks, fresh[defect.key], factor)
            new = np.mean([mask.any() and max(overlap(mask, old) for old in training) < COPY for mask in masks])
            rows.append([defect.key, name, str(len(masks)), str(sum(not mask.any() for mask in masks)),
                         *(f"{value:.2f}" for value in found.values()), "yes" if alike(found, own) else "no",
                         f"{new:.0%}"])
    return rows


def main() -> None:
    """Print every table; minutes on two cores are in the model card."""
    sd = load("tiny")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = picture_set(Path(scratch) / "pictures", SEED, UNSEEN, sd.native_size)
        # Flat white and black is easy to reconstruct, and where it is white is all that a mask's caption says.
        unseen = subset(drawn, [i for i in range(UNSEEN) if not is_mask_picture(drawn.images[i], drawn.masks[i])])
        table(["reconstruction of", "number", "PSNR", "inside masks", "colour error", "latent deviations"],
              autoencoder_rows(sd, unseen))
        own, share = placed(sd)
        worse, error = wrong_places(sd, unseen)
        table(["place words", "figure"], [
            ["defect in the named corner, of 64 samples", f"{share:.0%}"],
            ["the segmenter's own accuracy on drawn pictures", f"{own:.0%}"],
            ["held-out loss with the opposite corner, above that with the right one",
             f"{worse:.5f} (standard error {error:.5f})"],
            ["that is more than two standard errors", "yes" if worse > 2 * error else "no"]])
        train_embed.main(["--out", f"{scratch}/run"])
        run = runs.read_run(Path(scratch) / "run")
        learners = {"learned": load_learner(run, sd, run.defects),
                    "as it starts": AnomalyEmbedding(sd, run.defects, seed=0).requires_grad_(False)}
        table(["embedding", "defect", "share of the way in colour", "with each noise"],
              [[name, *demo_row(sd, run, defect, learner)] for name, learner in learners.items()
               for defect in run.defects])
        table(["defect", "masks", "number", "empty", "area", "elongation", "parts", "alike", "new"],
              mask_rows(sd, run))
