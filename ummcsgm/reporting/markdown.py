"""A report as Markdown that is easy to read in a terminal, too."""

import os
import re
from pathlib import Path

from ummcsgm.reporting.cells import (
    Block,
    Cell,
    Curves,
    Listing,
    Picture,
    Points,
    Section,
    Slices,
    Table,
    Words,
)


def markdown(title: str, opening: list[Block], sections: list[Section], folder: Path) -> str:
    """The report; pictures are links, relative to `folder`."""
    parts = [f"# {escaped(title)}", *_all(opening, folder)]
    for section in sections:
        parts += [f"## {escaped(section.title)}", *_all(section.blocks, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(words: str) -> str:
    """`words` that Markdown shows as they are, in one line."""
    return re.sub(r"([|<>*\\`])", r"\\\1", " ".join(words.split()))


def _all(blocks: tuple[Block, ...] | list[Block], folder: Path) -> list[str]:
    return [_block(block, folder) for block in blocks]


def _block(block: Block, folder: Path) -> str:
    match block:
        case Table():
            return _table(block)
        case Words(text, kind):
            return f"**{escaped(text)}**" if kind else escaped(text)
        case Points(lines):
            return "\n".join(f"- {escaped(line)}" for line in lines)
        case Listing(title, text):
            return f"{escaped(title)}:\n\n```\n{text}\n```"
        case Picture(path, words):
            return _link(path, words, folder)
        case Curves():
            return ""  # report.html has the plots, the table below them is here
        case Slices(title, still=still):
            words = f"{title}: every slice is in report.html"
            return _link(still, words, folder) if still else f"{escaped(words)}."
    raise TypeError(f"no Markdown for a {type(block).__name__}")


def _link(path: Path, words: str, folder: Path) -> str:
    place = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return f"![{escaped(words)}](<{place}>)"


def _table(table: Table) -> str:
    """Caption, lines with columns of one width, and notes."""
    lines = [
        [escaped(name) for name in table.head],
        *([_cell(cell) for cell in line] for line in table.lines),
    ]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if place < table.names else "-" * (width - 1) + ":"
        for place, width in enumerate(widths)
    ]
    rows = [lines[0], rule, *lines[1:]]
    drawn = [_row(row, widths, table.names) for row in rows]
    notes = "\n".join(f"- {escaped(note)}" for note in table.notes)
    parts = [f"**{escaped(table.caption)}**", "\n".join(drawn), notes]
    return "\n\n".join(part for part in parts if part)


def _row(words: list[str], widths: list[int], names: int) -> str:
    padded = [
        word.ljust(width) if place < names else word.rjust(width)
        for place, (word, width) in enumerate(zip(words, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({escaped(cell.below)})" if cell.below else text
