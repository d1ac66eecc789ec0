"""A report as sections of blocks, written as one HTML page and as Markdown."""

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ummcsgm.reporting.figures import CURVE_COLOURS, training_curves_svg
from ummcsgm.reporting.gallery import SD, read_sprites
from ummcsgm.reporting.study_results import NETWORK
from ummcsgm.reporting.tables import Cell, Table
from ummcsgm.utils.atomic_io import write_atomic

VIEWS = {"images": "images", "error": "absolute error", "sd": "predicted standard deviation"}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. Its style is "warning", "run" (the name of the study that follows) or empty."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """Preformatted text below a title; the reader opens it unless it is `opened`."""

    title: str
    text: str
    opened: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG on disk and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True)
class TrainingCurves:
    """Steps and losses [n, 2] under each label, in one plot."""

    title: str
    curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class SliceViewer:
    """Figure 2 of every slice, with a slider.

    A gallery file for each subject; titles of the methods in the figure's order, by name;
    and the figure of one slice, for Markdown.
    """

    title: str
    galleries: dict[str, Path]
    modalities: tuple[str, ...]
    methods: dict[str, str]
    figure: Path | None


Block = Table | Paragraph | Bullets | Listing | Picture | TrainingCurves | SliceViewer


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A title, the blocks below it, and sections. `subtitle` is only in an HTML page's title."""

    title: str
    opening: tuple[Block, ...]
    sections: tuple[Section, ...] = ()
    subtitle: str = ""


def write_html(path: Path, document: Document) -> None:
    """Writes one HTML file with everything in it, which fetches nothing."""
    environment = Environment(
        loader=PackageLoader("ummcsgm.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "anchor": lambda title: re.sub(r"\W+", "-", title.lower()),
        "base64_of": lambda file: base64.b64encode(file.read_bytes()).decode(),
        "svg": _labelled_svg,
        "viewer": _read_viewer,
    }
    names = {"class_of": lambda block: type(block).__name__, "colours": CURVE_COLOURS}
    page = environment.get_template("report.html.j2").render(document=document, **names)
    write_atomic(path, page)


def _labelled_svg(plot: TrainingCurves) -> Markup:
    label = Markup('<svg role="img" aria-label="Training loss over step: {}"').format(plot.title)
    return label + Markup(training_curves_svg(plot.title, plot.curves).removeprefix("<svg"))


def _read_viewer(block: SliceViewer) -> dict[str, Any]:
    """What the template and the script need of a SliceViewer."""
    methods = tuple(block.methods)
    subjects = {name: read_sprites(f, methods, NETWORK) for name, f in block.galleries.items()}
    titles = {"truth": "truth", **block.methods, SD: VIEWS[SD]}
    rows = {
        row: title
        for row, title in titles.items()
        if any(row in subject.rows for subject in subjects.values())
    }
    data = {
        "modalities": block.modalities,
        "network": NETWORK,
        "subjects": [
            {"slices": s.slices, "rows": s.rows, "size": s.size, "limits": s.limits}
            for s in subjects.values()
        ],
    }
    views = {view: title for view, title in VIEWS.items() if view != SD or SD in rows}
    return {"subjects": subjects, "rows": rows, "data": data, "views": views}


def write_markdown(path: Path, document: Document) -> None:
    """Writes Markdown that is easy to read in a terminal, too; pictures are relative links."""
    parts = [f"# {escape_markdown(document.title)}"]
    parts += [_block_markdown(block, path.parent) for block in document.opening]
    for section in document.sections:
        parts.append(f"## {escape_markdown(section.title)}")
        parts += [_block_markdown(block, path.parent) for block in section.blocks]
    write_atomic(path, "\n\n".join(part for part in parts if part) + "\n")


def escape_markdown(text: str) -> str:
    """`text` in one line, with every character that Markdown would interpret escaped."""
    return re.sub(r"([|<>*\\`])", r"\\\1", " ".join(text.split()))


def _block_markdown(block: Block, folder: Path) -> str:
    match block:
        case Table():
            return table_markdown(block)
        case Paragraph(text, style):
            return f"**{escape_markdown(text)}**" if style else escape_markdown(text)
        case Bullets(items):
            return "\n".join(f"- {escape_markdown(item)}" for item in items)
        case Listing(title, text):
            return f"{escape_markdown(title)}:\n\n```\n{text}\n```"
        case Picture(path, caption):
            return _link_markdown(path, caption, folder)
        case TrainingCurves():
            return ""  # only in report.html; the table of losses is in both
        case SliceViewer(title, figure=figure):
            text = f"{title}: every slice is in report.html"
            return _link_markdown(figure, text, folder) if figure else f"{escape_markdown(text)}."
    raise TypeError(f"no Markdown for a {type(block).__name__}")


def _link_markdown(path: Path, caption: str, folder: Path) -> str:
    relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return f"![{escape_markdown(caption)}](<{relative}>)"


def table_markdown(table: Table) -> str:
    """Caption, columns padded to one width, and notes."""
    rows = [[escape_markdown(name) for name in table.columns]]
    rows += [[_cell_markdown(cell) for cell in row] for row in table.rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    words = table.label_columns
    padded = [
        [
            text.ljust(width) if k < words else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = ["-" * w if k < words else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:]))
    notes = "\n".join(f"- {escape_markdown(note)}" for note in table.notes)
    caption = f"**{escape_markdown(table.caption)}**" if table.caption else ""
    return "\n\n".join(part for part in (caption, lines, notes) if part)


def _cell_markdown(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({escape_markdown(cell.below)})" if cell.below else text
