"""What a training run tells while it runs: log.jsonl, TensorBoard, and a progress line.

On a terminal a bar with rate, loss and the time left; elsewhere a plain line a record.
"""

import contextlib
import json
import math
import pathlib
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

from ummcsgm.training.plans import LogOptions, TrainOptions
from ummcsgm.utils.atomic_io import write_atomic

LOG = "log.jsonl"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """report(done, total) shows how far `what` is, and for how long it still goes on.

    On a terminal a bar, gone when the block ends; elsewhere a plain line every 10 s.
    """
    console = Console()
    bar = Progress(*_columns(what), console=console, disable=not console.is_terminal)
    task, start = bar.add_task("", total=None, note=""), time.monotonic()
    told = start

    def report(done: int, total: int) -> None:
        nonlocal told
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and (done == total or now - told > 10) and done:
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {_clock(left)} left", flush=True)
            told = now

    with bar:
        yield report


class TrainingLog:
    """The records of a run after step `first`; a context manager.

    What earlier runs wrote of later steps is dropped, so that a resumed run's log is
    the uninterrupted one's.
    """

    def __init__(self, watch: LogOptions, first: int, plan: TrainOptions):
        self.path, self.least = watch.workdir / LOG, watch.least
        self.last, self.every, self.examples = plan.steps, plan.log_every, plan.batch
        self.records: list[dict] = []
        self.mark = time.monotonic()
        watch.workdir.mkdir(parents=True, exist_ok=True)
        _forget_after(self.path, first)
        self.folder = str(watch.workdir / "tensorboard")
        self.first, self.events = first, None
        self.console = Console()
        self.bar = Progress(
            *_columns("training"), console=self.console, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("", total=plan.steps, completed=first, note="compiling")

    def __enter__(self) -> "TrainingLog":
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()
        if self.events is not None:
            self.events.close()

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of the step that brought the count to `step`; every
        `every` steps their averages are written and shown."""
        self.records.append(metrics)
        self.bar.update(self.task, completed=step)
        if step % self.every and step != self.last:
            return
        now = time.monotonic()
        rate = len(self.records) / (now - self.mark)
        names = self.records[0]
        record = {name: _mean([r[name] for r in self.records]) for name in names}
        record["skipped"] = metrics["skipped"]
        record["seconds"] = now - self.mark
        record["images_per_second"] = rate * self.examples
        if self.least is not None:
            record["utilisation"] = rate * self.least
        self._show(step, record, (self.last - step) / rate)
        self._write(step, record)
        self.records, self.mark = [], time.monotonic()

    def _write(self, step: int, record: dict[str, float]) -> None:
        known = {n: v for n, v in record.items() if math.isfinite(v)}  # JSON has no NaN
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
        if self.events is None:
            # Here: where there is PyTorch this loads it, which takes a second.
            from tensorboardX import SummaryWriter

            self.events = SummaryWriter(self.folder, purge_step=self.first + 1, flush_secs=10)
        for name, value in known.items():
            self.events.add_scalar(f"train/{name}", value, step)

    def _show(self, step: int, record: dict[str, float], seconds_left: float) -> None:
        note = f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} images/s"
        if "utilisation" in record:
            note += f", {record['utilisation']:.0%} of peak FLOP/s"
        if record["skipped"]:
            note += f", {record['skipped']:.0f} steps skipped"
        self.bar.update(self.task, note=note)
        if not self.console.is_terminal:
            left = _clock(seconds_left)
            print(f"step {step}/{self.last}: {note}, {left} left", flush=True)


def training_seconds(place: pathlib.Path) -> float | None:
    """How long the run whose log lies in `place` trained, in all its starts; None where
    there is no log. What was done twice after a kill is counted once."""
    path = place / LOG
    if not path.is_file():
        return None
    lines = path.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return sum(record["seconds"] for record in records) if records else None


def _columns(what: str) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _mean(values: list[float]) -> float:
    """Over the finite ones: a skipped step has no loss. NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drops the records of steps after `step`, and a line cut short by a kill."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    write_atomic(path, "".join(kept))
