"""The command that training and evaluation begin with: slices made ready to be read."""

import functools
import pathlib
import statistics

import numpy as np

from ummcsgm.config import build_data
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.store import Store
from ummcsgm.distributed import processes
from ummcsgm.types import Config
from ummcsgm.utils.progress import progress_bar


def prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    """The subjects of the run, and their prepared slices by split, in the workdir.

    The first process of a job makes what is not there; the others find it.

    Raises:
        InputError: the config or the data is wrong.
    """
    return processes.main_process_first(functools.partial(_prepare, config, workdir))


def _prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    build_data.check_data(config)
    cohort = build_data.build_cohort(config, workdir)
    if cohort.left_out:
        print(f"left out, with fewer than two modalities: {', '.join(cohort.left_out)}", flush=True)
    if cohort.unused_files:
        print(
            f"not read: {len(cohort.unused_files)} files that are no scan of the layout, "
            f"such as {cohort.unused_files[0]}",
            flush=True,
        )
    with progress_bar("preparing") as report:
        stores = build_data.build_stores(config, workdir, cohort, report)
    counts = ", ".join(
        f"{len(store)} {split} slices of {len(store.subjects)} subjects"
        for split, store in stores.items()
    )
    print(f"prepared: {counts}", flush=True)
    return cohort, stores


def normaliser(store: Store, modalities: tuple[str, ...]) -> dict:
    """What undoes the scaling of a scan that is not there.

    Medians over the training subjects of each modality's scale, and of the size of a
    voxel in the plane, in mm; and the range of all their scaled values, but for the
    0.1 % on either side of each.
    """
    ranges = {
        name: [e.ranges[name] for e in store.subjects if e.ranges[name] is not None]
        for name in modalities
    }
    return {
        "scales": {name: statistics.median(store.scales(name).values()) for name in modalities},
        "ranges": {
            name: (min(low for low, _ in own), max(high for _, high in own))
            for name, own in ranges.items()
        },
        "spacing": np.median([e.spacing for e in store.subjects], axis=0).tolist(),
    }
