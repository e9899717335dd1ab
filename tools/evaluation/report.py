"""What came of an inspection, as one page that opens from the disk: the verdict first."""

import base64
import io
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from anomaly.files.atomic_files import replacing, write_text
from evaluation.labelled import Labelled
from evaluation.trials import BOTH, NUMBERS, REAL, SHUFFLED, WAYS, Trial, many_pasted
from evaluation.verdict import ablations, average_precisions, by_count, verdicts

TEMPLATE = Path(__file__).with_name("report.html")
COLOURS = dict(zip(WAYS, ("#444444", "#d97706", "#7c3aed", "#0f766e", "#9ca3af")))
SHOWN = 6           # photographs in a row
HEADS = dict(zip(NUMBERS, ("AUROC", "AP", "F1", "PRO", "image AUROC", "image AP",
                           "false alarms where half is found")))


def embedded(content: bytes, kind: str) -> str:
    """A picture in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels: np.ndarray) -> str:
    """A picture in a page."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=88)
    return embedded(content.getvalue(), "jpeg")


def curve(found: list[Trial]) -> bytes:
    """PNG: average precision of each way by the number of photographs, a panel a defect.

    Lines join the means of a count, dots are single detectors.
    """
    keys = list(found[0].tested)
    figure = Figure(figsize=(4.2 * len(keys), 3.6), layout="constrained")
    for axes, key in zip(np.atleast_1d(figure.subplots(1, len(keys), sharey=True)), keys):
        for k, way in enumerate(WAYS):
            points = [(count, [t.tested[key].numbers["pixel_ap"] for t in some if t.way == way])
                      for count, some in by_count(found)]
            style = {"color": COLOURS[way], "linestyle": ":" if way == SHUFFLED else "-"}
            for count, values in points:
                axes.scatter([count * 1.03 ** (k - 2)] * len(values), values, s=8, alpha=0.5,
                             color=COLOURS[way])
            axes.plot([count * 1.03 ** (k - 2) for count, _ in points],
                      [np.mean(values) for _, values in points], label=way, **style)
        counts = [count for count, _ in by_count(found)]
        axes.set(title=key, xscale="log", xlabel="photographs learned from", ylim=(0, None))
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("average precision of pixels")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def table(head: list[str], rows: list[list[str]]) -> str:
    """HTML, of cells that are HTML."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head),
             *("".join(f"<td>{cell}</td>" for cell in row) for row in rows)]
    return "<div class=wide><table>" + "".join(f"<tr>{line}</tr>" for line in lines) \
        + "</table></div>"


def tables(found: list[Trial]) -> str:
    """Every number, a table a defect and number of photographs."""
    out = []
    for count, some in by_count(found):
        for key in some[0].tested:
            def cell(way: str, name: str, of: list[Trial] = some, key: str = key) -> str:
                values = [t.tested[key].numbers[name] for t in of if t.way == way]
                return f"{np.mean(values):.2f} <small>({min(values):.2f} to {max(values):.2f})" \
                    "</small>"
            defective, good = some[0].draw.of(key)
            pairs = min(sum(p.key == key for p in t.draw.pairs) for t in some)
            out.append(f"<h3>{escape(key)}, {count} learned from, {pairs} pairs or more; "
                       f"{len(defective)} with it and {len(good)} without tested</h3>")
            out.append(table(["trained on", *HEADS.values()],
                             [[way, *(cell(way, name) for name in HEADS)]
                              for way in (*WAYS, *some[0].draw.ablated)]))
    return "".join(out)


def ablation_table(found: list[Trial]) -> str:
    """What each part of the method is worth; nothing without --ablation."""
    rows = [[escape(a.defect), str(a.photographs), escape(a.off), escape(a.against),
             f"{a.difference.before:.2f} -> {a.difference.after:.2f}",
             f"{escape(a.word)} {a.difference.interval}", str(a.pairs)] for a in ablations(found)]
    if not rows:
        return ""
    title = ("<h2>One part of the method off</h2><p>Average precision of detectors that learn from "
             "pairs alone; pairs that the gate calls doubtful are left out where it is on.</p>")
    return title + table(
        ["defect", "photographs", "off", "compared with", "AP", "without it", "pairs"], rows)


def confusion(found: list[Trial]) -> str:
    """Which defect of its object each test photograph is taken for; none where there is but one."""
    out = []
    keys = list(found[0].tested)
    for count, some in by_count(found):
        for way in (REAL, BOTH):
            counts = np.zeros((len(keys), len(keys)), int)
            for t in (t for t in some if t.way == way):
                for i, key in enumerate(keys):
                    np.add.at(counts[i], t.tested[key].classes, 1)
            several = [i for i, key in enumerate(keys)
                       if sum(k.split("/")[0] == key.split("/")[0] for k in keys) > 1]
            if several:
                part = counts[np.ix_(several, several)]
                names = [escape(key) for key in keys]
                head = ["shows, and is taken for:", *(names[i] for i in several)]
                out.append(f"<h3>{way}, {count} learned from: {part.trace() / part.sum():.0%} "
                           "right</h3>" + table(head, [[names[i], *map(str, counts[i, several])]
                                                       for i in several]))
    title = "<h2>Which defect it is</h2><p>Counts over detectors and test photographs.</p>"
    return title + "".join(out) if out else ""


def outlined(photograph: Labelled) -> np.ndarray:
    """Its pixels with a red line round what is marked."""
    m = np.pad(photograph.marked > 0, 1)
    near = m[:-2, 1:-1] | m[2:, 1:-1] | m[1:-1, :-2] | m[1:-1, 2:]
    out = photograph.pixels.copy()
    out[near & ~m[1:-1, 1:-1]] = 255, 64, 64
    return out


def pictures(found: list[Trial]) -> str:
    """Of each defect what was learned, pasted and painted; and what was found best and worst."""
    shown = [t for t in found if t.way == BOTH and t.seed == 0][-1]
    draw, out = shown.draw, []
    sets = {"learned from": draw.real, "pasted": many_pasted(draw, SHOWN), "painted": draw.pairs}
    for key, some in shown.tested.items():
        rows = {name: [outlined(p) for p in of if p.key == key][:SHOWN]
                for name, of in sets.items()}
        defective, _ = draw.of(key)
        alone = np.eye(len(some.found))[:len(defective)]
        order = np.argsort(-average_precisions(some.found, some.alarms, alone), kind="stable")
        for word, chosen in (("best", order[:SHOWN // 2]), ("worst", order[::-1][:SHOWN // 2])):
            rows[f"tested, {word} found: the photograph, and the detector's map"] = [
                tile for i in chosen for tile in (outlined(defective[i]), some.maps[i])]
        out.append(f"<h3>{escape(key)}, {draw.photographs} learned from</h3>")
        for name, tiles in rows.items():
            images = "".join(f'<img alt="{name}" src="{jpeg(tile)}">' for tile in tiles)
            out.append(f"<p>{name}</p><div class=row>{images}</div>")
    return "".join(out)


def write_report(found: list[Trial], settings: dict[str, object], path: Path) -> None:
    """The page, and the curve as curve.png beside it."""
    said = "".join(f"<p class=verdict>{escape(line)}</p>" for line in verdicts(found))
    drawn = curve(found)
    with replacing(path.with_name("curve.png")) as temporary:
        temporary.write_bytes(drawn)
    write_text(path, Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        verdicts=said, curve=embedded(drawn, "png"), tables=tables(found),
        ablations=ablation_table(found), settings=table(["option", "value"], [
            [escape(name), escape(", ".join(map(str, value)) if isinstance(value, list) else
                                  str(value))] for name, value in settings.items()
            if value not in (None, False)]),
        detectors=len([t for t in next(by_count(found))[1] if t.way == REAL]),
        confusion=confusion(found), pictures=pictures(found)))
