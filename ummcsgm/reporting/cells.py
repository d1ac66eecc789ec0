"""Numbers as a table shows them, and the tables and sections a report is made of."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCALES = {"psnr": 1, "ssim_global": 100, "ssim_wang": 100, "mae": 1}  # as printed
FACTORS = SCALES | {"crps": 1, "dice": 100}
LESS = ("mae", "crps")  # of these less is better
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A number as printed, whether it is the best of its column, and what is printed
    below it, smaller."""

    text: str
    best: bool = False
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, the names of columns, lines of cells, and sentences below them.

    The first `names` columns are words, the others numbers. A `folded` table is one
    that a reader opens.
    """

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    names: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Words:
    """A paragraph. Its `kind` is "warning" if nobody should overlook it, "run" if it
    names the run of what follows, else empty."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """Lines of text as they are, under a title that opens them, or already has."""

    title: str
    text: str
    opened: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG on disk, and what it shows in words."""

    path: Path
    words: str


@dataclass(frozen=True)
class Curves:
    """Lines of points [n, 2], (step, loss), each under its label, in one plot."""

    title: str
    lines: dict[str, np.ndarray]


@dataclass(frozen=True)
class Slices:
    """The arrays that Figure 2 is drawn from.

    A file a subject; titles of the methods in the figure's order, by name; and where
    the figure of one slice lies, for readers who cannot move a slider.
    """

    title: str
    paths: dict[str, Path]
    modalities: tuple[str, ...]
    methods: dict[str, str]
    still: Path | None


Block = Table | Words | Points | Listing | Picture | Curves | Slices


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]


def number(rows: Sequence[dict], method: Hashable, digits: int = 2) -> Cell:
    """A method's mean ± sd among the `rows` of one metric in one column.

    Of several rows of a method, their mean. The best is the best as printed, among the
    methods whose rows are of the most subjects and, where that is told, slices.
    """
    own = [row for row in rows if row["method"] == method]
    if not own:
        return Cell(NONE)
    metric = own[0]["metric"]
    scale = FACTORS[metric]
    # rounded before they are compared: what is printed alike is bold alike
    means = {
        rival: round(scale * _mean(rows, rival), digits)
        for rival in distinct(row["method"] for row in rows)
        if _asked(rows, rival) == _asked(rows, method)
    }
    text = shown(means[method], digits)
    if len(own) == 1 and math.isfinite(own[0]["sd"]):
        text += f" ± {scale * own[0]['sd']:.{digits}f}"
    best = np.fmin if metric in LESS else np.fmax
    first = means[method] == best.reduce(list(means.values()))
    whole = all(_much(rows, r["method"]) <= _much(rows, method) for r in rows)
    return Cell(text, bool(first and whole and len(means) > 1))


def _asked(rows: Sequence[dict], method: Hashable) -> Counter:
    """Of how many subjects and slices a method's rows are."""
    own = [row for row in rows if row["method"] == method]
    return Counter((row["subjects"], row.get("slices")) for row in own)


def _much(rows: Sequence[dict], method: Hashable) -> tuple[int, int]:
    """How many subjects and slices they are in all."""
    asked = _asked(rows, method)
    subjects = sum(count * own for (own, _), count in asked.items())
    return subjects, sum(count * (own or 0) for (_, own), count in asked.items())


def shown(value: Any, digits: int = 2) -> str:
    """A number with so many digits and its thousands apart; a dash where there is
    none."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:,.{digits}f}" if known else NONE


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def _mean(rows: Sequence[dict], method: Hashable) -> float:
    return float(np.mean([row["mean"] for row in rows if row["method"] == method]))
