"""The flags and the output that all benchmarks share."""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ummcsgm.types import InputError


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser described by the first line of `doc`, with the flag --json."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    explanation = "also write the JSON object to FILE"
    parser.add_argument("--json", type=Path, metavar="FILE", help=explanation)
    return parser


def summarise_ratios(ratios: Sequence[float], digits: int) -> dict[str, object]:
    """The ratios of all turns, and their median, rounded."""
    return {
        "ratios": [round(ratio, digits) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), digits),
    }


def system_load() -> list[float]:
    """The machine's load averages over 1, 5 and 15 minutes."""
    return [round(load, 1) for load in os.getloadavg()]


def report_in_folder(
    parser: argparse.ArgumentParser, flags: argparse.Namespace, measure: Callable
) -> None:
    """Prints the report of measure(folder, flags), whose folder is empty and temporary; an
    InputError ends the program with its message."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(Path(folder), flags)
    except InputError as error:
        parser.error(str(error))
    print_report(report, flags.json)


def print_report(report: dict, file: Path | None) -> None:
    """Prints `report` as one line of JSON, and writes it to `file` if there is one."""
    text = json.dumps(report)
    print(text, flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
