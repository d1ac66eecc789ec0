"""How fast training reads its batches, beside reading the same slices from NIfTI files.

    python -m ummcsgm.benchmarks.data [--subjects N] [--repeats R] [--processes P]
        [--json FILE]

Phantom subjects are written and their slices prepared in a temporary folder. Then, in turn,
`repeats` times: batches in the order of training, with the code of training; all slices of every
subject from NIfTI, each file read once for all its slices (the best case); random slices from
NIfTI. Last, how much memory reading batches adds to a process, from this store and from one with
four times as many slices: that of the batches read ahead.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from ummcsgm.benchmarks.report import make_parser, report_in_folder, summarise_ratios, system_load
from ummcsgm.data.build_store import build_stores
from ummcsgm.data.crop import SliceView
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.known import brats
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.loader import Batches, make_batches
from ummcsgm.data.phantom.make import write_phantom
from ummcsgm.data.store import Store, StoreSettings
from ummcsgm.data.subjects import network_slices, prepare_subject

MODALITIES = ("flair", "t1", "t1c", "t2")
PROCESS_STATUS = Path("/proc/self/status")  # where Linux has a process's peak memory
LARGER = 4  # the second store has so many times the slices of the first


def write_subjects(
    folder: Path,
    modalities: tuple[str, ...],
    shape: tuple[int, int, int],
    count: int,
    processes: int,
) -> list[Subject]:
    """`count` phantom subjects of `shape` voxels, whose files are in `folder`."""
    write_phantom(folder, subjects=count, shape=shape, seed=0, processes=processes)
    return list(find_subjects(folder, [brats(modalities, "")]).subjects)


def make_training_batches(store: Store, batch: int) -> Batches:
    """The batches of training."""
    return make_batches(store, batch=batch, seed=0, flip=True, process=0, processes=1)


def read_store(batches: Batches, count: int) -> int:
    """Reads `count` batches; returns their number of slices."""
    return sum(len(batch.images) for batch in islice(batches.from_step(0), count))


def read_nifti(subject: Subject, view: SliceView, z: np.ndarray) -> int:
    """Reads slices `z` as the network sees them; returns their number."""
    prepared = prepare_subject(subject, MODALITIES, view)
    return len(network_slices(prepared, MODALITIES, z))


def slices_per_second(read: Callable[[], int]) -> float:
    """The rate of `read`, which returns its number of slices."""
    start = time.perf_counter()
    count = read()
    return count / (time.perf_counter() - start)


def repeat_store(store: Store, times: int) -> Store:
    """A store with the slices of `store`, each `times` times under other subject names."""
    entries = tuple(
        replace(entry, name=f"{entry.name}-{k}") for k in range(times) for entry in store.subjects
    )
    larger = Store(store.path.with_name(f"{times}-times.npy"), store.settings, entries)
    with larger.path.open("wb") as file:
        file.write(larger.header)
        for index in range(len(larger)):
            file.write(store.read(np.array([index % len(store)]))[0])
    return larger


def peak_mib() -> float | None:
    """The peak memory of this process in MiB; None where the system does not report it."""
    if not PROCESS_STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def peak_growth(store: Store, batch: int, count: int) -> float | None:
    """The MiB by which reading `count` batches raises this process's peak."""
    before = peak_mib()
    for _ in islice(make_training_batches(store, batch).from_step(0), count):
        time.sleep(0.02)  # as in training, which is slower: batches are read ahead
    after = peak_mib()
    return None if before is None or after is None else round(after - before, 1)


def peak_growth_in_new_process(store: Store, batch: int, count: int) -> float | None:
    """`peak_growth` in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(peak_growth, store, batch, count).result()


def make_turn(
    store: Store, subjects: list[Subject], flags: argparse.Namespace
) -> Callable[[int], dict[str, float]]:
    """Returns turn(k): the slices a second of each way to read, in turn k."""
    batches, view = make_training_batches(store, flags.batch), store.settings.view
    slices = {entry.name: np.array(entry.slices) for entry in store.subjects}

    def turn(number: int) -> dict[str, float]:
        rng = np.random.default_rng(number)
        chosen = [subjects[i] for i in rng.integers(len(subjects), size=flags.random)]

        def in_order() -> int:
            return sum(read_nifti(subject, view, slices[subject.name]) for subject in subjects)

        def at_random() -> int:
            return sum(
                read_nifti(subject, view, rng.choice(slices[subject.name], 1)) for subject in chosen
            )

        return {
            "store": slices_per_second(lambda: read_store(batches, flags.batches)),
            "nifti": slices_per_second(in_order),
            "nifti_random": slices_per_second(at_random),
        }

    return turn


def measure(folder: Path, flags: argparse.Namespace) -> dict[str, object]:
    """The report; fills `folder`."""
    start = time.perf_counter()
    shape = tuple(flags.shape)
    subjects = write_subjects(
        folder / "phantom", MODALITIES, shape, flags.subjects, flags.processes
    )
    written = time.perf_counter()
    view = SliceView(tuple(flags.grid), 0.0, masked=False, neighbours=0)
    store = build_stores(
        folder / "prepared",
        {"train": subjects},
        StoreSettings(MODALITIES, view, min_brain=0.05),
        processes=flags.processes,
        report=lambda done, total: None,
    )["train"]
    prepared = time.perf_counter()
    turn = make_turn(store, subjects, flags)
    read_store(make_training_batches(store, flags.batch), 2)
    turns = [turn(number) for number in range(flags.repeats)]
    ratios = [turn["store"] / turn["nifti"] for turn in turns]
    larger = repeat_store(store, LARGER)
    return {
        "slices": len(store),
        "grid": [*store.settings.slice_shape],
        "batch": flags.batch,
        "phantom_s": round(written - start, 1),
        "prepare_s": round(prepared - written, 1),
        **{f"{way}_slices_per_s": [round(turn[way], 1) for turn in turns] for way in turns[0]},
        **summarise_ratios(ratios, 1),
        "median_ratio_random": round(
            statistics.median(turn["store"] / turn["nifti_random"] for turn in turns)
        ),
        "batch_mib": round(flags.batch * store.settings.slice_bytes / 2**20, 1),
        "store_mib": [round(s.path.stat().st_size / 2**20) for s in (store, larger)],
        "peak_growth_mib": [
            peak_growth_in_new_process(s, flags.batch, len(larger) // flags.batch + 1)
            for s in (store, larger)
        ],
        "load": system_load(),
    }


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--grid", type=int, nargs=2, default=(192, 192))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--random", type=int, default=2, help="slices of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    report_in_folder(parser, flags, measure)


if __name__ == "__main__":
    main()
