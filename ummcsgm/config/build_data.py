"""ConfigDict -> layouts, cohort, and prepared slices."""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from ummcsgm.config.build import build_space, check_config, config_to_json
from ummcsgm.config.schema import NETWORK_KEYS, check_fields, check_same
from ummcsgm.data import build_store
from ummcsgm.data.cohort import SPLITS, Cohort, open_cohort
from ummcsgm.data.layouts.find import SearchResult, find_subjects
from ummcsgm.data.layouts.known import KNOWN_SUFFIXES, named_layout
from ummcsgm.data.layouts.layout import Layout, check_entities, contrast_of
from ummcsgm.data.layouts.pattern import flat
from ummcsgm.data.phantom.make import write_phantom
from ummcsgm.data.store import Store, StoreSettings
from ummcsgm.distributed import processes
from ummcsgm.types import Config, InputError
from ummcsgm.utils.progress import progress_bar


def check_data(config: ConfigDict) -> None:
    """Raises InputError, naming the key, if data cannot be prepared with the config."""
    check_fields(config.to_dict())
    build_layouts(config)


def build_layouts(config: ConfigDict) -> list[Layout]:
    """The layouts that the data may have: the one of config.data.layout, or all that
    know its modalities."""
    fields = config.data
    if fields.layout not in ("auto", *KNOWN_SUFFIXES, "flat"):
        raise InputError(
            f"config.data.layout is {fields.layout!r}; wanted one of auto, "
            f"{', '.join(KNOWN_SUFFIXES)}, flat."
        )
    check_entities(fields.entities)
    if fields.layout in KNOWN_SUFFIXES:
        return [_named(config, fields.layout, fields.modalities)]
    if fields.layout == "flat" or fields.pattern:
        return [flat(fields.modalities, fields.pattern, fields.mask)]
    return every_layout(config)


def every_layout(config: ConfigDict) -> list[Layout]:
    """All named layouts that know config.data.modalities.

    Raises:
        InputError: there is none.
    """
    possible, reasons = [], []
    for name in KNOWN_SUFFIXES:
        try:
            possible.append(_named(config, name, config.data.modalities))
        except InputError as error:
            reasons.append(str(error))
    if not possible:
        raise InputError(f"{reasons[0]}; or name files with config.data.pattern")
    return possible


def find_anywhere(config: ConfigDict, folder: pathlib.Path) -> SearchResult:
    """The subjects in `folder`, in the layout of the config or else in any named one.

    In a named layout they have all contrasts that it knows, also those that are none of
    config.data.modalities.

    Raises:
        InputError: as `find_subjects`.
    """
    named = {name: _widened(config, name) for name in KNOWN_SUFFIXES}
    own = [named.get(layout.name, layout) for layout in build_layouts(config)]
    others = [layout for layout in named.values() if layout not in own]
    return find_subjects(folder, own, others)


def _named(config: ConfigDict, name: str, modalities: Sequence[str]) -> Layout:
    """The named layout of these modalities, with the config's mask and entities."""
    return named_layout(name, modalities, config.data.mask, config.data.entities)


def _widened(config: ConfigDict, name: str) -> Layout:
    """The named layout with all its contrasts and all config.data.modalities.

    Those that it does not know are written under their own names.
    """
    contrasts = {contrast_of(one): one for one in config.data.modalities}
    modalities = [contrasts.get(contrast, contrast) for contrast in KNOWN_SUFFIXES[name]]
    layout = _named(config, name, modalities)
    own = {one: layout.suffixes.get(one, one) for one in config.data.modalities}
    return dataclasses.replace(layout, suffixes=own | layout.suffixes)


def build_processes(config: ConfigDict) -> int:
    """How many processes read scans: config.data.processes."""
    return config.data.processes


def build_cohort(config: ConfigDict, workdir: pathlib.Path) -> Cohort:
    """The subjects of config.data.folder, or of a phantom made here, and their split.

    Raises:
        InputError: there is no folder, no subject with two modalities, or the split of
            the workdir was made of other subjects.
    """
    fields = config.data
    possible = build_layouts(config)
    folder = pathlib.Path(fields.folder) if fields.folder else workdir / "phantom"
    if not fields.folder and not config.phantom.subjects:
        raise InputError(
            "config.data.folder is empty: name the folder of your subjects, or ask for "
            "a phantom with --config.phantom.subjects."
        )
    if not fields.folder:
        print(f"phantom: {config.phantom.subjects} subjects in {folder}", flush=True)
        write_phantom(
            folder,
            subjects=config.phantom.subjects,
            shape=tuple(config.phantom.shape),
            seed=config.seed,
            processes=fields.processes,
        )
    path = workdir / "split.json"
    return open_cohort(folder, possible, path, tuple(fields.split), config.seed)


def build_settings(config: ConfigDict) -> StoreSettings:
    """What the prepared slices depend on, beside the images."""
    space = build_space(config)
    own = config.data.min_brain_fraction, config.data.labels
    return StoreSettings(space.modalities, space.view, *own)


def build_stores(
    config: ConfigDict, workdir: pathlib.Path, cohort: Cohort, report: build_store.Report
) -> dict[str, Store]:
    """The prepared slices of every split that has subjects, made once in the workdir.

    `report(done, of)` is called for each subject that is made.
    """
    members = {split: cohort.members(split) for split in SPLITS}
    return build_store.build_stores(
        workdir / "prepared",
        members,
        build_settings(config),
        processes=build_processes(config),
        report=report,
    )


def compatible_config(
    config: ConfigDict | None, saved: ConfigDict, workdir: pathlib.Path
) -> ConfigDict:
    """`config`, checked to fit the weights made with `saved`; `saved` if it is None."""
    if config is None:
        return saved
    check_config(config, devices=1)
    fields, made = config_to_json(config), config_to_json(saved)
    check_same(fields, made, str(workdir), NETWORK_KEYS)
    return with_absolute_folder(config)


def with_absolute_folder(config: ConfigDict) -> ConfigDict:
    """The config with an absolute config.data.folder: it is to be found from anywhere
    once it lies in a checkpoint."""
    config = config.copy_and_resolve_references()
    if config.data.folder:
        config.data.folder = str(pathlib.Path(config.data.folder).absolute())
    return config


def prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    """The subjects of the run, and their prepared slices by split, in the workdir.

    The first process of a job makes what is not there; the others find it.

    Raises:
        InputError: the config or the data is wrong.
    """
    return processes.main_process_first(functools.partial(_prepare, config, workdir))


def _prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    check_data(config)
    cohort = build_cohort(config, workdir)
    if cohort.left_out:
        print(f"left out, with fewer than two modalities: {', '.join(cohort.left_out)}", flush=True)
    if cohort.unused_files:
        print(
            f"not read: {len(cohort.unused_files)} files that are no scan of the layout, "
            f"such as {cohort.unused_files[0]}",
            flush=True,
        )
    with progress_bar("preparing") as report:
        stores = build_stores(config, workdir, cohort, report)
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
