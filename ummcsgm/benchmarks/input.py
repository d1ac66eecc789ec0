"""Whether training waits for its input.

    python -m ummcsgm.benchmarks.input [--config FILE] [--subjects N] [--shape X Y Z]
        [--steps S] [--repeats R] [--processes P] [--json FILE]

Phantom subjects are prepared as the config says. Then `loop.run_training` trains the config's
network, in turn, `repeats` times: on one constant batch in memory, and on the batches that it
reads. Reported are the ms a step of both, over S steps after the first WARM, and their ratio, whose
median should be 1.03 at most. Both batches go from host memory to the device, so that only reading
is compared. The slices are in the page cache: a slow disk is not seen here.
"""

import argparse
import contextlib
import functools
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ummcsgm.benchmarks.data import make_training_batches, write_subjects
from ummcsgm.benchmarks.networks import read_config, start_training
from ummcsgm.benchmarks.report import make_parser, report_in_folder, summarise_ratios, system_load
from ummcsgm.config import build, build_data
from ummcsgm.data.build_store import build_stores
from ummcsgm.data.loader import Batches
from ummcsgm.data.store import Store
from ummcsgm.distributed import devices
from ummcsgm.training.dsm_step import TrainState
from ummcsgm.training.logging import TrainingLog
from ummcsgm.training.loop import run_training, with_stop_flag
from ummcsgm.types import Batch, Config

WANTED = 1.03  # of the median ratio, at most
WARM = 8  # steps before the clock starts: all is compiled, and batches are read ahead


class ConstantBatches(NamedTuple):
    """`Batches` that are all the same one."""

    batch: Batch

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batch, repeated without end."""
        return itertools.repeat(self.batch)


def make_timer(config: Config, folder: Path, steps: int) -> Callable:
    """Returns timer(batches): the ms a step of training on them, in the training loop."""
    _, step, state = start_training(config)
    step = functools.partial(devices.pmap_step(with_stop_flag(step)), jax.random.key(1))
    # The loop saves when a step has ended completely: then the clock is read.
    first = WARM * steps  # a multiple of `steps`
    plan = replace(build.build_train_options(config), steps=first + steps, save_every=first)
    state = state.replace(step=np.int32(first - WARM))

    def timer(batches: Batches | ConstantBatches) -> float:
        times = []

        def save(done: int, state: TrainState) -> None:
            times.append(time.perf_counter())

        with tempfile.TemporaryDirectory(dir=folder) as workdir:
            with contextlib.redirect_stdout(sys.stderr):  # not among the report's lines
                replicated = devices.replicate(state)
                with TrainingLog(Path(workdir), plan, first - WARM) as log:
                    run_training(step, replicated, batches, plan, save, log=log.add)
        start, end = times
        return 1000 * (end - start) / steps

    return timer


def prepare_phantom(folder: Path, config: Config, flags: argparse.Namespace) -> Store:
    """The slices of phantom subjects, prepared as the config says."""
    space = build.build_space(config)
    shape = config.phantom.shape if flags.shape is None else flags.shape
    subjects = write_subjects(
        folder / "phantom", space.modalities, tuple(shape), flags.subjects, flags.processes
    )
    return build_stores(
        folder / "prepared",
        {"train": subjects},
        build_data.build_settings(config),
        processes=flags.processes,
        report=lambda done, total: None,
    )["train"]


def measure(folder: Path, flags: argparse.Namespace) -> dict:
    """The report; fills `folder`."""
    config = read_config(flags.config)
    devices.use_cpu_cores(config.train.batch // config.train.accumulate)
    build.check_config(config, jax.device_count())
    store = prepare_phantom(folder, config, flags)
    batches = make_training_batches(store, config.train.batch)
    ways = {"constant": ConstantBatches(batches.at(0)), "read": batches}
    timer = make_timer(config, folder, flags.steps)
    timer(ways["constant"])  # compiles
    turns = [{name: timer(batches) for name, batches in ways.items()} for _ in range(flags.repeats)]
    ratios = [turn["read"] / turn["constant"] for turn in turns]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch": config.train.batch,
        "grid": [*store.settings.slice_shape],
        "slices": len(store),
        "steps": flags.steps,
        **{f"{way}_ms": [round(turn[way], 3) for turn in turns] for way in ways},
        **summarise_ratios(ratios, 4),
        "wanted": WANTED,
        "load": system_load(),
    }


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--shape", type=int, nargs=3, help="the config's phantom's")
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    report_in_folder(parser, flags, measure)


if __name__ == "__main__":
    main()
