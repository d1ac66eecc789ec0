"""What a comparison shows: rows of numbers as tables, beside a figure.

A row is a dict with the keys of `COLUMNS`: the mean and the standard deviation over
`subjects` of one metric of one method's `modality`, when the modalities in `missing`
(their names joined by "+") are not given.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ummcsgm.reporting import coherence, uncertainty
from ummcsgm.reporting.cells import SCALES, distinct, number
from ummcsgm.reporting.figure import RESEARCH_ONLY, Panels, write_figure
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import json_without_nan, write_atomic

VERSIONS = ("raw", "recalibrated")  # of draws
SCALARS = ("crps", "variance", "error", "coverage", "coverage_of_ranks", "energy")
Row = dict[str, str | float | int]
COLUMNS = "method missing modality profile profile_hash metric mean sd subjects".split()
SUBJECT_COLUMNS = "subject group method missing modality slices".split()
SUBJECT_COLUMNS += "psnr ssim_global ssim_wang mae".split()
RECORD_COLUMNS = "subject group method draws slices missing modality voxels".split()
RECORD_COLUMNS += ["mae_of_mean", "mse_of_mean", "version", *SCALARS]
CELL = "PSNR in dB, SSIM global / Wang in %, MAE in grey levels of 0 to 255"


def method_labels(evaluations: int, few: int) -> dict[str, str]:
    """What a reader is shown for each method, in the order of a table's rows.

    `evaluations` is the number of network evaluations that Algorithm 1 was run with,
    `few` that of a warm start's steps.
    """
    return {
        "algorithm1": f"mm-CSN Algorithm 1, {evaluations} evaluations",
        "warm": f"mm-CSN warm start, 1 + {few} evaluations",
        "mean": "mm-CSN mean, 1 evaluation",
        "ridge2": "ridge, quadratic (floor)",
        "ridge": "ridge, linear (floor)",
    }


def write(evaluation: dict, folder: Path) -> None:
    """`folder` holds table.md, table.csv, subjects.csv, metrics.json and figure.png;
    calibration.csv and coherence.csv, and what `uncertainty.write` and
    `coherence.write` write, where draws were measured."""
    labels = method_labels(evaluation["facts"]["evaluations"], evaluation["facts"]["few"])
    write_csv(folder / "table.csv", evaluation["rows"], COLUMNS)
    write_csv(folder / "subjects.csv", evaluation["subjects"], SUBJECT_COLUMNS)
    write_table_markdown(
        folder / "table.md", evaluation["rows"], labels, notes(evaluation["facts"])
    )
    content = json_without_nan({"facts": evaluation["facts"], "rows": evaluation["rows"]})
    write_atomic(folder / "metrics.json", json.dumps(content, indent=1))
    write_figure(folder / "figure.png", _panels(evaluation, labels))
    if evaluation["records"]:
        lines = _record_lines(evaluation["records"])
        write_csv(folder / "calibration.csv", lines, RECORD_COLUMNS)
    uncertainty.write(evaluation, folder)
    rows = evaluation["facts"]["coherence"]["summaries"]
    if rows:
        write_csv(folder / "coherence.csv", rows, coherence.COLUMNS)
    coherence.write(evaluation, folder)


def _record_lines(records: list[dict]) -> list[Row]:
    """A line for each record and version of its draws."""
    return [
        record | {"version": version} | record[version]
        for record in records
        for version in VERSIONS
        if record[version] is not None
    ]


def notes(facts: dict) -> list[str]:
    """What a reader must know of how the numbers came about, a sentence each."""
    lines = [
        f"{facts['test_subjects']} test subjects; checkpoint of step {facts['step']}. "
        "The floors and the mean answer for every scored slice.",
        "Every method is given the truth's own intensity scale and brain mask; where a "
        "scan is really missing, these are estimated from the others.",
    ]
    unscored = facts["questions"] - facts["scored"]
    if unscored:
        lines.append(
            f"{facts['scored']} of {facts['questions']} questions were asked: for the "
            f"other {unscored} a subject lacks the truth, or all else. What a subject "
            "was never scanned with is missing in each of its questions."
        )
    for key, title in (("algorithm1", "Algorithm 1"), ("warm", "The warm start")):
        drawn = facts[key]
        if drawn["subjects"]:
            lines.append(_same_slices(title, drawn))
    if facts["coherence"]["summaries"]:
        lines.append(coherence.sentence(facts))
    return lines


def _same_slices(title: str, drawn: dict) -> str:
    draw, mean = (np.mean(list(drawn[k].values())) for k in ("psnr", "psnr_of_mean"))
    return (
        f"{title} answers for {drawn['slices']} slices of "
        f"{drawn['subjects']} subjects. There, over the single questions, its PSNR "
        f"is {draw:.2f} dB and that of the mean on the same slices {mean:.2f} dB; "
        "a perfect sampler's draw is 3.01 dB below a perfect mean."
    )


def _panels(evaluation: dict, labels: dict[str, str]) -> Panels:
    shown = list(evaluation["panels"].values())
    methods = [m for m in labels if all(m in panels for panels in shown)]
    return Panels(
        tuple(evaluation["panels"]),
        evaluation["modalities"],
        np.stack([panels["truth"] for panels in shown]),
        {labels[m]: np.stack([panels[m] for panels in shown]) for m in methods},
    )


def write_csv(path: Path, rows: list[Row], columns: Sequence[str]) -> None:
    """`path` holds the rows as they are, in full precision, under `columns`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows)
    write_atomic(path, text.getvalue())


def write_table_markdown(
    path: Path, rows: list[Row], labels: dict[str, str], notes: list[str]
) -> None:
    """`path` holds the tables of every profile in `rows`, then `notes` as a list.

    Like the paper's Table 1: a row a method, a column a modality, for the questions
    with one modality missing; then, where there are any, those with more missing. The
    best of each column is bold, as far as the printed digits tell. `labels` gives each
    method's name for readers, and the order.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("a table wants at least one row of numbers, and there is none.")
    parts = ["# Completion of missing modalities"]
    for profile in distinct(row["profile"] for row in rows):
        parts.append(f"## Profile `{profile}`")
        parts += _tables([row for row in rows if row["profile"] == profile], labels)
    parts.append("\n".join(f"- {note}" for note in [*notes, RESEARCH_ONLY]))
    write_atomic(path, "\n\n".join(parts) + "\n")


def _tables(rows: list[Row], labels: dict[str, str]) -> list[str]:
    """The table of one missing modality and the table of more, each with its legend."""
    single = [row for row in rows if _size(row) == 1]
    several = [row for row in rows if _size(row) > 1]
    parts = []
    if single:
        counts = sorted(row["subjects"] for row in single)
        subjects = " to ".join(distinct([str(counts[0]), str(counts[-1])]))
        parts.append(
            f"One modality missing, the others given: {CELL}; mean ± standard "
            f"deviation over {subjects} subject{'s' * (counts[-1] > 1)}."
        )
        parts.append(_table(single, labels))
    if several:
        parts.append(
            f"More modalities missing: {CELL}; each number is the mean over the "
            "configurations with so many missing that the column is among, n the "
            "number of subjects' answers in it."
        )
        parts.append(_table(several, labels))
    return parts


def _table(rows: list[Row], labels: dict[str, str]) -> str:
    """A Markdown table: a line for each number missing (unless one) and method."""
    columns = distinct(row["modality"] for row in rows)
    order = distinct([*labels, *(row["method"] for row in rows)])
    head = ["missing", "method", *columns]
    lines = [head, ["---"] * len(head)]
    for size in sorted({_size(row) for row in rows}):
        rivals = [row for row in rows if _size(row) == size]
        for method in sorted({row["method"] for row in rivals}, key=order.index):
            cells = [_cell(rivals, method, column) for column in columns]
            lines.append([str(size), labels.get(method, method), *cells])
    start = 1 if all(_size(row) == 1 for row in rows) else 0
    return "\n".join(f"| {' | '.join(line[start:])} |" for line in lines)


def _cell(rows: list[Row], method: str, modality: str) -> str:
    """PSNR, SSIM global / Wang and MAE of a method, each bold where it is the best; and
    how many answers they average, where they are of several questions."""
    of_modality = [row for row in rows if row["modality"] == modality]
    psnr, ssim_global, ssim_wang, mae = (
        _number([row for row in of_modality if row["metric"] == metric], method)
        for metric in SCALES
    )
    text = f"{psnr}<br>{ssim_global} / {ssim_wang}<br>{mae}"
    own = [r for r in of_modality if (r["method"], r["metric"]) == (method, "psnr")]
    count = sum(row["subjects"] for row in own)
    return f"{text}<br>n = {count}" if own and _size(own[0]) > 1 else text


def _number(rows: list[Row], method: str) -> str:
    """A method's mean ± sd among the `rows` of one metric in one column."""
    cell = number(rows, method)
    return f"**{cell.text}**" if cell.best else cell.text


def _size(row: Row) -> int:
    """How many modalities are missing."""
    return len(row["missing"].split("+"))
