"""The log of a training run: log.jsonl, TensorBoard, a progress line, traces, utilisation.

On a terminal a bar with rate, loss and the time left; elsewhere a plain line per record.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from ummcsgm.training.loop import TrainOptions
from ummcsgm.utils.atomic_io import write_atomic
from ummcsgm.utils.progress import format_clock, progress_columns

LOG = "log.jsonl"
TRACES = "profile"  # the folder of traces in a workdir
TRACED_STEPS = (10, 20)  # steps after the first of a run, of which a trace is written

# FLOP/s of a device in bfloat16, dense, from the vendors' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class TrainingLog:
    """The records of a run after step `first`; a context manager.

    Records of later steps from earlier runs are dropped, so that the log of a resumed
    run is that of the uninterrupted one. `min_step_seconds`, where known, is the time of
    a step at the devices' peak: its share of the real time is logged as `utilisation`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        options: TrainOptions,
        first: int,
        min_step_seconds: float | None = None,
    ):
        self.path, self.min_step_seconds = folder / LOG, min_step_seconds
        self.options, self.first = options, first
        self.records: list[dict] = []
        self.last_time = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_records_after(self.path, first)
        self.tensorboard = None
        self.console = Console()
        self.bar = Progress(
            *progress_columns("training"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=options.steps, completed=first, note="compiling")

    def __enter__(self) -> "TrainingLog":
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()
        if self.tensorboard is not None:
            self.tensorboard.close()

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of `step`. Every `log_every` steps, and after the last, their
        means are written and shown."""
        self.records.append(metrics)
        self.bar.update(self.task, completed=step)
        if step % self.options.log_every and step != self.options.steps:
            return
        now = time.monotonic()
        rate = len(self.records) / (now - self.last_time)
        record = {name: _finite_mean([r[name] for r in self.records]) for name in self.records[0]}
        record["skipped"] = metrics["skipped"]
        record["seconds"] = now - self.last_time
        record["images_per_second"] = rate * self.options.batch
        if self.min_step_seconds is not None:
            record["utilisation"] = rate * self.min_step_seconds
        self._show(step, record, (self.options.steps - step) / rate)
        self._write(step, record)
        self.records, self.last_time = [], time.monotonic()

    def _write(self, step: int, record: dict[str, float]) -> None:
        finite = {n: v for n, v in record.items() if math.isfinite(v)}  # JSON has no NaN
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        if self.tensorboard is None:
            # Imported here: with PyTorch installed it takes a second to load.
            from tensorboardX import SummaryWriter

            folder = str(self.path.with_name("tensorboard"))
            self.tensorboard = SummaryWriter(folder, purge_step=self.first + 1, flush_secs=10)
        for name, value in finite.items():
            self.tensorboard.add_scalar(f"train/{name}", value, step)

    def _show(self, step: int, record: dict[str, float], seconds_left: float) -> None:
        note = f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} images/s"
        if "utilisation" in record:
            note += f", {record['utilisation']:.0%} of peak FLOP/s"
        if record["skipped"]:
            note += f", {record['skipped']:.0f} steps skipped"
        self.bar.update(self.task, note=note)
        if not self.console.is_terminal:
            left = format_clock(seconds_left)
            print(f"step {step}/{self.options.steps}: {note}, {left} left", flush=True)


def training_seconds(folder: pathlib.Path) -> float | None:
    """The seconds that the run logged in `folder` trained, over all its starts; None
    without a log. Steps repeated after a kill count once."""
    path = folder / LOG
    if not path.is_file():
        return None
    records = [json.loads(line) for line in _whole_lines(path)]
    return sum(record["seconds"] for record in records) if records else None


def peak_flops(kind: str) -> float | None:
    """The peak FLOP/s of a device of this kind; None if unknown.

    `kind` is JAX's name, which may be longer than ours: NVIDIA H100 80GB HBM3.
    """
    names = [name for name in PEAK_FLOPS if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def program_flops(program: Callable, *arguments: Any) -> float:
    """The FLOPs of one call of a jitted or mapped `program`, on one of its devices.

    As XLA counts them before it chooses kernels; the body of a loop counts once. The
    devices must be CPUs: XLA's clients of other devices do not count.
    """
    return float(program.lower(*arguments).cost_analysis()["flops"])


@contextlib.contextmanager
def profiler_trace(folder: pathlib.Path | None) -> Iterator[Callable[[int], None]]:
    """before_step(i), to be called before the i-th step of a run, from 0 on: writes a
    trace of TRACED_STEPS to `folder`, for XProf or TensorBoard; nothing if it is None."""
    writing = False

    def before_step(index: int) -> None:
        nonlocal writing
        if folder is not None and index == TRACED_STEPS[0]:
            jax.profiler.start_trace(str(folder))
            writing = True
        elif writing and index == TRACED_STEPS[1]:
            jax.profiler.stop_trace()
            writing = False

    try:
        yield before_step
    finally:
        if writing:
            jax.profiler.stop_trace()


def _finite_mean(values: list[float]) -> float:
    """A skipped step has no loss. NaN if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Its lines, without one cut short by a kill."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _drop_records_after(path: pathlib.Path, step: int) -> None:
    if path.is_file():
        lines = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        write_atomic(path, "".join(lines))
