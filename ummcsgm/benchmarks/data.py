"""How fast training's batches are read, beside reading the same slices from NIfTI.

    python -m ummcsgm.benchmarks.data [--subjects N] [--repeats R] [--processes P]
        [--json FILE]

Makes phantom subjects and prepares their slices in a temporary folder. Then, in turn,
`repeats` times: batches in the order of training, by the very code of training; all
slices of every subject through NIfTI, each file read once for all of them, which is the
best case; slices at random through NIfTI. Last, how much memory reading batches adds
to a process, from this store and from one of four times as many slices: it is that of
the batches that are read ahead.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from ummcsgm.benchmarks.report import make_parser, tell
from ummcsgm.data.build_store import prepare
from ummcsgm.data.layouts.naming import Subject, brats
from ummcsgm.data.layouts.search import find_subjects
from ummcsgm.data.loader import Batches, make_batches
from ummcsgm.data.phantom.make import write_phantom
from ummcsgm.data.store import Settings, Store
from ummcsgm.data.subjects import SliceView, network_slices, prepare_subject

MODALITIES = ("flair", "t1", "t1c", "t2")
STATUS = Path("/proc/self/status")  # Linux tells a process its peak memory here
LARGER = 4  # times the slices, of the second store whose reading is weighed


def write_subjects(
    folder: Path,
    modalities: tuple[str, ...],
    shape: tuple[int, int, int],
    count: int,
    processes: int,
) -> list[Subject]:
    """So many phantom subjects of `shape` voxels, whose files `folder` holds."""
    write_phantom(folder, subjects=count, shape=shape, seed=0, processes=processes)
    return list(find_subjects(folder, [brats(modalities, "")]).subjects)


def batches_of(store: Store, batch: int) -> Batches:
    """The batches of training."""
    return make_batches(store, batch=batch, seed=0, flip=True, process=0, processes=1)


def from_store(batches: Batches, count: int) -> int:
    """How many slices there are in `count` batches, which were read."""
    return sum(len(batch.images) for batch in islice(batches.from_step(0), count))


def from_nifti(subject: Subject, view: SliceView, z: np.ndarray) -> int:
    """How many slices `z` are, which were read as the network sees them."""
    prepared = prepare_subject(subject, MODALITIES, view)
    return len(network_slices(prepared, MODALITIES, z))


def rate(work: Callable[[], int]) -> float:
    """Slices a second."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def repeated(store: Store, times: int) -> Store:
    """A store of the slices of `store`, each `times` times under other names."""
    entries = tuple(
        replace(entry, name=f"{entry.name}-{k}") for k in range(times) for entry in store.subjects
    )
    larger = Store(store.path.with_name(f"{times}-times.npy"), store.settings, entries)
    with larger.path.open("wb") as file:
        file.write(larger.header)
        for place in range(len(larger)):
            file.write(store.read(np.array([place % len(store)]))[0])
    return larger


def peak_mib() -> float | None:
    """The most memory this process has held, in MiB; None where that is not told."""
    if not STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def growth(store: Store, batch: int, count: int) -> float | None:
    """The MiB by which reading `count` batches raises the peak of this process."""
    before = peak_mib()
    for _ in islice(batches_of(store, batch).from_step(0), count):
        time.sleep(0.02)  # training is slower than reading: all is read ahead
    after = peak_mib()
    return None if before is None or after is None else round(after - before, 1)


def growth_apart(store: Store, batch: int, count: int) -> float | None:
    """`growth` in a new process, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(growth, store, batch, count).result()


def make_contest(
    store: Store, subjects: list[Subject], flags: argparse.Namespace
) -> Callable[[int], dict[str, float]]:
    """contest(k): the slices a second of each way to read, in its turn k."""
    batches, view = batches_of(store, flags.batch), store.settings.view
    kept = {e.name: np.array(e.slices) for e in store.subjects}

    def contest(turn: int) -> dict[str, float]:
        rng = np.random.default_rng(turn)
        some = [subjects[i] for i in rng.integers(len(subjects), size=flags.random)]

        def in_order() -> int:
            return sum(from_nifti(one, view, kept[one.name]) for one in subjects)

        def at_random() -> int:
            z = [rng.choice(kept[one.name], 1) for one in some]
            pairs = zip(some, z, strict=True)
            return sum(from_nifti(one, view, at) for one, at in pairs)

        return {
            "store": rate(lambda: from_store(batches, flags.batches)),
            "nifti": rate(in_order),
            "nifti_random": rate(at_random),
        }

    return contest


def measure(folder: Path, flags: argparse.Namespace) -> dict[str, object]:
    """What is printed; `folder` is filled."""
    start = time.perf_counter()
    about = (tuple(flags.shape), flags.subjects, flags.processes)
    subjects = write_subjects(folder / "phantom", MODALITIES, *about)
    written = time.perf_counter()
    view = SliceView(tuple(flags.grid), 0.0, masked=False, neighbours=0)
    store = prepare(
        folder / "prepared",
        {"train": subjects},
        Settings(MODALITIES, view, min_brain=0.05),
        processes=flags.processes,
        report=lambda done, total: None,
    )["train"]
    prepared = time.perf_counter()
    contest = make_contest(store, subjects, flags)
    from_store(batches_of(store, flags.batch), 2)
    turns = [contest(turn) for turn in range(flags.repeats)]
    ratios = [turn["store"] / turn["nifti"] for turn in turns]
    larger = repeated(store, LARGER)
    return {
        "slices": len(store),
        "grid": [*store.settings.slice_shape],
        "batch": flags.batch,
        "phantom_s": round(written - start, 1),
        "prepare_s": round(prepared - written, 1),
        **{f"{way}_slices_per_s": [round(turn[way], 1) for turn in turns] for way in turns[0]},
        "ratios": [round(ratio, 1) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 1),
        "median_ratio_random": round(
            statistics.median(turn["store"] / turn["nifti_random"] for turn in turns)
        ),
        "batch_mib": round(flags.batch * store.settings.slice_bytes / 2**20, 1),
        "store_mib": [round(s.path.stat().st_size / 2**20) for s in (store, larger)],
        "peak_growth_mib": [
            growth_apart(one, flags.batch, len(larger) // flags.batch + 1)
            for one in (store, larger)
        ],
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def main() -> None:
    """Measures, and prints one JSON object."""
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
    with tempfile.TemporaryDirectory() as folder:
        tell(measure(Path(folder), flags), flags.json)


if __name__ == "__main__":
    main()
