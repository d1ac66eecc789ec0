"""What stands in a report of one run or several, in order; no HTML and no Markdown."""

from typing import Any

from ummcsgm.reporting import ledger, tables
from ummcsgm.reporting.cells import Block, Curves, Listing, Picture, Points, Section, Slices, Words
from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.reporting.runs import JUDGE, Run

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
DIFFER = (
    "These runs do not have the same split and the same data, as far as their hashes "
    "tell: numbers of one are not comparable with numbers of another. The best is "
    "marked within each run, and tests are not shown."
)
UNKNOWN = "not recorded"


def sections(runs: list[Run]) -> list[Section]:
    """Every section that the runs have something for."""
    comparable = tables.same_questions(runs)
    tests = runs if comparable else []
    found = {
        "Table 1": [*tables.table1(runs), *_method_notes(runs)],
        "More modalities missing": tables.several(runs),
        "Calibration of the predicted laws": tables.crps(runs),
        "Significance": _each(tests, ledger.significance),
        "Costs": ledger.costs(runs),
        "Downstream segmentation": [
            *tables.downstream(runs),
            *_each(runs, ledger.maps),
            *_downstream_notes(runs),
        ],
        "Figure 2": _each(runs, _slices),
        "Calibration plots": _each(runs, _pictures),
        "The dial": _each(runs, _dial),
        "Training": _training(runs),
        "How it was made": _origin(runs),
        "How to cite": [Words(CITE), Listing("BibTeX", BIBTEX, opened=True)],
    }
    return [Section(title, tuple(blocks)) for title, blocks in found.items() if blocks]


def opening(runs: list[Run]) -> list[Block]:
    """What stands below the title: for research only, what was run, what to know."""
    blocks: list[Block] = [Words(RESEARCH_ONLY, kind="warning")]
    if not tables.same_questions(runs):
        blocks.append(Words(DIFFER, kind="warning"))
    lines = []
    for run in runs:
        lines.append(_summary(run))
        profiles = tables.distinct(f"{row['profile']} ({row['profile_hash']})" for row in run.rows)
        lines.append(_of(runs, run, f"Metrics of profile {', '.join(profiles)}."))
        lines += [_of(runs, run, str(note)) for note in run.facts.get("notes", [])]
    return [*blocks, Points(tuple(lines))]


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A config's values by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict) and value
        values |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return values


def differences(runs: list[Run]) -> dict[str, list[Any]]:
    """The config's keys whose values differ, with the value of each run."""
    configs = [flat(run.facts.get("config", {})) for run in runs]
    keys = sorted(set().union(*configs))
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def _each(runs: list[Run], blocks) -> list[Block]:
    """The blocks of every run, below its name where there are several."""
    found: list[Block] = []
    for run in runs:
        own = blocks(run)
        if own and len(runs) > 1:
            found.append(Words(f"Run {run.name}", kind="run"))
        found += own
    return found


def _of(runs: list[Run], run: Run, words: str) -> str:
    return f"{run.name}: {words}" if len(runs) > 1 else words


def _summary(run: Run) -> str:
    split = run.facts.get("split", {})
    counts = ", ".join(f"{count} for {part}" for part, count in split.items())
    seed, budget = (run.facts.get(key, UNKNOWN) for key in ("seed", "budget"))
    return f"Run {run.name}: seed {seed}; subjects: {counts or UNKNOWN}. {budget}"


def _method_notes(runs: list[Run]) -> list[Block]:
    lines = [
        _of(runs, run, f"{method.get('title', method['name'])}: {method['note']}")
        for run in runs
        for method in run.methods
        if method.get("note")
    ]
    return [Points(tuple(lines))] if lines else []


def _downstream_notes(runs: list[Run]) -> list[Block]:
    notes = [
        _of(runs, run, run.downstream["note"])
        for run in runs
        if run.downstream and run.downstream.get("note")
    ]
    return [Points(tuple(notes))] if notes else []


def _slices(run: Run) -> list[Block]:
    if not run.galleries:
        return []
    modalities = tuple(run.facts.get("modalities", ()))
    return [Slices(run.name, run.galleries, modalities, run.titles(), run.still)]


def _pictures(run: Run) -> list[Block]:
    return [Picture(path, words) for path, words in run.pictures.items()]


def _dial(run: Run) -> list[Block]:
    words = "What more network evaluations buy: CRPS and PSNR of every sampler"
    return [Picture(run.dial, words)] if run.dial else []


def _training(runs: list[Run]) -> list[Block]:
    """A plot a method, with a line a run, and the table of all losses."""
    plots: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, points in run.logs.items():
            plots.setdefault(name, {})[run.name] = points
    titles = {JUDGE: "segmentation network, for what follows downstream"}
    titles |= {name: title for run in runs for name, title in run.trained().items()}
    curves = [Curves(titles.get(name, name), lines) for name, lines in plots.items()]
    table = ledger.logs(runs)
    return [*curves, table] if table else []


def _origin(runs: list[Run]) -> list[Block]:
    """Seeds, hashes, the commit, versions and the configuration of every run."""
    facts = {
        "seed": "seed",
        "budget": "budget",
        "commit": "commit",
        "SHA-256 of the split": "split_sha256",
        "SHA-256 of the data": "data_sha256",
    }
    values = {title: [run.facts.get(key, UNKNOWN) for run in runs] for title, key in facts.items()}
    for part in ("train", "validation", "test"):
        counts = [run.facts.get("split", {}).get(part) for run in runs]
        values[f"subjects for {part}"] = counts
    versions = [run.facts.get("versions", {}) for run in runs]
    names = sorted(set().union(*versions))
    of_versions = {name: [own.get(name) for own in versions] for name in names}
    blocks: list[Block] = [ledger.facts(runs, values, "Facts")]
    if of_versions:
        blocks.append(ledger.facts(runs, of_versions, "Versions"))
    changed = differences(runs)
    if changed:
        caption = "What differs between the configurations"
        blocks.append(ledger.facts(runs, changed, caption))
    return [*blocks, *(_configuration(runs, run) for run in runs)]


def _configuration(runs: list[Run], run: Run) -> Listing:
    values = flat(run.facts.get("config", {}))
    text = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    return Listing(_of(runs, run, "Configuration"), text or UNKNOWN)
