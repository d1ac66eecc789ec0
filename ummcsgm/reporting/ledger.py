"""The tables beside the scores: tests, costs, losses, and what a run was made of."""

import math
from typing import Any

from ummcsgm.reporting.cells import LESS, NONE, SCALES, Cell, Table, distinct, shown
from ummcsgm.reporting.runs import Run
from ummcsgm.reporting.tables import METRICS, name_heads, name_words

SURE = "Paired over subjects; Holm's p values below 0.05 are marked."
LESS_IS_BETTER = "Less is better: what is below 0 speaks for the first."


def significance(run: Run) -> list[Table]:
    """A table a metric: differences over subjects, with intervals and p values."""
    titles, tables = run.titles(), []
    for metric in distinct(row["metric"] for row in run.tests):
        own = [row for row in run.tests if row["metric"] == metric]
        references = [titles.get(r["reference"], r["reference"]) for r in own]
        title = METRICS.get(metric, metric.upper()).split(" (")[0]
        words = f"{title}: {' or '.join(distinct(references))} minus each method"
        head = ("method", "modality", "n", "difference", "95 % interval", "p", "Holm p")
        lines = tuple(_test_line(row, titles) for row in own)
        notes = (LESS_IS_BETTER,) if metric in LESS else ()
        folded = metric != "psnr"
        tables.append(Table(words, head, lines, (*notes, SURE), 2, folded))
    return tables


def costs(runs: list[Run]) -> list[Table]:
    """The table of what each method costs."""
    head = ("parameters", "GFLOP", "training, s", "steps", "images seen", "s a slice")
    keys = ("parameters", "gflop", "train_seconds", "steps", "images_seen")
    keys += ("seconds_per_slice",)
    digits = (0, 2, 0, 0, 0, 4)
    lines = []
    for run in runs:
        for method in run.methods:
            if not method.get("costs"):
                continue
            values = [method["costs"].get(key) for key in keys]
            numbers = map(shown, values, digits)
            lines.append((*name_words(runs, (run.name, method["name"])), *numbers))
    if not lines:
        return []
    cells = tuple(tuple(map(_cell, line)) for line in lines)
    note = "GFLOP are of one forward pass of one slice as the method answers with it."
    words = name_heads(runs)
    return [Table("Costs", (*words, *head), cells, (note,), len(words))]


def maps(run: Run) -> list[Table]:
    """What the draws say of where the tumour is, beside what the mean image says."""
    rows = run.downstream.get("maps", []) if run.downstream else []
    if not rows:
        return []
    words = "Where the tumour is: the mean over draws of its probability, or one image's"
    head = ("map", "replaced", "region", "n", "Dice, %", "Brier", "calibration error")
    lines = tuple(
        (
            *(Cell(row[key]) for key in ("map", "modality", "region")),
            Cell(shown(row["subjects"], 0)),
            Cell(NONE if row["dice"] is None else shown(100 * row["dice"], 1)),
            Cell(shown(row["brier"], 4)),
            Cell(shown(row["calibration"], 4)),
        )
        for row in rows
    )
    note = (
        "Of the probability of each voxel: Brier's score, and how far it is from the "
        "frequency of what it says, on the average. Of both less is better."
    )
    skipped = max(row["skipped"] for row in rows)
    without = f"Dice is that of subjects with the region: up to {skipped} have it not."
    return [Table(words, head, lines, (note, *[without] * (skipped > 0)), 3, True)]


def logs(runs: list[Run]) -> Table | None:
    """The table of training losses."""
    lines = []
    for run in runs:
        for name, points in run.logs.items():
            first, last, low = points[0, 1], points[-1, 1], points[:, 1].min()
            numbers = (shown(points[-1, 0], 0), *(f"{v:.4g}" for v in (first, last)))
            title = run.trained().get(name, name)
            words = (run.name, title) if len(runs) > 1 else (title,)
            lines.append(tuple(map(_cell, (*words, *numbers, f"{low:.4g}"))))
    head = (*name_heads(runs), "step", "first loss", "last loss", "lowest")
    note = "A loss compares a method with itself only: each has a loss of its own."
    count = len(name_heads(runs))
    return Table("Training", head, tuple(lines), (note,), count) if lines else None


def facts(runs: list[Run], values: dict[str, list[Any]], caption: str) -> Table:
    """A line for each of `values`, which has one value a run."""
    head = ("", *(run.name for run in runs))
    lines = tuple(
        (Cell(key), *(_cell(NONE if v is None else v) for v in own)) for key, own in values.items()
    )
    return Table(caption, head, lines, names=len(head))


def _test_line(row: dict, titles: dict[str, str]) -> tuple[Cell, ...]:
    scale = SCALES.get(row["metric"], 1)
    difference, low, high = (scale * row[key] for key in ("difference", "low", "high"))
    interval = f"{low:+.2f} to {high:+.2f}" if math.isfinite(low + high) else NONE
    change = f"{difference:+.2f}" if math.isfinite(difference) else NONE
    words = (titles.get(row["method"], row["method"]), row["modality"])
    numbers = (row["subjects"], change, interval, chance(row["p"]))
    sure = row["p_holm"] < 0.05
    return (*map(_cell, (*words, *numbers)), Cell(chance(row["p_holm"]), sure))


def chance(p: float) -> str:
    """A p value with the digits that matter; a dash where there is none."""
    if not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _cell(value: Any) -> Cell:
    return Cell(str(value))
