"""What is shown of the posterior: tables and pictures of whether draws are right."""

from pathlib import Path

import numpy as np

from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.reporting.plots import (
    PREDICTED,
    RELIABILITY,
    Curve,
    Uncertainty,
    write_rank_histograms,
    write_reliability,
    write_uncertainty,
)
from ummcsgm.utils.atomic_io import write_atomic

LEVEL = 0.9  # of the intervals whose coverage is counted
SAMPLER = "warm"
VERSIONS = ("raw", "recalibrated")  # of draws
UNIT = "grey levels"
HEAD = (
    "missing", "draws", "CRPS", "CRPS of the mean", "spread-skill ratio",
    f"coverage of {LEVEL:.0%}", f"coverage of {LEVEL:.0%} by ranks", "p of flat ranks",
)  # fmt: skip


def write(evaluation: dict, folder: Path) -> None:
    """`folder` holds calibration.md and the pictures of what was measured, if anything:
    reliability.png, ranks.png (and both of the recalibrated draws), uncertainty.png,
    and reliability_predicted.png of a network that predicts the variance."""
    records = evaluation["records"]
    if not records:
        return
    write_atomic(folder / "calibration.md", _page(evaluation))
    curves = evaluation["curves"]
    for version in VERSIONS:
        end = "" if version == "raw" else f"_{version}"
        _write_curves(folder / f"reliability{end}.png", curves["reliability"][version], RELIABILITY)
        ranks = {m: Curve(**curve) for m, curve in curves["ranks"][version].items()}
        if ranks:
            write_rank_histograms(folder / f"ranks{end}.png", ranks)
    predicted = curves["reliability"]["predicted"]
    _write_curves(folder / "reliability_predicted.png", predicted, PREDICTED)
    rows = _pictures(evaluation)
    if rows:
        write_uncertainty(folder / "uncertainty.png", rows)


def _write_curves(path: Path, curves: dict[str, dict], words: str) -> None:
    """The picture of reliability, a curve a modality, where any predicts a variance."""
    if any(np.any(curve["expected"]) for curve in curves.values()):
        write_reliability(path, {m: Curve(**c) for m, c in curves.items()}, UNIT, words)


def _pictures(evaluation: dict) -> list[Uncertainty]:
    """A row for each modality of the first subject that has pictures."""
    for kinds in evaluation["pictures"].values():
        arrays = [kinds[kind] for kind in ("truth", "mean", "draws", "sd")]
        return [
            Uncertainty(modality, *(array[m] for array in arrays), 255.0)
            for m, modality in enumerate(evaluation["modalities"])
            if kinds["truth"][m].any()
        ]
    return []


def _page(evaluation: dict) -> str:
    facts = evaluation["facts"]["calibration"]
    subjects = {r["subject"]: r["slices"] for r in evaluation["records"]}
    parts = [
        "# Is the uncertainty what it claims to be",
        f"{facts['draws']} draws by `{SAMPLER}` (1 + {evaluation['facts']['few']} "
        f"evaluations) of each question, on {sum(subjects.values())} slices of "
        f"{len(subjects)} test subjects, in {UNIT} of the brain's voxels. CRPS is of "
        "the draws (fair) and of the network's mean, of which it is the mean absolute "
        "error; lower is better. The spread-skill ratio is 1 if calibrated, below 1 if "
        "draws are too alike. p of flat ranks: how likely rank histograms as uneven as "
        "these would be of calibrated draws. In brackets: 90 % of a bootstrap over "
        "subjects.",
    ]
    for modality in evaluation["modalities"]:
        rows = [r for r in facts["summaries"] if r["modality"] == modality]
        if rows:
            parts += _section(evaluation, modality, rows)
    if facts["predicted"]:
        parts += _predicted(evaluation)
    parts.append("\n".join(f"- {note}" for note in _notes(evaluation)))
    return "\n\n".join(parts) + "\n"


def _notes(evaluation: dict) -> list[str]:
    fitted = (
        "Recalibrated: the draws respread about the network's own mean by a factor a "
        "modality, fitted on validation subjects alone (calibration.json). A factor of "
        "few subjects is as uncertain as its bracket says."
    )
    unfitted = "There is no validation subject to fit recalibration factors on."
    notes = [
        fitted if evaluation["facts"]["calibration"]["fits"] else unfitted,
        "MSE_k is the squared error of the mean of k draws, and the law E + V / k, of "
        "the error E of the network's mean and the variance V of the draws; E = V if "
        "calibrated, and one draw is then 3.01 dB below the mean.",
    ]
    for name in list(evaluation["pictures"])[:1]:
        notes.append(f"uncertainty.png shows a slice of {name}, its draws as drawn.")
    return [*notes, RESEARCH_ONLY]


def _section(evaluation: dict, modality: str, rows: list[dict]) -> list[str]:
    fit = evaluation["facts"]["calibration"]["fits"].get(modality)
    several = any(row["energy"] is not None for row in rows)
    head = [*HEAD, "energy score"] if several else list(HEAD)
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append(_line(row)[: len(head)])
    single = [row for row in rows if row["missing"] == modality]
    title = f"## {modality}"
    if fit is not None:
        title += f"\n\nFactor on the spread: {fit['factor']:.3f}"
        if fit["low"] is not None:
            title += f" ({fit['low']:.3f} to {fit['high']:.3f})"
        title += f", of {fit['subjects']} validation subject{'s'[: fit['subjects'] > 1]}."
    parts = [title, _markdown(lines)]
    if single:
        parts.append(_markdown(_law(single)))
    return parts


def _predicted(evaluation: dict) -> list[str]:
    """What the variance is worth that the network predicts with its mean."""
    head = ["missing", "modality", "predicted sd", "RMSE of the mean", "ratio"]
    lines = [head, ["---"] * len(head)]
    for row in evaluation["facts"]["calibration"]["predicted"]:
        numbers = [f"{np.sqrt(row[key]):.2f}" for key in ("variance", "error")]
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        lines.append([row["missing"], row["modality"], *numbers, ratio])
    words = (
        "The network's second head predicts the squared error of its mean in the same "
        "evaluation, without draws. Its root over that of the error is 1 if it is "
        "right on the whole, below 1 if it is too small; reliability_predicted.png "
        "tells whether it is so voxel by voxel."
    )
    return ["## The predicted variance", words, _markdown(lines)]


def _line(row: dict) -> list[str]:
    chance = row["flat_ranks_p"]
    skill, covered = (
        f"{row[key]:.3f} ({row[key + '_low']:.3f} to {row[key + '_high']:.3f})"
        for key in ("spread_skill", "coverage")
    )
    return [
        row["missing"],
        row["version"],
        f"{row['crps']:.3f}",
        f"{row['mae_of_mean']:.3f}",
        skill,
        covered,
        f"{row['coverage_of_ranks']:.3f}",
        "–" if chance is None else f"{chance:.2g}",
        "–" if row["energy"] is None else f"{row['energy']:.3f}",
    ]


def _law(rows: list[dict]) -> list[list[str]]:
    """MSE_k / what the law says, a column a k, and how far that is below the mean."""
    counts = [int(k) for k, *_ in rows[0]["law"]]
    head = ["draws", "E", *(f"MSE_{k} / law" for k in counts), "MSE_1 over E"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [f"{mse:.2f} / {law:.2f}" for _, mse, law in row["law"]]
        error, gap = row["mse_of_mean"], "–"
        if error > 0 and row["law"][0][1] > 0:
            gap = f"{10 * np.log10(row['law'][0][1] / error):.2f} dB"
        lines.append([row["version"], f"{error:.2f}", *cells, gap])
    return lines


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
