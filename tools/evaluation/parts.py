"""Which photographs show the same part: they are never divided between learning and testing."""

import csv
import logging
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomaly.files.names import shown, text_of
from anomaly.progress import Report, each
from evaluation.labelled import Labelled

SIDE = 256      # pixels to which the longest side of all is brought; all are shrunk as much
NEAR = 1 / 8    # of SIDE: how far two photographs of a part may be shifted
CHUNK = 64      # photographs that one is compared with at a time
log = logging.getLogger("anomaly.evaluation")       # the tools show the packages' remarks
SAME = 0.5      # correlation; on 126 tiles the same part gives 0.53 to 0.98, others 0.42 at most


def _blur(x: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)


def _details(photograph: Labelled, scale: float) -> Tensor:
    """Fine structure at equal contrast everywhere, without the defect: (2 SIDE, 2 SIDE), norm 1."""
    size = [max(1, round(n * photograph.side * scale)) for n in photograph.pixels.shape[1::-1]]
    grey, mask = (torch.from_numpy(np.array(Image.fromarray(x).convert("L").resize(
        size, Image.Resampling.BOX))).float()[None, None]
        for x in (photograph.pixels, (photograph.marked > 0).astype(np.uint8) * 255))
    h = _blur(grey, 1) - _blur(grey, 3)
    h = h / (_blur(h.square(), 6).sqrt() + 0.5)
    h = h * (F.max_pool2d(mask, 7, stride=1, padding=3) == 0)
    h = F.pad(F.pad(h, [-2] * 4), [2] * 4) if min(size) > 4 else h      # edges are all alike
    out = torch.zeros(2 * SIDE, 2 * SIDE)
    out[:size[1], :size[0]] = F.normalize(h.flatten(), dim=0).view(h.shape[2:])
    return out


def near_duplicates(photographs: list[Labelled], report: Report) -> list[tuple[int, int]]:
    """Pairs of photographs that show the same surface, by their numbers; the first is earlier.

    Same: their details outside the defects correlate by more than SAME at a shift of at most NEAR.
    Photographs of a printed design look alike, too: named parts go before this.
    """
    longest = max(max(p.pixels.shape[:2]) * p.side for p in photographs)
    near, found = round(NEAR * SIDE), []
    earlier: dict[str, list[tuple[int, Tensor]]] = {}      # by object: number and spectrum
    for i, photograph in each(enumerate(photographs), "looking for near-duplicates",
                              len(photographs), report):
        spectrum = torch.fft.rfft2(_details(photograph, SIDE / longest))
        before = earlier.setdefault(photograph.object, [])
        for start in range(0, len(before), CHUNK):
            numbers, spectra = zip(*before[start:start + CHUNK])
            r = torch.fft.irfft2(spectrum.conj() * torch.stack(spectra), (2 * SIDE, 2 * SIDE))
            r = r.roll((near, near), (1, 2))[:, :2 * near + 1, :2 * near + 1]
            found += [(numbers[j], i)
                      for j in torch.nonzero(r.flatten(1).amax(dim=1) > SAME).flatten().tolist()]
        before.append((i, spectrum))
    return found


def named_parts(paths: list[Path], parts: str | None) -> dict[Path, str]:
    """The part of each photograph that is named.

    parts: a CSV file with the columns image (a file name, or the end of a path) and part; or a
    regular expression whose first group, or all that it finds in DEFECT/NAME, is the part.
    """
    if parts is None:
        return {}
    if not parts.lower().endswith(".csv"):
        try:
            matches = {path: re.search(parts, f"{path.parent.name}/{path.name}")
                       for path in paths}
        except re.error as err:
            raise ValueError(f"--parts: {parts!r} is no regular expression ({err}); expected one, "
                             f"or a CSV file with the columns image and part") from None
        found = {path: m.group(1 if m.re.groups else 0) for path, m in matches.items() if m}
    else:
        if not Path(parts).is_file():
            raise FileNotFoundError(f"--parts: {parts}: no such file; expected a CSV file with the "
                                    f"columns image and part, or a regular expression")
        with open(parts, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image", "part"} <= set(reader.fieldnames or ()):
                raise ValueError(f"--parts: {parts}: its columns are "
                                 f"{', '.join(reader.fieldnames or '-')}; expected image and part, "
                                 f"with a comma between them")
            rows = [(text_of(row["image"]), row["part"]) for row in reader]
        ends = {path: f"/{text_of(path.as_posix())}" for path in paths}
        found = {path: part for path, end in ends.items() for image, part in rows
                 if end.endswith(f"/{image}")}
        astray = [image for image, _ in rows
                  if not any(end.endswith(f"/{image}") for end in ends.values())]
        if astray:
            log.info("%s: %d of %d rows name no photograph of --data; the first is %s", parts,
                     len(astray), len(rows), shown(astray[0]))
    if not found:
        raise ValueError(f"--parts: {parts} names the part of none of {len(paths)} photographs; "
                         f"mend it, the first is {paths[0].parent.name}/{paths[0].name}")
    return found


def grouped(paths: list[Path], named: dict[Path, str],
            same: list[tuple[int, int]]) -> dict[Path, int]:
    """The number of each photograph's part: by its name, where there is one, else by its looks."""
    group = list(range(len(paths)))
    by_name = defaultdict(list)
    for i, path in enumerate(paths):
        if path in named:
            by_name[named[path]].append(i)
    joined = [(some[0], i) for some in by_name.values() for i in some]
    joined += [(a, b) for a, b in same if paths[a] not in named or paths[b] not in named]
    for a, b in joined:
        low, high = sorted((group[a], group[b]))
        group = [low if g == high else g for g in group]
    return dict(zip(paths, group))
