"""How every benchmark tells what it measured."""

import argparse
import json
from pathlib import Path


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that begins with the first line of `doc`, and has the flag --json."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    told = "where what is printed is also written"
    parser.add_argument("--json", type=Path, metavar="FILE", help=told)
    return parser


def tell(report: dict, file: Path | None) -> None:
    """The last line printed is `report`, one JSON object; `file`, if one was named,
    holds the same."""
    text = json.dumps(report)
    print(text, flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
