"""The command that training and evaluation begin with: slices made ready to be read."""

import pathlib

from ummcsgm import build_data
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.store import Store
from ummcsgm.progress import counting
from ummcsgm.types import Config


def prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    """The subjects of the run, and their prepared slices by split, in the workdir.

    Raises:
        InputError: the config or the data is wrong.
    """
    build_data.check_data(config)
    cohort = build_data.build_cohort(config, workdir)
    if cohort.left_out:
        print(
            f"left out, with fewer than two modalities: {', '.join(cohort.left_out)}",
            flush=True,
        )
    with counting("preparing") as report:
        stores = build_data.build_stores(config, workdir, cohort, report)
    counts = ", ".join(
        f"{len(store)} {split} slices of {len(store.subjects)} subjects"
        for split, store in stores.items()
    )
    print(f"prepared: {counts}", flush=True)
    return cohort, stores
