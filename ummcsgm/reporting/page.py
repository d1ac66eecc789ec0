"""One self-contained HTML file that opens offline, and the same content as Markdown."""

import base64
import html
import json
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
from ummcsgm.reporting.curves import KINDS, svg
from ummcsgm.reporting.gallery import SD, Shown, read_subject
from ummcsgm.reporting.markdown import markdown
from ummcsgm.reporting.runs import NETWORK, Run, read_runs
from ummcsgm.reporting.sections import TITLE, opening, sections
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import write_atomic

VIEWS = {"images": "images", "error": "absolute error", "sd": "predicted standard deviation"}
# Nothing is ever fetched, and the browser is told to see to it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
CONVENTION = (
    "In each column that modality is missing and the others are given. Axial slices in "
    "radiological convention: anterior is up, the patient's right (R) is on the left. "
    "Numbers below a map are its means over the brain in this slice, in grey levels "
    "of 0 to 255."
)


def compare(workdirs: list[str], output: str | None) -> None:
    """The folder `output` holds one report of several runs.

    Raises:
        InputError: no runs are named, or no folder, or one holds no study.
    """
    if not workdirs:
        raise InputError("--mode compare wants workdirs: --mode compare RUN RUN ...")
    if not output:
        raise InputError("--output is missing: name the folder for the report.")
    folder = Path(output)
    write_report([Path(workdir) for workdir in workdirs], folder)
    print(f"the report is {folder / 'report.html'}")


def write_report(workdirs: list[Path], folder: Path) -> None:
    """`folder` holds report.html and report.md of the studies in `workdirs`.

    Raises:
        InputError: one of them holds no study.
    """
    runs = read_runs(workdirs)
    write_page(folder / "report.html", runs)
    text = markdown(TITLE, opening(runs), sections(runs), folder)
    write_atomic(folder / "report.md", text)


def write_page(path: Path, runs: list[Run]) -> None:
    """`path` holds one HTML file with everything in it, which fetches nothing."""
    found = sections(runs)
    style, script = (
        (Path(__file__).parent / "templates" / f"report.{end}").read_text() for end in ("css", "js")
    )
    links = (f'<a href="#{_anchor(s.title)}">{_safe(s.title)}</a>' for s in found)
    title = _safe(f"{TITLE}: {', '.join(run.name for run in runs)}")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f'<title>{title}</title>\n<link rel="icon" href="data:,">',
        f"<style>\n{style}</style>\n</head>\n<body>\n<header>\n<h1>{_safe(TITLE)}</h1>",
        *map(_block, opening(runs)),
        f'<nav aria-label="Sections">{" ".join(links)}</nav>\n</header>\n<main>',
        *map(_section, found),
        f"</main>\n<script>\n{script}</script>\n</body>\n</html>\n",
    ]
    write_atomic(path, "\n".join(parts))


def _section(section: Section) -> str:
    parts, plots = [], []
    for block in (*section.blocks, None):
        if isinstance(block, Curves):
            plots.append(_block(block))
            continue
        if plots:  # side by side, as far as there is room
            parts.append(f'<div class="plots">{"".join(plots)}</div>')
            plots = []
        if block is not None:
            parts.append(_block(block))
    anchor, title = _anchor(section.title), _safe(section.title)
    inner = "\n".join(parts)
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{inner}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Words(text, kind):
            return f'<p class="{kind}">{_safe(text)}</p>'
        case Points(lines):
            items = "".join(f"<li>{_safe(line)}</li>" for line in lines)
            return f"<ul>{items}</ul>"
        case Listing(title, text, opened):
            inner = f'<pre tabindex="0">{_safe(text)}</pre>'
            head = f"<details{' open' if opened else ''}><summary>{_safe(title)}"
            return f"{head}</summary>{inner}</details>"
        case Picture():
            return _picture(block)
        case Curves():
            return _plot(block)
        case Slices():
            return _slices(block)
    raise TypeError(f"no HTML for a {type(block).__name__}")


def _table(table: Table) -> str:
    """A table that scrolls within its own frame where the window is narrow."""
    kinds = [_kind(*each, table.names) for each in enumerate(table.head)]
    head = "".join(
        f'<th scope="col" class="{kind}">{_safe(name)}</th>'
        for name, kind in zip(table.head, kinds, strict=True)
    )
    lines = "".join(f"<tr>{_line(line, kinds)}</tr>\n" for line in table.lines)
    caption = _safe(table.caption)
    notes = "".join(f'<p class="note">{_safe(note)}</p>' for note in table.notes)
    pinned = " pinned" if table.names == 1 else ""
    frame = (
        f'<div class="frame{pinned}" tabindex="0" role="region" aria-label="{caption}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table>"
        f"</div>{notes}"
    )
    if table.folded:
        return f"<details><summary>{caption}</summary>{frame}</details>"
    return f"<h3>{caption}</h3>\n{frame}"


def _kind(place: int, name: str, names: int) -> str:
    if place >= names:
        return "number"
    return "word method" if name in ("method", "") else "word"


def _line(line: tuple[Cell, ...], kinds: list[str]) -> str:
    cells = []
    for place, (cell, kind) in enumerate(zip(line, kinds, strict=True)):
        text = _safe(cell.text)
        text = f"<b>{text}</b>" if cell.best else text
        if cell.below:
            text += f"<small>{_safe(cell.below)}</small>"
        tag, scope = ("td", "") if place else ("th", ' scope="row"')
        cells.append(f'<{tag}{scope} class="{kind}">{text}</{tag}>')
    return "".join(cells)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    words = _safe(picture.words)
    image = f'<img alt="{words}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _plot(curves: Curves) -> str:
    title = _safe(curves.title)
    names = ""
    if len(curves.lines) > 1:
        keys = (
            f'<span class="key kind{place % KINDS}">{_safe(name)}</span>'
            for place, name in enumerate(curves.lines)
        )
        names = f'<div class="keys">{" ".join(keys)}</div>'
    return f"<figure><figcaption>{title}</figcaption>{svg(curves)}{names}</figure>"


def _slices(slices: Slices) -> str:
    """The controls, a row of tiles for each method, and every sprite as text."""
    methods = tuple(slices.methods)
    shown = {name: read_subject(p, methods, NETWORK) for name, p in slices.paths.items()}
    rows = [r for r in ("truth", *methods, SD) if any(r in s.rows for s in shown.values())]
    titles = {"truth": "truth", **slices.methods, SD: VIEWS[SD]}
    about = {
        "modalities": slices.modalities,
        "network": NETWORK,
        "subjects": [
            {"slices": s.slices, "rows": s.rows, "size": s.size, "limits": s.limits}
            for s in shown.values()
        ],
    }
    head = "".join(f"<span>{_safe(name)}</span>" for name in slices.modalities)
    tiles = "".join(_row(row, titles[row]) for row in rows)
    return (
        f'<div class="gallery" data-about="{_safe(json.dumps(about))}"'
        f' style="--columns:{max(1, len(slices.modalities))}">'
        f"{_controls(slices.title, shown, SD in rows)}"
        f'<div class="row"><div></div><div class="names">{head}</div></div>{tiles}'
        f'<p class="note">{_safe(CONVENTION)}</p>'
        "<noscript><p>The slices are drawn by JavaScript, which is off.</p></noscript>"
        f"{''.join(map(_sprites, range(len(shown)), shown.values()))}</div>"
    )


def _row(name: str, title: str) -> str:
    return (
        f'<div class="row" data-row="{_safe(name)}"><div class="label">{_safe(title)}'
        '<i class="what"></i></div><div class="tiles"><canvas role="img"></canvas>'
        '<div class="means"></div></div></div>'
    )


def _controls(title: str, shown: dict[str, Shown], any_sd: bool) -> str:
    """Subject, slice and what is shown of it, with the scale of greys or colours."""
    name = _safe(title)
    options = "".join(
        f'<option value="{place}">{_safe(subject)}</option>' for place, subject in enumerate(shown)
    )
    radios = "".join(
        f'<label><input type="radio" name="view {name}" value="{view}"'
        f"{' checked' if view == 'images' else ''}> {words}</label>"
        for view, words in VIEWS.items()
        if any_sd or view != SD
    )
    return (
        f'<div class="controls"><label>subject <select>{options}</select></label>'
        '<label class="slider">slice <input type="range" min="0" value="0" step="1">'
        '<output aria-live="polite"></output></label>'
        f'<fieldset><legend class="hidden">shown</legend>{radios}</fieldset>'
        '<div class="scale"><span class="low">0</span><i></i><span class="high"></span>'
        "</div></div>"
    )


def _sprites(subject: int, shown: Shown) -> str:
    return "".join(
        f'<script type="text/plain" data-sprite="{subject}-{place}">{sprite}</script>'
        for place, sprite in enumerate(shown.sprites)
    )


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _safe(text: str) -> str:
    return html.escape(str(text), quote=True)
