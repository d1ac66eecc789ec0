"""Tables of numbers as they are printed: scores, tests, costs, losses and facts.

A method in a table is the pair (study's name, method's name), so that one table can hold
several studies.
"""

import csv
import io
import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ummcsgm.reporting.study_results import Rows, StudyResults
from ummcsgm.utils.atomic_io import write_atomic

SCALES = {"psnr": 1, "ssim_global": 100, "ssim_wang": 100, "mae": 1, "crps": 1, "dice": 100}
METRICS = {
    "psnr": "PSNR, dB (more is better)",
    "ssim_global": "SSIM with one window over the image, % (more is better)",
    "ssim_wang": "SSIM of Wang et al., % (more is better)",
    "mae": "MAE, grey levels of 0 to 255 (less is better)",
}
LOWER_IS_BETTER = ("mae", "crps")
SIGNIFICANT = "Paired over subjects; Holm's p values below 0.05 are marked."
NEGATIVE_IS_BETTER = "Less is better: what is below 0 speaks for the first."
NONE = "–"
STRUCTURE = (  # caption, part of `structure`, its scale, score, notes
    (
        "Power of draws over that of truths, in bands of cycles a pixel (1 is right)",
        *("power", "band", "ratio"),
        (
            "Of the difference from the network's own mean, within the brain. Where a structure "
            "is, and whether it is Gaussian, is not seen. With each number: 90 % of a bootstrap "
            "over subjects.",
        ),
    ),
    (
        "Spread-skill ratio of block means, by the block's pixels (1 is right)",
        *("blocks", "size", "spread_skill"),
        ("Below 1 the block means of draws are too alike.",),
    ),
    (
        "Share of block means within the 90 % interval of draws",
        *("blocks", "size", "coverage"),
        ("The interval assumes a normal law.",),
    ),
    (
        "CRPS of block means, grey levels (less is better)",
        *("blocks", "size", "crps"),
        (),
    ),
    (
        "CRPS of block means over the absolute error of the mean (less is better)",
        *("blocks", "size", "crps_over_mae"),
        ("0.71 for the right law, if it is normal and the mean is its mean.",),
    ),
)
LESION_MEASURES = {
    "mean": "mean",
    "p90": "90th percentile",
    "enhancement": "90th percentile over T1",
}
LESION_NOTES = (
    "WT: the whole tumour; TC: its core, where gadolinium can go. Sd: of truths between subjects, "
    "of draws between those of one lesion; their ratio is at most 1 for right draws, and 1 where "
    "nothing of the measure can be seen in the other scans. Spread-skill is 1 and coverage (by "
    "ranks) 0.9 for right draws, whatever can be seen. In brackets: 90 % of a bootstrap over "
    "subjects.",
)
TWO_SAMPLE = (
    "AUC of a network that tells draws from truths (0.5 is right, 1 if each is recognised)",
    (
        "Patches of 16 x 16 pixels, together with the seen modalities and the difference from the "
        "network's own mean; as many draws as truths. Control: truths alone, half of the subjects "
        "labelled as drawn. With each number: 90 % of a bootstrap over subjects.",
        "Not seen is what is larger than a patch, whether draws of one question differ, and what "
        "is too weak for so few patches: 0.5 is no proof.",
    ),
)
REFERENCES = {"truth": "the truth", "zeros": "nothing (zeros)"}  # no methods, so never the best
MEAN = "mean"
Key = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """A printed number or word, whether it is the best of its column, and small print below it."""

    text: str
    best: bool = False
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, column names, rows of cells, and notes below them; a value that is no Cell is
    printed as it is.

    The first `label_columns` hold words, the others numbers. A `folded` table is opened
    by the reader.
    """

    caption: str
    columns: Collection[str]
    rows: Iterable[Iterable[Any]]
    notes: Sequence[str] = ()
    label_columns: int = 1
    folded: bool = False

    def __post_init__(self):
        cells = [[v if isinstance(v, Cell) else Cell(str(v)) for v in row] for row in self.rows]
        object.__setattr__(self, "rows", cells)


def write_csv(path: Path, rows: Sequence[dict], columns: Sequence[str]) -> None:
    """Writes these columns of the rows, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows)
    write_atomic(path, text.getvalue())


def format_number(value: Any, digits: int = 2) -> str:
    """A number with so many digits and thousands apart; a dash for None, NaN or infinity."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:,.{digits}f}" if known else NONE


def format_p(p: float) -> str:
    """A p value with three digits; a dash where there is none."""
    if not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def span(counts: Iterable[int]) -> str:
    """ "3" or "3 to 40": the lowest and the highest count."""
    return " to ".join(distinct([str(min(counts)), str(max(counts))]))


def score_cell(rows: Sequence[dict], method: Hashable, digits: int = 2) -> Cell:
    """A method's mean ± sd among the `rows` of one metric in one column.

    Of several rows of a method, their mean. The best is the best as printed, among the
    methods whose rows have the most subjects and, where they are known, slices.
    """
    by_method: dict[Hashable, list[dict]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    if method not in by_method:
        return Cell(NONE)
    sizes = {
        name: sorted((row["subjects"], row.get("slices") or 0) for row in group)
        for name, group in by_method.items()
    }
    totals = {name: tuple(map(sum, zip(*size, strict=True))) for name, size in sizes.items()}
    own, metric = by_method[method], by_method[method][0]["metric"]
    scale = SCALES[metric]
    # Rounded before they are compared: numbers printed alike are bold alike.
    means = {
        name: round(scale * float(np.mean([row["mean"] for row in group])), digits)
        for name, group in by_method.items()
        if sizes[name] == sizes[method]
    }
    text = format_number(means[method], digits)
    if len(own) == 1 and math.isfinite(own[0]["sd"]):
        text += f" ± {scale * own[0]['sd']:.{digits}f}"
    best = (np.fmin if metric in LOWER_IS_BETTER else np.fmax).reduce(list(means.values()))
    largest = totals[method] == max(totals.values())
    return Cell(text, bool(means[method] == best and largest and len(means) > 1))


def same_test_data(studies: list[StudyResults]) -> bool:
    """Whether all studies were scored on the same subjects of the same data."""
    if len(studies) == 1:
        return True
    hashes = {
        tuple(study.facts.get(key) for key in ("split_sha256", "data_sha256")) for study in studies
    }
    return len(hashes) == 1 and None not in hashes.pop()


def single_missing_tables(studies: list[StudyResults]) -> list[Table]:
    """Table 1: one table for each profile and metric, with one modality missing."""
    return [
        _table_by_modality(
            studies, rows, f"Table 1{letter}: {caption}", _paper_scores(studies, metric)
        )
        for letter, metric, caption, rows in _metric_rows(studies, single=True)
    ]


def several_missing_tables(studies: list[StudyResults]) -> list[Table]:
    """One table for each profile and metric with more missing, by how many are."""
    return [
        _table_by_size(studies, rows, caption, folded=metric != "psnr")
        for _, metric, caption, rows in _metric_rows(studies, single=False)
    ]


def crps_tables(studies: list[StudyResults]) -> list[Table]:
    """The table of the CRPS of each method."""
    rows = [row | {"metric": "crps"} for study in studies for row in _keyed(study, study.crps)]
    if not rows:
        return []
    caption = "CRPS in the brain, grey levels of 0 to 255 (less is better)"
    note = (
        "Of a method that gives one image it is the mean absolute error; of draws the "
        "fair CRPS, which does not depend on how many there are."
    )
    return [_table_by_modality(studies, rows, caption, {}, (note,))]


def dice_tables(studies: list[StudyResults]) -> list[Table]:
    """A table for each region: the Dice of a segmentation with one modality replaced."""
    rows = [
        row | {"metric": "dice", "mean": row["dice"]}
        for study in studies
        if study.downstream
        for row in _keyed(study, study.downstream["rows"])
    ]
    tables = []
    for region in distinct(row["region"] for row in rows):
        selected = [row for row in rows if row["region"] == region]
        skipped = [row.get("skipped", 0) for row in selected]
        note = f"Subjects without {region}, left out: {span(skipped)}."
        caption = f"Dice, %: {region}; in each column that modality is replaced"
        notes = (note,) if max(skipped) else ()
        tables.append(_table_by_modality(studies, selected, caption, {}, notes))
    return tables


def structure_tables(rows: Rows) -> list[Table]:
    """The tables of the `structure` of draws: the power ratio by band, and each score of block
    means by their size. A row for each of `rows`, which have missing and modality."""
    if not rows:
        return []
    labels = ["missing", "modality"]
    if all(row["missing"] == row["modality"] for row in rows):
        labels.remove("missing")
    names = [[row[label] for label in labels] for row in rows]
    tables = []
    for caption, part, scale, score, notes in STRUCTURE:
        scales = [numbers[scale] for numbers in rows[0]["structure"][part]]
        columns = (*labels, *(f"{s} x {s}" if scale == "size" else s for s in scales))
        lines = [
            (*label, *(_cell_with_interval(numbers, score) for numbers in row["structure"][part]))
            for label, row in zip(names, rows, strict=True)
        ]
        tables.append(Table(caption, columns, lines, notes, len(labels)))
    return tables


def lesion_tables(lesions: dict[str, Any]) -> list[Table]:
    """The tables of what lesions say of draws, from `lesion_results`: each measure of each missing
    modality, P(it enhances), and its reliability."""
    if not lesions:
        return []
    tables = []
    if lesions["rows"]:
        columns = ("modality", "lesion", "measure", "n", "truth ± sd", "draws ± sd", "sd ratio")
        columns += ("spread-skill", "coverage of 90 %", "CRPS", "error of the mean")
        lines = [
            (
                *(row[key] for key in ("modality", "region")),
                LESION_MEASURES[row["measure"]],
                format_number(row["lesions"], 0),
                *(
                    f"{format_number(row[key])} ± {format_number(row[f'{key}_sd'])}"
                    for key in ("truth", "draw")
                ),
                *(
                    _cell_with_interval(row, key)
                    for key in ("spread_ratio", "spread_skill", "coverage")
                ),
                *(format_number(row[key], 3) for key in ("crps", "crps_of_mean")),
            )
            for row in lesions["rows"]
        ]
        caption = "Lesions, relative to the brain outside the tumour"
        tables.append(Table(caption, columns, lines, LESION_NOTES, 3))
    if lesions["enhancement"]:
        tables += _enhancement_tables(lesions)
    return tables


def lesions_skipped(lesions: dict[str, Any]) -> list[str]:
    """A sentence for each reason why subjects have no lesion score, with their names."""
    return [
        f"Without a lesion score: {len(names)} subject{'s'[: len(names) != 1]} "
        f"({reason}): {', '.join(names)}."
        for reason, names in lesions.get("skipped", {}).items()
    ]


def _enhancement_tables(lesions: dict[str, Any]) -> list[Table]:
    found = lesions["enhancement"]
    names = {"share_of_truths": "truths", "share_of_draws": "draws", "share_of_mean": "the mean"}
    columns = ("", "enhance", "enhance brightly", "Brier")
    briers = {
        "share_of_draws": _cell_with_interval(found, "brier", 3),
        "share_of_truths": format_number(found["brier_of_share"], 3),
    }
    lines = [
        (
            title,
            *(_cell_with_interval(shares, key) for shares in (found, found["bright"])),
            briers.get(key, NONE),
        )
        for key, title in names.items()
    ]
    ratios = [_cell_with_interval(shares, "share_ratio") for shares in (found, found["bright"])]
    ratios = [f"{ratio.text} ({ratio.below})" if ratio.below else ratio.text for ratio in ratios]
    notes = [
        f"Of {found['lesions']} lesions of {found['subjects']} subjects, how many have a 90th "
        f"percentile of T1c over T1 above {lesions['threshold']:g} times the brain's, or above "
        f"{lesions['bright']:g} times. Draws over truths: {ratios[0]}, and {ratios[1]}. Brier: of "
        "the share of a lesion's draws that enhance (fair: less is better), and, beside truths, of "
        "answering their own share for every lesion."
    ]
    known = found["known"]
    if known:
        by_law = format_number(known["probability"]), NONE, format_number(known["brier"], 3)
        lines.append(("phantoms, by their law", *by_law))
        notes.append(
            "Of a phantom P(it enhances | everything else) is known. Draws say "
            f"{known['mean']:.2f} ± {known['sd']:.2f} (over lesions; right draws differ by "
            f"{known['sd_of_right']:.2f} through counting {found['draws']} draws). Of these "
            f"lesions {known['share_built']:.2f} take up gadolinium, and {known['agreement']:.3f} "
            "measure as they were built."
        )
    caption = "Does a lesion enhance on T1c?"
    tables = [Table(caption, columns, lines, notes)]
    bins = [
        (
            f"{b['low']:g} to {b['high']:g}",
            format_number(b["lesions"], 1),
            format_number(b["probability"]),
            _cell_with_interval(b, "frequency"),
        )
        for b in found["reliability"]
    ]
    columns = ("share of the other draws", "n", "probability", "frequency")
    notes = ("Each draw is left out in turn: how often it enhances, and how often the truth does.",)
    tables.append(Table("Reliability of P(it enhances)", columns, bins, notes))
    return tables


def _cell_with_interval(row: dict, score: str, digits: int = 2) -> Cell:
    low, high = (format_number(row[f"{score}_{end}"], digits) for end in ("low", "high"))
    return Cell(
        format_number(row[score], digits), below="" if NONE in (low, high) else f"{low} to {high}"
    )


def two_sample_tables(rows: Rows) -> list[Table]:
    """The table of a two-sample test, a row for each modality; what was skipped is in its notes."""
    if not rows:
        return []
    caption, notes = TWO_SAMPLE
    columns = ("modality", "subjects", "patches of either kind", "AUC", "AUC of the control")
    lines, skipped = [], []
    for row in rows:
        ends = {f"auc_{end}": row[end] for end in ("low", "high")}
        ends |= {f"control_auc_{end}": row[f"control_{end}"] for end in ("low", "high")}
        cells = (_cell_with_interval(row | ends, name) for name in ("auc", "control_auc"))
        lines.append((row["modality"], row["subjects"], row["patches"], *cells))
        skipped += [f"Skipped: {row['skipped']}"] if row["skipped"] else []
    return [Table(caption, columns, lines, (*notes, *skipped), 1)]


def significance_tables(study: StudyResults) -> list[Table]:
    """A table for each metric: differences over subjects, with intervals and p values."""
    titles, tables = study.titles(), []
    for metric in distinct(row["metric"] for row in study.tests):
        tests = [row for row in study.tests if row["metric"] == metric]
        references = distinct(titles.get(r["reference"], r["reference"]) for r in tests)
        title = METRICS.get(metric, metric.upper()).split(" (")[0]
        caption = f"{title}: {' or '.join(references)} minus each method"
        columns = ("method", "modality", "n", "difference", "95 % interval", "p", "Holm p")
        notes = [NEGATIVE_IS_BETTER] * (metric in LOWER_IS_BETTER) + [SIGNIFICANT]
        rows = [_test_row(row, titles) for row in tests]
        tables.append(Table(caption, columns, rows, notes, 2, metric != "psnr"))
    return tables


def cost_tables(studies: list[StudyResults]) -> list[Table]:
    """The table of what each method costs."""
    columns = {  # the key in results.json and the digits printed
        "parameters": ("parameters", 0),
        "GFLOP": ("gflop", 2),
        "training, s": ("train_seconds", 0),
        "steps": ("steps", 0),
        "images seen": ("images_seen", 0),
        "s a slice": ("seconds_per_slice", 4),
    }
    rows = []
    for study in studies:
        for method in study.methods:
            if method.get("costs"):
                numbers = [
                    format_number(method["costs"].get(key), digits)
                    for key, digits in columns.values()
                ]
                rows.append((*_label(studies, (study.name, method["name"])), *numbers))
    if not rows:
        return []
    note = "GFLOP of one forward pass of the network for one slice."
    labels = _label_columns(studies)
    return [Table("Costs", (*labels, *columns), rows, (note,), len(labels))]


def tumour_map_tables(study: StudyResults) -> list[Table]:
    """The tumour probability maps of the draws, beside those of the mean image."""
    rows = study.downstream.get("maps", []) if study.downstream else []
    if not rows:
        return []
    caption = "Where the tumour is: the mean over draws of its probability, or one image's"
    columns = ("map", "replaced", "region", "n", "Dice, %", "Brier", "calibration error")
    lines = [
        (
            *(row[key] for key in ("map", "modality", "region")),
            format_number(row["subjects"], 0),
            NONE if row["dice"] is None else format_number(100 * row["dice"], 1),
            format_number(row["brier"], 4),
            format_number(row["calibration"], 4),
        )
        for row in rows
    ]
    notes = [
        "Of the probability of each voxel: Brier's score, and the mean distance of the "
        "probability from the observed frequency. Of both less is better."
    ]
    skipped = max(row["skipped"] for row in rows)
    if skipped:
        notes.append(f"Dice is that of subjects with the region: up to {skipped} lack it.")
    return [Table(caption, columns, lines, notes, 3, True)]


def loss_tables(studies: list[StudyResults]) -> list[Table]:
    """The table of training losses."""
    rows = []
    for study in studies:
        for name, points in study.logs.items():
            title = study.training_titles().get(name, name)
            losses = points[0, 1], points[-1, 1], points[:, 1].min()
            numbers = format_number(points[-1, 0], 0), *(f"{loss:.4g}" for loss in losses)
            rows.append((*([study.name] if len(studies) > 1 else []), title, *numbers))
    if not rows:
        return []
    labels = _label_columns(studies)
    columns = (*labels, "step", "first loss", "last loss", "lowest")
    note = "Methods have different losses: compare a loss only with the same method's."
    return [Table("Training", columns, rows, (note,), len(labels))]


def facts_table(studies: list[StudyResults], facts: dict[str, list[Any]], caption: str) -> Table:
    """A row for each fact, which has one value for each study."""
    columns = ("", *(study.name for study in studies))
    rows = (
        (name, *(NONE if value is None else value for value in values))
        for name, values in facts.items()
    )
    return Table(caption, columns, rows, label_columns=len(columns))


def number_missing(row: dict) -> int:
    """How many modalities are missing in a row of scores."""
    return len(row["missing"].split("+"))


def _metric_rows(studies: list[StudyResults], single: bool) -> Iterator[tuple[str, str, str, Rows]]:
    """(letter, metric, caption, rows) of each profile and metric that has rows, with one
    modality missing (`single`) or more."""
    rows = [row for study in studies for row in _keyed(study, study.rows)]
    rows = [row for row in rows if (number_missing(row) == 1) == single]
    profiles = distinct(row["profile"] for row in rows)
    for profile in profiles:
        for letter, (metric, caption) in zip("abcd", METRICS.items(), strict=True):
            selected = [r for r in rows if (r["profile"], r["metric"]) == (profile, metric)]
            if selected:
                suffix = f"; profile {profile}" if len(profiles) > 1 else ""
                yield letter, metric, caption + suffix, selected


def _table_by_modality(
    studies: list[StudyResults],
    rows: Rows,
    caption: str,
    paper: dict[Key, str],
    notes: tuple[str, ...] = (),
) -> Table:
    """A row for each method, a column for each modality, and their mean if there are several."""
    modalities, labels = distinct(row["modality"] for row in rows), _label_columns(studies)
    complete = _complete_rows(rows, modalities) if len(modalities) > 1 else []
    lines = []
    for key in _method_order(studies, rows):
        line: list[Any] = [*_label(studies, key)]
        for modality in modalities:
            cell = _compared_cell(studies, rows, key, modality)
            printed = paper.get((key[1], modality))
            line.append(Cell(cell.text, cell.best, f"paper {printed}" if printed else ""))
        if complete:
            line.append(_compared_cell(studies, complete, key, MEAN))
        lines.append(line)
    lines += _paper_only_rows(studies, rows, modalities, paper)
    columns = [*labels, *modalities, *([MEAN] if complete else [])]
    lines = [[*line, *[NONE] * (len(columns) - len(line))] for line in lines]
    subjects = span([row["subjects"] for row in rows])
    note = f"Mean ± standard deviation over {subjects} subject{'s'[: subjects != '1']}."
    if paper:
        notes = (*notes, "The number below is the paper's, from its own data and networks.")
    return Table(caption, columns, lines, (note, *notes), len(labels))


def _table_by_size(studies: list[StudyResults], rows: Rows, caption: str, folded: bool) -> Table:
    """A row for each number missing and method, a column for each modality."""
    modalities, lines = distinct(row["modality"] for row in rows), []
    for size in sorted({number_missing(row) for row in rows}):
        same_size = [row for row in rows if number_missing(row) == size]
        for key in _method_order(studies, same_size):
            line: list[Any] = [size, *_label(studies, key)]
            for modality in modalities:
                cell = _compared_cell(studies, same_size, key, modality)
                own = [r for r in same_size if (r["method"], r["modality"]) == (key, modality)]
                count = f"n = {sum(row['subjects'] for row in own)}" if own else ""
                line.append(Cell(cell.text, cell.best, count))
            lines.append(line)
    columns = ("missing", *_label_columns(studies), *modalities)
    note = (
        "Means over the missing patterns of that size that contain the column's modality; n is "
        "the number of predictions in a mean."
    )
    return Table(caption, columns, lines, (note,), 1 + len(_label_columns(studies)), folded)


def _label(studies: list[StudyResults], key: Key) -> tuple[str, ...]:
    """The first cells of a method's row: its study if there are several, and its title."""
    study = next(study for study in studies if study.name == key[0])
    title = (study.titles() | REFERENCES).get(key[1], key[1])
    return (key[0], title) if len(studies) > 1 else (title,)


def _label_columns(studies: list[StudyResults]) -> tuple[str, ...]:
    return ("run", "method") if len(studies) > 1 else ("method",)


def _paper_scores(studies: list[StudyResults], metric: str) -> dict[Key, str]:
    """The paper's numbers as printed, by method and modality."""
    printed = {}
    for row in (row for study in studies for row in study.paper if row["metric"] == metric):
        scale, sd = SCALES.get(metric, 1), row.get("sd", math.nan)
        spread = f" ± {scale * sd:.2f}" if math.isfinite(sd) else ""
        printed[row["method"], row["modality"]] = format_number(scale * row["mean"]) + spread
    return printed


def _paper_only_rows(
    studies: list[StudyResults], rows: Rows, modalities: list[str], paper: dict[Key, str]
) -> Iterator[list[str]]:
    """Rows of methods that only the paper has numbers of."""
    ours = {row["method"][1] for row in rows}
    for name in distinct(name for name, _ in paper):
        if name not in ours:
            title = next((study.titles().get(name, name) for study in studies), name)
            empty = [""] * (len(_label_columns(studies)) - 1)
            yield [*empty, f"{title} (paper)", *(paper.get((name, m), NONE) for m in modalities)]


def _complete_rows(rows: Rows, modalities: list[str]) -> Rows:
    """The rows of methods that have every modality, as those of the column MEAN."""
    known = {(row["method"], row["modality"]) for row in rows}
    return [
        row | {"modality": MEAN, "subjects": 0}
        for row in rows
        if all((row["method"], modality) in known for modality in modalities)
    ]


def _compared_cell(studies: list[StudyResults], rows: Rows, key: Key, modality: str) -> Cell:
    """A method's number in a column, compared with all methods, or only with those of its own
    study where the studies have different data."""
    rows = [row for row in rows if row["modality"] == modality]
    if key[1] in REFERENCES:
        return score_cell([row for row in rows if row["method"] == key], key)
    rows = [row for row in rows if row["method"][1] not in REFERENCES]
    if not same_test_data(studies):
        rows = [row for row in rows if row["method"][0] == key[0]]
    return score_cell(rows, key)


def _keyed(study: StudyResults, rows: Rows) -> Rows:
    """`rows` of a study with (study, method) as their method."""
    return [row | {"method": (study.name, row["method"])} for row in rows]


def _method_order(studies: list[StudyResults], rows: Rows) -> list[Key]:
    """The methods that have rows: study by study, in the order of their tables."""
    listed = [(study.name, name) for study in studies for name in [*REFERENCES, *study.titles()]]
    found = distinct(row["method"] for row in rows)
    return [key for key in distinct([*listed, *found]) if key in found]


def _test_row(row: dict, titles: dict[str, str]) -> tuple[Any, ...]:
    scale = SCALES.get(row["metric"], 1)
    difference, low, high = (scale * row[key] for key in ("difference", "low", "high"))
    interval = f"{low:+.2f} to {high:+.2f}" if math.isfinite(low + high) else NONE
    change = f"{difference:+.2f}" if math.isfinite(difference) else NONE
    labels = titles.get(row["method"], row["method"]), row["modality"]
    p_holm = Cell(format_p(row["p_holm"]), row["p_holm"] < 0.05)
    return (*labels, row["subjects"], change, interval, format_p(row["p"]), p_holm)
