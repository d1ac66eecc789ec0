"""The files of WORKDIR/evaluation, from the dict that `evaluation.evaluate` documents.

table.md, table.csv, subjects.csv, metrics.json, figure.png    always
calibration.md, calibration.csv, reliability*.png, ranks*.png, uncertainty.png    of draws
structure.csv, structure.png                                   of draws, by scale
lesions.csv, lesions.png                                       of draws, in segmented lesions
two_sample.csv, two_sample.png                                 of draws, told from truths
coherence.md, coherence.csv, coherence.json, coherence.png     of neighbouring slices
"""

import json
from pathlib import Path

import numpy as np

from ummcsgm.reporting.document import Bullets, Document, Paragraph, Section, write_markdown
from ummcsgm.reporting.figures import (
    PREDICTED,
    RELIABILITY,
    RESEARCH_ONLY,
    Panels,
    write_coronal,
    write_figure,
    write_lesions,
    write_rank_histograms,
    write_reliability,
    write_structure,
    write_two_sample,
    write_uncertainty,
)
from ummcsgm.reporting.study_results import StudyResults
from ummcsgm.reporting.tables import (
    NONE,
    Table,
    distinct,
    lesion_tables,
    lesions_skipped,
    several_missing_tables,
    single_missing_tables,
    structure_tables,
    two_sample_tables,
    write_csv,
)
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import json_without_nan, write_atomic

SCORE_COLUMNS = "method missing modality profile profile_hash metric mean sd subjects".split()
SUBJECT_COLUMNS = "subject group method missing modality slices".split()
SUBJECT_COLUMNS += "psnr ssim_global ssim_wang mae".split()
DRAW_COLUMNS = "subject group method draws slices missing modality voxels".split()
DRAW_COLUMNS += "mae_of_mean mse_of_mean".split()
DRAW_COLUMNS += "crps variance error coverage coverage_of_ranks energy".split()
STRUCTURE_COLUMNS = "missing modality score scale subjects value low high".split()
LESION_COLUMNS = "subject group modality region slice voxels pattern image".split()
LESION_COLUMNS += "mean p90 enhancement".split()
TWO_SAMPLE_COLUMNS = "modality subjects patches auc low high".split()
TWO_SAMPLE_COLUMNS += "control_auc control_low control_high skipped".split()
COHERENCE_COLUMNS = "modality image rho subjects lag_one sd_ratio".split()
COHERENCE_COLUMNS += "gradient gradient_error coronal_ssim".split()
STRUCTURE_TEXT = (
    "Whether draws vary as truths do at every scale. The mean plus white noise of the right "
    "variance is calibrated voxel by voxel, and fails here: its power at low frequencies is too "
    "small, and so is the spread of its block means. structure.png shows both."
)
LESION_TEXT = (
    "Whether a lesion changes from draw to draw as it does from truth to truth: each connected "
    "part of a segmented tumour on the slices that were drawn, with its modality alone missing. "
    "lesions.png shows it, lesions.csv has every number."
)
TWO_SAMPLE_TEXT = (
    "A small network is trained to tell draws from truths, on patches of half of the test "
    "subjects, and asked about those of the other half. two_sample.png shows the patches that it "
    "is surest of."
)
ALL_MODALITIES = "all"  # the rows of coherence that pool all modalities


def write_evaluation(evaluation: dict, folder: Path) -> None:
    """Writes the files of an evaluation to `folder`; those of draws and of slabs where any were
    measured."""
    facts = evaluation["facts"]
    titles = method_titles(facts["evaluations"], facts["few"])
    write_csv(folder / "table.csv", evaluation["rows"], SCORE_COLUMNS)
    write_csv(folder / "subjects.csv", evaluation["subjects"], SUBJECT_COLUMNS)
    write_scores(folder / "table.md", evaluation["rows"], titles, _score_notes(facts))
    content = json_without_nan({"facts": facts, "rows": evaluation["rows"]})
    write_atomic(folder / "metrics.json", json.dumps(content, indent=1))
    write_figure(folder / "figure.png", _panels(evaluation, titles))
    if evaluation["records"]:
        write_calibration(evaluation, folder)
    if facts["coherence"]["summaries"]:
        write_coherence(evaluation, folder)


def method_titles(algorithm1_steps: int, sampler_steps: int) -> dict[str, str]:
    """The printed name of each method, in the order of a table's rows."""
    return {
        "algorithm1": f"mm-CSN Algorithm 1, {algorithm1_steps} evaluations",
        "warm": f"mm-CSN warm start, 1 + {sampler_steps} evaluations",
        "mean": "mm-CSN mean, 1 evaluation",
        "ridge2": "ridge, quadratic (floor)",
        "ridge": "ridge, linear (floor)",
    }


def write_scores(path: Path, rows: list[dict], titles: dict[str, str], notes: list[str]) -> None:
    """Writes the tables of `rows` as Markdown, then `notes` as a list.

    Like the paper's Table 1, a table for each metric: with one modality missing, then,
    where there are any, with more missing. The best of each column is bold, as far as the
    printed digits tell. `titles` gives each method's printed name, and the order.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("a table wants at least one row of numbers, and there is none.")
    methods = [{"name": name, "title": title} for name, title in titles.items()]
    study = [StudyResults(name="", methods=methods, rows=rows)]
    profiles = distinct(f"{row['profile']} ({row['profile_hash']})" for row in rows)
    notes = [f"Metrics of profile {', '.join(profiles)}.", *notes, RESEARCH_ONLY]
    tables = {
        "One modality missing, the others given": single_missing_tables(study),
        "More modalities missing": several_missing_tables(study),
    }
    sections = [Section(title, tuple(blocks)) for title, blocks in tables.items() if blocks]
    sections.append(Section("Notes", (Bullets(tuple(notes)),)))
    write_markdown(path, Document("Completion of missing modalities", (), tuple(sections)))


def _score_notes(facts: dict) -> list[str]:
    """How the scores were obtained, a sentence each."""
    notes = [
        f"{facts['test_subjects']} test subjects; checkpoint of step {facts['step']}. "
        "The floors and the mean were computed for every scored slice.",
        "Every method is given the truth's own intensity scale and brain mask; where a "
        "scan is really missing, these are estimated from the others.",
    ]
    unscored = facts["questions"] - facts["scored"]
    if unscored:
        notes.append(
            f"{facts['scored']} of {facts['questions']} missing patterns were scored: for the "
            f"other {unscored} a subject lacks the truth, or every given modality. A modality "
            "that a subject was never scanned with is missing in all its patterns."
        )
    for key, title in (("algorithm1", "Algorithm 1"), ("warm", "The warm start")):
        sampled = facts[key]
        if sampled["subjects"]:
            draw, mean = (
                np.mean(list(sampled[name].values())) for name in ("psnr", "psnr_of_mean")
            )
            notes.append(
                f"{title} was run on {sampled['slices']} slices of "
                f"{sampled['subjects']} subjects. There, with one modality missing, its PSNR "
                f"is {draw:.2f} dB and that of the mean on the same slices {mean:.2f} dB; "
                "a perfect sampler's draw is 3.01 dB below a perfect mean."
            )
    if facts["coherence"]["summaries"]:
        notes.append(_coherence_note(facts["coherence"]["summaries"]))
    return notes


def _panels(evaluation: dict, titles: dict[str, str]) -> Panels:
    panels = list(evaluation["panels"].values())
    methods = [name for name in titles if all(name in subject for subject in panels)]
    return Panels(
        tuple(evaluation["panels"]),
        evaluation["modalities"],
        np.stack([subject["truth"] for subject in panels]),
        {titles[name]: np.stack([subject[name] for subject in panels]) for name in methods},
    )


def write_calibration(evaluation: dict, folder: Path) -> None:
    """Writes calibration.md, calibration.csv and structure.csv, and the figures of what was
    measured: reliability.png, ranks.png, structure.png, lesions.png (with lesions.csv),
    two_sample.png (with two_sample.csv), uncertainty.png, and reliability_predicted.png of a
    network that predicts the variance."""
    write_csv(folder / "calibration.csv", evaluation["records"], DRAW_COLUMNS)
    write_markdown(folder / "calibration.md", _calibration_document(evaluation))
    summaries = evaluation["facts"]["calibration"]["summaries"]
    write_csv(folder / "structure.csv", _structure_rows(summaries), STRUCTURE_COLUMNS)
    single = {
        row["modality"]: row["structure"] for row in summaries if row["missing"] == row["modality"]
    }
    if single:
        write_structure(folder / "structure.png", single)
    if evaluation["lesions"]:
        _write_lesions(evaluation, folder)
    if evaluation["facts"]["two_sample"]:
        write_csv(folder / "two_sample.csv", evaluation["facts"]["two_sample"], TWO_SAMPLE_COLUMNS)
    if evaluation["two_sample"]:
        write_two_sample(folder / "two_sample.png", evaluation["two_sample"])
    for name, file, caption in (
        ("reliability", "reliability.png", RELIABILITY),
        ("predicted", "reliability_predicted.png", PREDICTED),
    ):
        curves = evaluation["curves"][name]
        if any(np.any(curve["expected"]) for curve in curves.values()):
            write_reliability(folder / file, curves, "grey levels", caption)
    if evaluation["curves"]["ranks"]:
        write_rank_histograms(folder / "ranks.png", evaluation["curves"]["ranks"])
    for images in list(evaluation["pictures"].values())[:1]:
        scanned = images["truth"].any(axis=(1, 2))
        modalities = [name for name, m in zip(evaluation["modalities"], scanned, strict=True) if m]
        if modalities:
            images = {name: array[scanned] for name, array in images.items()}
            write_uncertainty(folder / "uncertainty.png", modalities, images)


def _write_lesions(evaluation: dict, folder: Path) -> None:
    """Writes lesions.csv and lesions.png."""
    rows = evaluation["lesions"]
    write_csv(folder / "lesions.csv", rows, LESION_COLUMNS)
    percentiles: dict[str, dict[str, np.ndarray]] = {}
    for modality in distinct(row["modality"] for row in rows):
        own = [row for row in rows if row["modality"] == modality]
        percentiles[modality] = {
            name: np.array([row["p90"] for row in own if row["image"].split()[0] == image])
            for name, image in (("truth", "truth"), ("mean", "mean"), ("draws", "draw"))
        }
    enhancement = evaluation["facts"]["lesions"]["enhancement"] or {}
    write_lesions(folder / "lesions.png", enhancement.get("reliability", []), percentiles)


def _lesion_section(lesions: dict) -> Section:
    """The tables of lesions, and which subjects have none."""
    lacking = tuple(lesions_skipped(lesions))
    blocks = [
        Paragraph(LESION_TEXT),
        *lesion_tables(lesions),
        *([Bullets(lacking)] * bool(lacking)),
    ]
    return Section("Lesions", tuple(blocks))


def _structure_rows(summaries: list[dict]) -> list[dict]:
    """A row for each number of the summaries' `structure`; its scale is a band of cycles a
    pixel, or the side of a block in pixels."""
    rows = []
    for summary in summaries:
        labels = {key: summary[key] for key in ("missing", "modality")}
        for part, scale in (("power", "band"), ("blocks", "size")):
            for numbers in summary["structure"][part]:
                subjects = numbers.get("subjects", summary["subjects"])
                where = labels | {"scale": numbers[scale], "subjects": subjects}
                for score in (key for key in numbers if f"{key}_low" in numbers):
                    ends = {end: numbers[f"{score}_{end}"] for end in ("low", "high")}
                    name = f"{part}_{score}"
                    rows.append(where | ends | {"score": name, "value": numbers[score]})
    return rows


def _calibration_document(evaluation: dict) -> Document:
    facts = evaluation["facts"]["calibration"]
    subjects = {record["subject"]: record["slices"] for record in evaluation["records"]}
    opening = (
        f"{facts['draws']} draws by the warm start (1 + {evaluation['facts']['few']} "
        f"evaluations) with the same modalities missing, on {sum(subjects.values())} slices of "
        f"{len(subjects)} test subjects, in grey levels of the brain's voxels. CRPS is of "
        "the draws (fair) and of the network's mean, of which it is the mean absolute "
        "error; lower is better. The spread-skill ratio is 1 if calibrated, below 1 if "
        "draws are too alike. p of flat ranks: how likely rank histograms as uneven as "
        "these would be of calibrated draws. In brackets: 90 % of a bootstrap over subjects."
    )
    sections = []
    for modality in evaluation["modalities"]:
        rows = [row for row in facts["summaries"] if row["modality"] == modality]
        if rows:
            sections.append(_calibration_section(modality, rows))
    if facts["summaries"]:
        blocks = Paragraph(STRUCTURE_TEXT), *structure_tables(facts["summaries"])
        sections.append(Section("Structure of the draws", blocks))
    if evaluation["facts"]["lesions"]:
        sections.append(_lesion_section(evaluation["facts"]["lesions"]))
    tables = two_sample_tables(evaluation["facts"]["two_sample"])
    if tables:
        blocks = Paragraph(TWO_SAMPLE_TEXT), *tables
        sections.append(Section("Draws told from truths", blocks))
    if facts["predicted"]:
        sections.append(_predicted_variance_section(facts["predicted"]))
    notes = [
        "MSE_k is the squared error of the mean of k draws, and the law E + V / k, of "
        "the error E of the network's mean and the variance V of the draws; E = V if "
        "calibrated, and one draw is then 3.01 dB below the mean.",
    ]
    for name in list(evaluation["pictures"])[:1]:
        notes.append(f"uncertainty.png shows a slice of {name}.")
    sections.append(Section("Notes", (Bullets((*notes, RESEARCH_ONLY)),)))
    title = "Calibration of the uncertainty"
    return Document(title, (Paragraph(opening),), tuple(sections))


def _calibration_section(modality: str, rows: list[dict]) -> Section:
    columns = {
        "missing": lambda row: row["missing"],
        "CRPS": lambda row: f"{row['crps']:.3f}",
        "CRPS of the mean": lambda row: f"{row['mae_of_mean']:.3f}",
        "spread-skill ratio": lambda row: _with_interval(row, "spread_skill"),
        "coverage of 90%": lambda row: _with_interval(row, "coverage"),
        "coverage of 90% by ranks": lambda row: f"{row['coverage_of_ranks']:.3f}",
        "p of flat ranks": lambda row: _optional(row["flat_ranks_p"], ".2g"),
    }
    if any(row["energy"] is not None for row in rows):
        columns["energy score"] = lambda row: _optional(row["energy"], ".3f")
    lines = [[print_value(row) for print_value in columns.values()] for row in rows]
    laws = [_law_table(row) for row in rows if row["missing"] == modality]
    return Section(modality, (Table("", columns, lines), *laws))


def _law_table(row: dict) -> Table:
    """MSE_k / what the law says, a column for each k, and how far MSE_1 is above the mean's."""
    columns = ["E", *(f"MSE_{int(k)} / law" for k, *_ in row["law"]), "MSE_1 over E"]
    errors = [f"{mse:.2f} / {law:.2f}" for _, mse, law in row["law"]]
    error, first, gap = row["mse_of_mean"], row["law"][0][1], NONE
    if error > 0 and first > 0:
        gap = f"{10 * np.log10(first / error):.2f} dB"
    return Table("", columns, [[f"{error:.2f}", *errors, gap]])


def _predicted_variance_section(rows: list[dict]) -> Section:
    text = (
        "The network's second head predicts the squared error of its mean in the same "
        "evaluation, without draws. Its root over that of the error is 1 if it is "
        "right on the whole, below 1 if it is too small; reliability_predicted.png "
        "shows whether it is so voxel by voxel."
    )
    columns = ("missing", "modality", "predicted sd", "RMSE of the mean", "ratio")
    lines = [
        (
            *(row["missing"], row["modality"]),
            *(f"{np.sqrt(row[key]):.2f}" for key in ("variance", "error")),
            _with_interval(row, "ratio"),
        )
        for row in rows
    ]
    table = Table("", columns, lines, label_columns=2)
    return Section("The predicted variance", (Paragraph(text), table))


def write_coherence(evaluation: dict, folder: Path) -> None:
    """Writes coherence.md, coherence.csv, coherence.json and coherence.png of the slabs."""
    facts = evaluation["facts"]["coherence"]
    records = [record for slab in evaluation["slabs"].values() for record in slab["records"]]
    content = {"facts": facts, "records": records}
    write_csv(folder / "coherence.csv", facts["summaries"], COHERENCE_COLUMNS)
    write_atomic(folder / "coherence.json", json.dumps(content, indent=1))
    shown = [name for name, slab in evaluation["slabs"].items() if slab["pictures"]][:1]
    write_markdown(folder / "coherence.md", _coherence_document(facts, records, shown))
    for name in shown:
        slab, modalities = evaluation["slabs"][name], evaluation["modalities"]
        _draw_coronal(folder / "coherence.png", slab, modalities)


def _coherence_note(summaries: list[dict]) -> str:
    rows = [row for row in summaries if row["modality"] == ALL_MODALITIES]
    (truth,) = [row["lag_one"] for row in rows if row["image"] == "truth"]
    draws = " and ".join(
        f"{row['lag_one']:.2f} with noise of rho {row['rho']:g}"
        for row in rows
        if row["image"] == "draw"
    )
    return (
        "Neighbouring slices: the truth's errors about the mean correlate along z by "
        f"{truth:.2f}, those of draws by {draws} (coherence.md)."
    )


def _draw_coronal(path: Path, slab: dict, modalities: tuple[str, ...]) -> None:
    """A coronal view of one subject, a row for each modality."""
    truth, mean, draws = (slab["pictures"][name] for name in ("truth", "mean", "draws"))
    rhos = distinct(row["rho"] for row in slab["records"] if row["image"] == "draw")
    titles = ["truth", "mean", *(f"draw, rho {rho:g}" for rho in rhos)]
    images = np.concatenate([truth[:, None], mean[:, None], draws], axis=1)
    columns = np.flatnonzero(truth.any(axis=(0, 1)))
    images = images[..., columns[0] : columns[-1] + 1]
    shown = {name: images[m] for m, name in enumerate(modalities) if truth[m].any()}
    write_coronal(path, shown, titles, slab["records"][0]["flatness"])


def _coherence_document(facts: dict, records: list[dict], shown: list[str]) -> Document:
    slices = max(record["slices"] for record in records)
    subjects = len({record["subject"] for record in records})
    opening = (
        f"Slabs of {slices} neighbouring slices, or as many as there are, in the "
        f"middle of the brain{'s'[: subjects > 1]} of {subjects} test "
        f"subject{'s'[: subjects > 1]}; one modality is missing, and drawn "
        f"{records[0]['draws']} times. The lag-1 is the correlation of neighbours "
        "along z of (image - mean) / sd, about the network's own mean and in units of "
        "the draws' sd: draws should have the truth's. d/dz is from slice to slice, in "
        "grey levels: a draw's should be as large as the truth's."
    )
    columns = ("image", "rho of its noise", "lag-1", "sd / that at 0", "mean of abs(d/dz)")
    columns += ("error of d/dz", "coronal SSIM, %")
    sections = []
    for modality in distinct(row["modality"] for row in facts["summaries"]):
        lines = [
            (
                row["image"],
                _optional(row["rho"], "g"),
                *(_optional(row[key], ".3f") for key in ("lag_one", "sd_ratio")),
                *(_optional(row[key], ".2f") for key in ("gradient", "gradient_error")),
                _optional(row["coronal_ssim"], ".2f", scale=100),
            )
            for row in facts["summaries"]
            if row["modality"] == modality
        ]
        sections.append(Section(modality, (Table("", columns, lines),)))
    notes = ["The law of each single slice is the same at any rho."]
    if "rho" in facts:
        tried = ", ".join(f"{lag:.3f} at {rho:g}" for rho, lag in facts["draws"])
        corrected = facts["rho"] not in [rho for rho, _ in facts["draws"]]
        notes.append(
            f"rho = {facts['rho']:g} is fitted on validation subjects alone, and "
            "--mode complete draws with it (calibration.json): there the truth's lag-1 is "
            f"{facts['lag_one']:.3f}, and that of draws {tried}"
            + ("; so it was corrected once." if corrected else ".")
        )
    else:
        notes.append("There is no validation subject to fit a rho on: slices are drawn one by one.")
    notes += [f"coherence.png shows a coronal plane of {name}." for name in shown]
    sections.append(Section("Notes", (Bullets((*notes, RESEARCH_ONLY)),)))
    return Document("Coherence of neighbouring slices", (Paragraph(opening),), tuple(sections))


def _with_interval(row: dict, key: str) -> str:
    return f"{row[key]:.3f} ({row[key + '_low']:.3f} to {row[key + '_high']:.3f})"


def _optional(value: float | None, how: str, scale: float = 1) -> str:
    return NONE if value is None else format(scale * value, how)
