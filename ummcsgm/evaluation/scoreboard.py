"""Scores as tables: on the terminal, and as Markdown, CSV and JSON.

Each number stands beside the name of its profile and the hash of its definition.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ummcsgm.evaluation.metrics import mean_and_sd
from ummcsgm.evaluation.protocols import PROFILES
from ummcsgm.utils.atomic_io import json_without_nan, write_atomic
from ummcsgm.utils.console import print_table

COLUMNS = "subject modality kind profile profile_hash metric value".split()
SKIPPED = "subject modality kind profile profile_hash metric reason".split()
SHOWN = ("modality", "profile", "hash", "scores", "subjects", "skipped")
Key = tuple[str, str, str, str, str]  # kind, modality, profile, hash, metric


@dataclass(frozen=True)
class Board:
    """All that was measured: `rows` and `skipped` a subject each, their `summary`."""

    rows: list[dict]
    skipped: list[dict]
    summary: list[dict]
    failures: list[str]


def summarise(rows: list[dict], skipped: list[dict]) -> list[dict]:
    """A row a kind, modality, profile and metric: mean and standard deviation (that of
    a sample) over subjects, how many these are, and how many were skipped, by reason.

    A subject's draws count as one, at their mean: the kind is then "draw".
    """
    values: dict[Key, dict[str, list[float]]] = {}
    reasons: dict[Key, dict[str, str]] = {}
    for row in [*rows, *skipped]:
        values.setdefault(_key(row), {})
    for row in rows:
        values[_key(row)].setdefault(row["subject"], []).append(row["value"])
    for row in skipped:
        reasons.setdefault(_key(row), {})[row["subject"]] = row["reason"]
    return [
        {
            **dict(zip(("kind", "modality", "profile"), key[:3], strict=True)),
            **{"profile_hash": key[3], "metric": key[4]},
            **mean_and_sd([float(np.mean(each)) for each in own.values()]),
            "skipped": dict(collections.Counter(reasons.get(key, {}).values())),
        }
        for key, own in sorted(values.items(), key=lambda item: _place(item[0]))
    ]


def show(title: str, summary: list[dict]) -> None:
    """Prints a line a kind, modality and profile."""
    print_table(title, SHOWN, _lines(summary))


def write(folder: Path, board: Board, notes: list[str]) -> None:
    """`folder` holds scores.csv with a row a subject and metric, scores.md with the
    summary, and scores.json with all there is."""
    content = {
        "summary": board.summary,
        "rows": board.rows,
        "skipped": board.skipped,
        "failures": board.failures,
        "notes": notes,
        "profiles": {profile.name: profile.text for profile in PROFILES},
    }
    write_atomic(folder / "scores.json", json.dumps(json_without_nan(content, str), indent=1))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(board.rows)
    write_atomic(folder / "scores.csv", text.getvalue())
    table = [SHOWN, ["---"] * len(SHOWN), *_lines(board.summary)]
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in table]
    lines += ["", *[f"- {sentence}" for sentence in [*board.failures, *notes]], ""]
    lines += [f"**{profile.name}**: {profile.text}\n" for profile in PROFILES]
    write_atomic(folder / "scores.md", "\n".join(lines))


def _key(row: dict) -> Key:
    kind = "draw" if row["kind"].startswith("draw-") else row["kind"]
    about = (row["modality"], row["profile"], row["profile_hash"], row["metric"])
    return (kind, *about)


def _place(key: Key) -> tuple:
    """Kinds and modalities by name, profiles and metrics in their own order."""
    names = [profile.name for profile in PROFILES]
    place = names.index(key[2])
    metrics = [measure.name for measure in PROFILES[place].measures]
    return key[0], key[1], place, metrics.index(key[4])


def _lines(summary: list[dict]) -> list[list[str]]:
    """The cells under SHOWN: the metrics of a profile together."""
    groups: dict[tuple, list[dict]] = {}
    for row in summary:
        key = (row["kind"], row["modality"], row["profile"], row["profile_hash"])
        groups.setdefault(key, []).append(row)
    return [
        [
            f"{modality} {kind}".strip(),
            profile,
            mark,
            ", ".join(_cell(row) for row in rows if row["subjects"]),
            str(max(row["subjects"] for row in rows)),
            "; ".join(_reasons(rows)),
        ]
        for (kind, modality, profile, mark), rows in groups.items()
    ]


def _cell(row: dict) -> str:
    digits = 2 if row["metric"] in ("psnr", "mae") else 4
    spread = f" ± {row['sd']:.{digits}f}" if math.isfinite(row["sd"]) else ""
    return f"{row['metric']} {row['mean']:.{digits}f}{spread}"


def _reasons(rows: list[dict]) -> list[str]:
    """How many subjects were skipped, why, and which metrics where not all were."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        for reason, count in row["skipped"].items():
            found.setdefault((reason, count), []).append(row["metric"])
    return [
        f"{count} {reason}" + f" ({', '.join(metrics)})" * (len(metrics) < len(rows))
        for (reason, count), metrics in found.items()
    ]
