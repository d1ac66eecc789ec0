"""The report of one study or several: report.html and report.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ummcsgm.reporting import tables
from ummcsgm.reporting.document import (
    Block,
    Bullets,
    Document,
    Listing,
    Paragraph,
    Picture,
    Section,
    SliceViewer,
    TrainingCurves,
    write_html,
    write_markdown,
)
from ummcsgm.reporting.figures import RESEARCH_ONLY
from ummcsgm.reporting.study_results import SEGMENTER, StudyResults, read_studies
from ummcsgm.types import InputError

TITLE = "Completion of missing MR contrasts"
CITE = "If you use this software, please cite it and the paper whose method it implements."
BIBTEX = """\
@article{meng2022,
  title = {A Novel Unified Conditional Score-based Generative Framework for Multi-modal
           Medical Image Completion},
  author = {Meng and Gu and Pan and Wang and Xue and Lu and He and Zhan and Shen},
  journal = {arXiv:2207.03430},
  year = {2022}
}

@software{ummcsgm,
  title = {ummcsgm: completion of missing MR contrasts with one conditional score
           network},
  author = {{The ummcsgm authors}},
  version = {0.1.0},
  license = {Apache-2.0}
}"""
DIFFERENT_DATA = (
    "These runs do not have the same split and the same data, as far as their hashes "
    "tell: numbers of one are not comparable with numbers of another. The best is "
    "marked within each run, and tests are not shown."
)
DIAL = "What more network evaluations buy: CRPS and PSNR of every sampler"
UNKNOWN = "not recorded"


def compare(workdirs: list[str], output: str | None) -> None:
    """Writes one report of several studies to the folder `output`.

    Raises:
        InputError: no studies are named, or no folder, or one holds no study.
    """
    if not workdirs:
        raise InputError("--mode compare wants workdirs: --mode compare RUN RUN ...")
    if not output:
        raise InputError("--output is missing: name the folder for the report.")
    folder = Path(output)
    write_report([Path(workdir) for workdir in workdirs], folder)
    print(f"the report is {folder / 'report.html'}")


def write_report(workdirs: list[Path], folder: Path) -> None:
    """Writes report.html and report.md of the studies in `workdirs` to `folder`.

    Raises:
        InputError: one of them holds no study.
    """
    report = make_report(read_studies(workdirs))
    write_html(folder / "report.html", report)
    write_markdown(folder / "report.md", report)


def make_report(studies: list[StudyResults]) -> Document:
    """Every section that the studies have something for."""
    comparable = tables.same_test_data(studies)
    blocks = {
        "Table 1": [*tables.single_missing_tables(studies), *_notes(studies, _method_notes)],
        "More modalities missing": tables.several_missing_tables(studies),
        "Calibration of the predicted laws": tables.crps_tables(studies),
        "Structure of draws": _by_study(
            studies, lambda study: tables.structure_tables(study.structure)
        ),
        "Lesions": _by_study(studies, _lesions),
        "Draws told from truths": _by_study(
            studies, lambda study: tables.two_sample_tables(study.two_sample)
        ),
        "Significance": _by_study(studies if comparable else [], tables.significance_tables),
        "Costs": tables.cost_tables(studies),
        "Downstream segmentation": [
            *tables.dice_tables(studies),
            *_by_study(studies, tables.tumour_map_tables),
            *_notes(studies, lambda study: [(study.downstream or {}).get("note")]),
        ],
        "Figure 2": _by_study(studies, _slice_viewer),
        "Calibration plots": _by_study(
            studies, lambda study: [Picture(*item) for item in study.pictures.items()]
        ),
        "The dial": _by_study(
            studies, lambda study: [Picture(study.dial, DIAL)] if study.dial else []
        ),
        "Training": [*_training_curves(studies), *tables.loss_tables(studies)],
        "How it was made": _origin(studies),
        "How to cite": [Paragraph(CITE), Listing("BibTeX", BIBTEX, opened=True)],
    }
    sections = tuple(Section(title, tuple(b)) for title, b in blocks.items() if b)
    names = ", ".join(study.name for study in studies)
    return Document(TITLE, _opening(studies, comparable), sections, names)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        values |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def config_differences(studies: list[StudyResults]) -> dict[str, list[Any]]:
    """The config's keys whose values differ, with the value of each study."""
    configs = [flatten(study.facts.get("config", {})) for study in studies]
    values = {key: [c.get(key) for c in configs] for key in sorted(set().union(*configs))}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _opening(studies: list[StudyResults], comparable: bool) -> tuple[Block, ...]:
    """For research only, what was run, what to know."""
    items = []
    for study in studies:
        items.append(_summary(study))
        profiles = tables.distinct(f"{r['profile']} ({r['profile_hash']})" for r in study.rows)
        items.append(_named(studies, study, f"Metrics of profile {', '.join(profiles)}."))
        items += [_named(studies, study, str(note)) for note in study.facts.get("notes", [])]
    warnings = [RESEARCH_ONLY] + [DIFFERENT_DATA] * (not comparable)
    return (*(Paragraph(text, "warning") for text in warnings), Bullets(tuple(items)))


def _summary(study: StudyResults) -> str:
    split = study.facts.get("split", {})
    counts = ", ".join(f"{count} for {part}" for part, count in split.items())
    seed, budget = (study.facts.get(key, UNKNOWN) for key in ("seed", "budget"))
    return f"Run {study.name}: seed {seed}; subjects: {counts or UNKNOWN}. {budget}"


def _by_study(
    studies: list[StudyResults], make_blocks: Callable[[StudyResults], list[Block]]
) -> list[Block]:
    """The blocks of every study, below its name where there are several."""
    found: list[Block] = []
    for study in studies:
        blocks = make_blocks(study)
        if blocks and len(studies) > 1:
            found.append(Paragraph(f"Run {study.name}", style="run"))
        found += blocks
    return found


def _named(studies: list[StudyResults], study: StudyResults, text: str) -> str:
    return f"{study.name}: {text}" if len(studies) > 1 else text


def _notes(studies: list[StudyResults], notes_of: Callable) -> list[Block]:
    """A list of the (non-empty) notes of every study."""
    items = [_named(studies, study, note) for study in studies for note in notes_of(study) if note]
    return [Bullets(tuple(items))] if items else []


def _method_notes(study: StudyResults) -> list[str]:
    titles = study.titles()
    return [f"{titles[m['name']]}: {m['note']}" for m in study.methods if m.get("note")]


def _lesions(study: StudyResults) -> list[Block]:
    lacking = tuple(tables.lesions_skipped(study.lesions))
    return [*tables.lesion_tables(study.lesions), *([Bullets(lacking)] * bool(lacking))]


def _slice_viewer(study: StudyResults) -> list[Block]:
    modalities = tuple(study.facts.get("modalities", ()))
    viewer = SliceViewer(study.name, study.galleries, modalities, study.titles(), study.figure)
    return [viewer] if study.galleries else []


def _training_curves(studies: list[StudyResults]) -> list[Block]:
    """A plot for each method, with a curve for each study."""
    plots: dict[str, dict[str, Any]] = {}
    titles = {SEGMENTER: "segmentation network, for what follows downstream"}
    for study in studies:
        titles |= study.training_titles()
        for name, points in study.logs.items():
            plots.setdefault(name, {})[study.name] = points
    return [TrainingCurves(titles.get(name, name), curves) for name, curves in plots.items()]


def _origin(studies: list[StudyResults]) -> list[Block]:
    """Seeds, hashes, the commit, versions and the configuration of every study."""
    keys = {
        "seed": "seed",
        "budget": "budget",
        "commit": "commit",
        "SHA-256 of the split": "split_sha256",
        "SHA-256 of the data": "data_sha256",
    }
    facts = {title: [s.facts.get(key, UNKNOWN) for s in studies] for title, key in keys.items()}
    for part in ("train", "validation", "test"):
        facts[f"subjects for {part}"] = [s.facts.get("split", {}).get(part) for s in studies]
    versions = [study.facts.get("versions", {}) for study in studies]
    captions = {
        "Facts": facts,
        "Versions": {k: [v.get(k) for v in versions] for k in sorted(set().union(*versions))},
        "What differs between the configurations": config_differences(studies),
    }
    blocks: list[Block] = [
        tables.facts_table(studies, values, caption)
        for caption, values in captions.items()
        if values
    ]
    for study in studies:
        values = flatten(study.facts.get("config", {}))
        text = "\n".join(f"{key} = {value!r}" for key, value in values.items())
        blocks.append(Listing(_named(studies, study, "Configuration"), text or UNKNOWN))
    return blocks
