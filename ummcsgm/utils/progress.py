"""Progress bars and tables on a terminal; elsewhere plain lines."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total), which shows the progress of `what` and the time left.

    On a terminal it is a bar; elsewhere a plain line every 10 s.
    """
    console = Console()
    bar = Progress(*progress_columns(what), console=console, disable=not console.is_terminal)
    task, start = bar.add_task("", total=None, note=""), time.monotonic()
    last_line = start

    def report(done: int, total: int) -> None:
        nonlocal last_line
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and (done == total or now - last_line > 10) and done:
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {format_clock(left)} left", flush=True)
            last_line = now

    with bar:
        yield report


def progress_columns(what: str) -> tuple[ProgressColumn, ...]:
    """The columns of a bar: `what`, bar, count, time left and a note."""
    return (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def format_clock(seconds: float) -> str:
    """90 -> "1:30"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Prints a table on a terminal; elsewhere a plain line for each row."""
    console = Console()
    if not console.is_terminal:
        print(f"{title}: {' | '.join(columns)}")
        for row in rows:
            print(" | ".join(map(str, row)))
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
