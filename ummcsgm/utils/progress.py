"""Progress of long work: a bar on a terminal, elsewhere a plain line now and then."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """report(done, total) shows how far `what` is, and for how long it still goes on.

    On a terminal a bar, gone when the block ends; elsewhere a plain line every 10 s.
    """
    console = Console()
    bar = Progress(*progress_columns(what), console=console, disable=not console.is_terminal)
    task, start = bar.add_task("", total=None, note=""), time.monotonic()
    told = start

    def report(done: int, total: int) -> None:
        nonlocal told
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and (done == total or now - told > 10) and done:
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {format_clock(left)} left", flush=True)
            told = now

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
