"""The tables of a study, and of several beside one another.

A method of a run is the pair (run's name, method's name), so that one table can hold
several runs.
"""

import math
from collections.abc import Iterator

from ummcsgm.reporting.cells import NONE, SCALES, Cell, Table, distinct, number, shown
from ummcsgm.reporting.runs import Rows, Run

Key = tuple[str, str]
METRICS = {
    "psnr": "PSNR, dB (more is better)",
    "ssim_global": "SSIM with one window over the image, % (more is better)",
    "ssim_wang": "SSIM of Wang et al., % (more is better)",
    "mae": "MAE, grey levels of 0 to 255 (less is better)",
}
LOCAL = {"truth": "the truth", "zeros": "nothing (zeros)"}  # beside the methods
MEAN = "mean"


def same_questions(runs: list[Run]) -> bool:
    """Whether all runs were scored on the same subjects of the same data."""
    if len(runs) == 1:
        return True
    hashes = {tuple(run.facts.get(key) for key in ("split_sha256", "data_sha256")) for run in runs}
    return len(hashes) == 1 and None not in hashes.pop()


def table1(runs: list[Run]) -> list[Table]:
    """A table a profile and metric of the questions with one modality missing."""
    rows = [row for row in _scores(runs) if _size(row) == 1]
    tables = []
    for profile in distinct(row["profile"] for row in rows):
        for letter, (metric, title) in zip("abcd", METRICS.items(), strict=True):
            own = [r for r in rows if (r["profile"], r["metric"]) == (profile, metric)]
            if own:
                caption = f"Table 1{letter}: {title}{_profile(rows, profile)}"
                tables.append(_by_modality(runs, own, caption, _paper(runs, metric)))
    return tables


def several(runs: list[Run]) -> list[Table]:
    """A table a metric of the questions with more missing, by how many are."""
    rows = [row for row in _scores(runs) if _size(row) > 1]
    tables = []
    for profile in distinct(row["profile"] for row in rows):
        for metric, title in METRICS.items():
            own = [r for r in rows if (r["profile"], r["metric"]) == (profile, metric)]
            if own:
                caption = f"{title}{_profile(rows, profile)}"
                tables.append(_by_size(runs, own, caption, metric != "psnr"))
    return tables


def crps(runs: list[Run]) -> list[Table]:
    """The table of how far each predicted law is from the truth."""
    rows = [row | {"metric": "crps"} for run in runs for row in _keyed(run, run.crps)]
    if not rows:
        return []
    caption = "CRPS in the brain, grey levels of 0 to 255 (less is better)"
    note = (
        "Of a method that gives one image it is the mean absolute error; of draws the "
        "fair CRPS, which does not depend on how many there are."
    )
    return [_by_modality(runs, rows, caption, {}, (note,))]


def downstream(runs: list[Run]) -> list[Table]:
    """A table a region: how well a segmentation does with one modality replaced."""
    rows = [
        row | {"metric": "dice", "mean": row["dice"]}
        for run in runs
        if run.downstream
        for row in _keyed(run, run.downstream["rows"])
    ]
    tables = []
    for region in distinct(row["region"] for row in rows):
        own = [row for row in rows if row["region"] == region]
        skipped = sorted({row.get("skipped", 0) for row in own})
        note = f"Subjects without {region}, left out: {_span(skipped)}."
        caption = f"Dice, %: {region}; in each column that modality is replaced"
        notes = (note,) if skipped[-1] else ()
        tables.append(_by_modality(runs, own, caption, {}, notes))
    return tables


def name_words(runs: list[Run], key: Key) -> tuple[str, ...]:
    """The words of a method's line: its run's if there are several, and its title."""
    run = next(run for run in runs if run.name == key[0])
    title = (run.titles() | LOCAL).get(key[1], key[1])
    return (key[0], title) if len(runs) > 1 else (title,)


def name_heads(runs: list[Run]) -> tuple[str, ...]:
    """What stands over those words."""
    return ("run", "method") if len(runs) > 1 else ("method",)


def _by_modality(
    runs: list[Run],
    rows: Rows,
    caption: str,
    paper: dict[tuple[str, str], str],
    notes: tuple[str, ...] = (),
) -> Table:
    """A line a method, a column a modality, and their mean if there are several."""
    columns = distinct(row["modality"] for row in rows)
    head = (*name_heads(runs), *columns)
    whole = _complete(rows, columns) if len(columns) > 1 else []
    lines = []
    for key in _order(runs, rows):
        cells = []
        for column in columns:
            cell = _score(runs, rows, key, column)
            said = paper.get((key[1], column), "")
            cells.append(Cell(cell.text, cell.best, said and f"paper {said}"))
        if whole:
            cells.append(_score(runs, whole, key, MEAN))
        lines.append((*map(Cell, name_words(runs, key)), *cells))
    lines += _paper_alone(runs, lines and rows, columns, paper)
    head = (*head, *([MEAN] if whole else []))
    filled = tuple(line + (Cell(NONE),) * (len(head) - len(line)) for line in lines)
    subjects = _span(sorted({row["subjects"] for row in rows}))
    several = "" if subjects == "1" else "s"
    note = f"Mean ± standard deviation over {subjects} subject{several}."
    if paper:
        notes = (*notes, "Below a number, the paper's, of its own data and networks.")
    return Table(caption, head, filled, (note, *notes), len(name_heads(runs)))


def _by_size(runs: list[Run], rows: Rows, caption: str, folded: bool) -> Table:
    """A line for each number missing and method, a column a modality."""
    columns, lines = distinct(row["modality"] for row in rows), []
    for size in sorted({_size(row) for row in rows}):
        rivals = [row for row in rows if _size(row) == size]
        for key in _order(runs, rivals):
            cells = [_score(runs, rivals, key, column) for column in columns]
            lines.append((Cell(str(size)), *map(Cell, name_words(runs, key)), *cells))
    head = ("missing", *name_heads(runs), *columns)
    note = "Means over the configurations with so many missing."
    words = 1 + len(name_heads(runs))
    return Table(caption, head, tuple(lines), (note,), words, folded)


def _paper(runs: list[Run], metric: str) -> dict[tuple[str, str], str]:
    """The paper's numbers as printed, by method and modality."""
    return {
        (row["method"], row["modality"]): _plain(row)
        for run in runs
        for row in run.paper
        if row["metric"] == metric
    }


def _plain(row: dict) -> str:
    scale, sd = SCALES.get(row["metric"], 1), row.get("sd", math.nan)
    end = f" ± {scale * sd:.2f}" if math.isfinite(sd) else ""
    return shown(scale * row["mean"]) + end


def _paper_alone(
    runs: list[Run], rows: Rows, columns: list[str], paper: dict[tuple[str, str], str]
) -> Iterator[tuple[Cell, ...]]:
    """Lines of methods that only the paper has numbers of."""
    ours = {row["method"][1] for row in rows}
    for name in distinct(name for name, _ in paper):
        if name not in ours:
            title = next((run.titles().get(name, name) for run in runs), name)
            blank = [Cell("")] * (len(name_heads(runs)) - 1)
            numbers = (Cell(paper.get((name, column), NONE)) for column in columns)
            yield (*blank, Cell(f"{title} (paper)"), *numbers)


def _complete(rows: Rows, columns: list[str]) -> Rows:
    """The rows of methods that have one in every column, as those of one more."""
    asked = {(row["method"], row["modality"]) for row in rows}
    return [
        row | {"modality": MEAN, "subjects": 0}
        for row in rows
        if all((row["method"], column) in asked for column in columns)
    ]


def _score(runs: list[Run], rows: Rows, key: Key, column: str) -> Cell:
    """A method's number in a column, compared with all, or where data differ with its
    own run's."""
    rows = [row for row in rows if row["modality"] == column]
    if key[1] in LOCAL:
        return number([row for row in rows if row["method"] == key], key)
    rows = [row for row in rows if row["method"][1] not in LOCAL]
    if not same_questions(runs):
        rows = [row for row in rows if row["method"][0] == key[0]]
    return number(rows, key)


def _scores(runs: list[Run]) -> Rows:
    return [row for run in runs for row in _keyed(run, run.rows)]


def _keyed(run: Run, rows: Rows) -> Rows:
    """`rows` of a run with the method told from another run's."""
    return [row | {"method": (run.name, row["method"])} for row in rows]


def _order(runs: list[Run], rows: Rows) -> list[Key]:
    """The methods that have rows: run by run, as their tables are ordered."""
    listed = [(run.name, name) for run in runs for name in [*LOCAL, *run.titles()]]
    found = distinct(row["method"] for row in rows)
    return [k for k in distinct([*listed, *found]) if k in found]


def _profile(rows: Rows, profile: str) -> str:
    """The end of a caption where there are several profiles to tell apart."""
    several = len({row["profile"] for row in rows}) > 1
    return f"; profile {profile}" if several else ""


def _size(row: dict) -> int:
    return len(row["missing"].split("+"))


def _span(counts: list[int]) -> str:
    return " to ".join(distinct([str(counts[0]), str(counts[-1])]))
