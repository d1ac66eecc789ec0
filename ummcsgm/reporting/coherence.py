"""What is shown of how slices go together: tables, and a coronal view of draws."""

import json
from pathlib import Path

import numpy as np

from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.reporting.plots import write_coronal
from ummcsgm.utils.atomic_io import write_atomic

EVERY = "all"  # modalities together
COLUMNS = "modality image rho subjects lag_one sd_ratio gradient gradient_error".split()
COLUMNS += ["coronal_ssim"]
HEAD = (
    "image", "rho of its noise", "lag-1", "sd / that at 0", "mean of abs(d/dz)",
    "error of d/dz", "coronal SSIM, %",
)  # fmt: skip


def write(evaluation: dict, folder: Path) -> None:
    """`folder` holds coherence.md, coherence.json and coherence.png of the slabs, if
    any were measured."""
    facts = evaluation["facts"]["coherence"]
    if not facts["summaries"]:
        return
    records = [one for marks in evaluation["slabs"].values() for one in marks["records"]]
    told = {"facts": facts, "records": records}
    write_atomic(folder / "coherence.json", json.dumps(told, indent=1))
    write_atomic(folder / "coherence.md", _page(evaluation, records))
    for name, marks in evaluation["slabs"].items():
        if marks["pictures"]:
            _draw(folder / "coherence.png", evaluation, name)
            return


def sentence(facts: dict) -> str:
    """What a table's reader is told of it, of the facts of an evaluation."""
    rows = [r for r in facts["coherence"]["summaries"] if r["modality"] == EVERY]
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


def _draw(path: Path, evaluation: dict, name: str) -> None:
    """The coronal view of the first subject that has one, a row a modality."""
    marks = evaluation["slabs"][name]
    kinds, one = marks["pictures"], marks["records"][0]
    rhos = [r["rho"] for r in marks["records"] if r["image"] == "draw"]
    heads = ["truth", "mean", *(f"draw, rho {rho:g}" for rho in dict.fromkeys(rhos))]
    images = np.concatenate(
        [kinds["truth"][:, None], kinds["mean"][:, None], kinds["draws"]], axis=1
    )
    columns = np.flatnonzero(kinds["truth"].any(axis=(0, 1)))
    images = images[..., columns[0] : columns[-1] + 1]
    shown = {
        modality: images[m]
        for m, modality in enumerate(evaluation["modalities"])
        if kinds["truth"][m].any()
    }
    write_coronal(path, shown, heads, one["flatness"])


def _page(evaluation: dict, records: list[dict]) -> str:
    facts = evaluation["facts"]["coherence"]
    slices = max(one["slices"] for one in records)
    subjects = len({one["subject"] for one in records})
    parts = [
        "# Do neighbouring slices go together",
        f"Slabs of {slices} neighbouring slices, or as many as there are, in the "
        f"middle of the brain{'s'[: subjects > 1]} of {subjects} test "
        f"subject{'s'[: subjects > 1]}; one modality is missing, and drawn "
        f"{records[0]['draws']} times. The lag-1 is the correlation of neighbours "
        "along z of (image - mean) / sd, about the network's own mean and in units of "
        "the draws' sd: draws should have the truth's. d/dz is from slice to slice, in "
        "grey levels: a draw's should be as large as the truth's.",
    ]
    for modality in dict.fromkeys(row["modality"] for row in facts["summaries"]):
        rows = [row for row in facts["summaries"] if row["modality"] == modality]
        lines = [HEAD, ["---"] * len(HEAD), *map(_cells, rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {modality}\n\n{table}")
    parts.append("\n".join(f"- {note}" for note in _notes(facts, evaluation)))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict) -> list[str]:
    cells = [row["image"], "–" if row["rho"] is None else f"{row['rho']:g}"]
    percent = None if row["coronal_ssim"] is None else 100 * row["coronal_ssim"]
    values = row["lag_one"], row["sd_ratio"], row["gradient"], row["gradient_error"]
    formats = (".3f", ".3f", ".2f", ".2f", ".2f")
    for value, how in zip((*values, percent), formats, strict=True):
        cells.append("–" if value is None else format(value, how))
    return cells


def _notes(facts: dict, evaluation: dict) -> list[str]:
    notes = ["Each slice by itself is drawn from the same law at any rho."]
    if "rho" in facts:
        tried = ", ".join(f"{lag:.3f} at {rho:g}" for rho, lag in facts["draws"])
        moved = facts["rho"] not in [rho for rho, _ in facts["draws"]]
        notes.append(
            f"rho = {facts['rho']:g} is fitted on validation subjects alone, and "
            "`complete` draws with it (calibration.json): there the truth's lag-1 is "
            f"{facts['lag_one']:.3f}, and that of draws {tried}"
            + ("; so it was corrected once." if moved else ".")
        )
    else:
        notes.append("There is no validation subject to fit a rho on: slices are drawn one by one.")
    for name in [n for n, marks in evaluation["slabs"].items() if marks["pictures"]][:1]:
        notes.append(f"coherence.png shows a coronal plane of {name}.")
    return [*notes, RESEARCH_ONLY]
