"""What is shown of the posterior: tables and pictures of whether draws are right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ummcsgm.evaluation.calibration import subject_interval, uniformity
from ummcsgm.evaluation.ensemble import LEVEL, SAMPLER, VERSIONS, groups_of, ratio_of
from ummcsgm.evaluation.evaluate import Evaluation
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
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import write_atomic

RESAMPLES = 1000
FEWEST = 0.002  # of all voxels, in a bin of the reliability curve that is drawn
UNIT = "grey levels"
HEAD = (
    "missing", "draws", "CRPS", "CRPS of the mean", "spread-skill ratio",
    f"coverage of {LEVEL:.0%}", f"coverage of {LEVEL:.0%} by ranks", "p of flat ranks",
)  # fmt: skip


def write(evaluation: Evaluation, folder: Path) -> None:
    """`folder` holds calibration.md and the pictures of what was measured, if anything:
    reliability.png, ranks.png (and both of the recalibrated draws), uncertainty.png,
    and reliability_predicted.png of a network that predicts the variance."""
    records = evaluation.records
    if not records:
        return
    write_atomic(folder / "calibration.md", _page(evaluation))
    single = [r for r in records if r["missing"] == r["modality"]]
    order = evaluation.modalities.index
    single = sorted(single, key=lambda record: order(record["modality"]))
    for version in VERSIONS:
        own = [record for record in single if record[version] is not None]
        end = "" if version == "raw" else f"_{version}"
        _write_curves(folder / f"reliability{end}.png", own, version, RELIABILITY)
        if own:
            ranks = {m: _ranks(v, version) for m, v in _by_modality(own).items()}
            write_rank_histograms(folder / f"ranks{end}.png", ranks)
    told = [record for record in single if record["predicted"] is not None]
    _write_curves(folder / "reliability_predicted.png", told, "predicted", PREDICTED)
    rows = _pictures(evaluation)
    if rows:
        write_uncertainty(folder / "uncertainty.png", rows)


def _write_curves(path: Path, records: list[dict], version: str, words: str) -> None:
    """The picture of reliability, a curve a modality, where any predicts a variance."""
    curves = {m: _reliability(v, version) for m, v in _by_modality(records).items()}
    if any(np.any(curve.expected) for curve in curves.values()):
        write_reliability(path, curves, UNIT, words)


def _by_modality(records: list[dict]) -> dict[str, list[dict]]:
    return {modality: those for (_, modality), those in groups_of(records).items()}


def _pictures(evaluation: Evaluation) -> list[Uncertainty]:
    """A row for each modality of the first subject that has pictures."""
    for kinds in evaluation.pictures.values():
        arrays = [kinds[kind] for kind in ("truth", "mean", "draws", "sd")]
        return [
            Uncertainty(modality, *(array[m] for array in arrays), 255.0)
            for m, modality in enumerate(evaluation.modalities)
            if kinds["truth"][m].any()
        ]
    return []


def _reliability(records: list[dict], version: str) -> Curve:
    sums = np.array([record[version]["reliability"] for record in records])
    if not sums.size:
        return Curve(*np.zeros((4, 0)))
    number = sums[..., 0].sum(axis=0)
    sums = sums[:, number >= max(FEWEST * number.sum(), 1)]
    predicted = sums[..., 1].sum(axis=0) / sums[..., 0].sum(axis=0)

    def errors(rows: Array) -> Array:
        return rows[..., 2].sum(axis=0) / np.maximum(rows[..., 0].sum(axis=0), 1)

    return Curve(predicted, errors(sums), *_interval(errors, sums))


def _ranks(records: list[dict], version: str) -> Curve:
    counts = np.array([record[version]["ranks"] for record in records], np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    expected = np.full(counts.shape[1], 1 / counts.shape[1])
    measured = shares.mean(axis=0)
    interval = _interval(lambda rows: rows.mean(axis=0), shares)
    return Curve(expected, measured, *interval)


def _interval(statistic: Callable[[Array], Array], values: Array) -> tuple[Array, Array]:
    """The central 90 % of a statistic over subjects; itself for one subject."""
    if len(values) < 2:
        return statistic(values), statistic(values)
    generator = np.random.default_rng(0)
    return subject_interval(generator, statistic, values, level=LEVEL, resamples=RESAMPLES)


def _page(evaluation: Evaluation) -> str:
    facts = evaluation.facts["calibration"]
    subjects = {r["subject"]: r["slices"] for r in evaluation.records}
    parts = [
        "# Is the uncertainty what it claims to be",
        f"{facts['draws']} draws by `{SAMPLER}` (1 + {evaluation.facts['few']} "
        f"evaluations) of each question, on {sum(subjects.values())} slices of "
        f"{len(subjects)} test subjects, in {UNIT} of the brain's voxels. CRPS is of "
        "the draws (fair) and of the network's mean, of which it is the mean absolute "
        "error; lower is better. The spread-skill ratio is 1 if calibrated, below 1 if "
        "draws are too alike. p of flat ranks: how likely rank histograms as uneven as "
        "these would be of calibrated draws. In brackets: 90 % of a bootstrap over "
        "subjects.",
    ]
    for modality in evaluation.modalities:
        rows = [r for r in facts["summaries"] if r["modality"] == modality]
        if rows:
            parts += _section(evaluation, modality, rows)
    if facts["predicted"]:
        parts += _predicted(evaluation)
    parts.append("\n".join(f"- {note}" for note in _notes(evaluation)))
    return "\n\n".join(parts) + "\n"


def _notes(evaluation: Evaluation) -> list[str]:
    fitted = (
        "Recalibrated: the draws respread about the network's own mean by a factor a "
        "modality, fitted on validation subjects alone (calibration.json). A factor of "
        "few subjects is as uncertain as its bracket says."
    )
    unfitted = "There is no validation subject to fit recalibration factors on."
    notes = [
        fitted if evaluation.facts["calibration"]["fits"] else unfitted,
        "MSE_k is the squared error of the mean of k draws, and the law E + V / k, of "
        "the error E of the network's mean and the variance V of the draws; E = V if "
        "calibrated, and one draw is then 3.01 dB below the mean.",
    ]
    for name in list(evaluation.pictures)[:1]:
        notes.append(f"uncertainty.png shows a slice of {name}, its draws as drawn.")
    return [*notes, RESEARCH_ONLY]


def _section(evaluation: Evaluation, modality: str, rows: list[dict]) -> list[str]:
    fit = evaluation.facts["calibration"]["fits"].get(modality)
    groups = groups_of(evaluation.records)
    several = any(row["energy"] is not None for row in rows)
    head = [*HEAD, "energy score"] if several else list(HEAD)
    lines = [head, ["---"] * len(head)]
    for row in rows:
        records = groups[row["missing"], modality]
        lines.append(_line(row, records)[: len(head)])
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


def _predicted(evaluation: Evaluation) -> list[str]:
    """What the variance is worth that the network predicts with its mean."""
    head = ["missing", "modality", "predicted sd", "RMSE of the mean", "ratio"]
    lines = [head, ["---"] * len(head)]
    groups = groups_of(evaluation.records)
    for row in evaluation.facts["calibration"]["predicted"]:
        records = groups[row["missing"], row["modality"]]
        pairs = [(r["predicted"]["variance"], r["mse_of_mean"]) for r in records]
        low, high = _interval(_root_of_ratio, np.array(pairs))
        numbers = [f"{np.sqrt(row[key]):.2f}" for key in ("variance", "error")]
        ratio = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
        lines.append([row["missing"], row["modality"], *numbers, ratio])
    words = (
        "The network's second head predicts the squared error of its mean in the same "
        "evaluation, without draws. Its root over that of the error is 1 if it is "
        "right on the whole, below 1 if it is too small; reliability_predicted.png "
        "tells whether it is so voxel by voxel."
    )
    return ["## The predicted variance", words, _markdown(lines)]


def _root_of_ratio(pairs: Array) -> Array:
    variance, error = pairs.mean(axis=0)
    return np.sqrt(variance / error) if error else np.float64("nan")


def _line(row: dict, records: list[dict]) -> list[str]:
    told = [r[row["version"]] for r in records if r[row["version"]] is not None]
    moments = np.array([[one["variance"], one["error"]] for one in told])
    low, high = _interval(lambda v: np.array(ratio_of(v, row["draws"])), moments)
    covered = np.array([one["coverage"] for one in told])
    least, most = _interval(lambda v: np.mean(v, axis=0), covered)
    return [
        row["missing"],
        row["version"],
        f"{row['crps']:.3f}",
        f"{row['mae_of_mean']:.3f}",
        f"{row['spread_skill']:.3f} ({low:.3f} to {high:.3f})",
        f"{row['coverage']:.3f} ({least:.3f} to {most:.3f})",
        f"{row['coverage_of_ranks']:.3f}",
        _flatness(np.array([one["ranks"] for one in told])),
        "–" if row["energy"] is None else f"{row['energy']:.3f}",
    ]


def _flatness(counts: Array) -> str:
    """The p-value of rank histograms [S, K + 1] that are flat but for chance."""
    try:
        return f"{uniformity(counts):.2g}"
    except InputError:  # too few subjects to say
        return "–"


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
