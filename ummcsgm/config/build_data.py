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
    """Returns the layouts that files may have: config.data.layout, or all that know the
    modalities."""
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
    """Returns all named layouts that know config.data.modalities.

    Raises:
        InputError: none does.
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
    """Finds the subjects in `folder`, in the config's layout or else in any named layout.

    Subjects of a named layout have all contrasts that it knows, not only config.data.modalities.

    Raises:
        InputError: as `find_subjects`.
    """
    named = {name: _with_all_contrasts(config, name) for name in KNOWN_SUFFIXES}
    first = [named.get(layout.name, layout) for layout in build_layouts(config)]
    others = [layout for layout in named.values() if layout not in first]
    return find_subjects(folder, first, others)


def _named(config: ConfigDict, name: str, modalities: Sequence[str]) -> Layout:
    """The named layout of these modalities, with the config's mask and entities."""
    return named_layout(name, modalities, config.data.mask, config.data.entities)


def _with_all_contrasts(config: ConfigDict, name: str) -> Layout:
    """The named layout with all its contrasts and all config.data.modalities; a modality
    that it does not know has its name as the suffix."""
    contrasts = {contrast_of(modality): modality for modality in config.data.modalities}
    modalities = [contrasts.get(contrast, contrast) for contrast in KNOWN_SUFFIXES[name]]
    layout = _named(config, name, modalities)
    suffixes = {name: layout.suffixes.get(name, name) for name in config.data.modalities}
    return dataclasses.replace(layout, suffixes=suffixes | layout.suffixes)


def build_processes(config: ConfigDict) -> int:
    """Returns how many processes read scans."""
    return config.data.processes


def build_cohort(config: ConfigDict, workdir: pathlib.Path) -> Cohort:
    """Returns the subjects of config.data.folder, or of a phantom made here, and their split.

    Raises:
        InputError: there is no folder, no subject has two modalities, or the split in the
            workdir has other subjects.
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
    """Returns the settings that the prepared slices depend on."""
    space, fields = build_space(config), config.data
    return StoreSettings(space.modalities, space.view, fields.min_brain_fraction, fields.labels)


def build_stores(
    config: ConfigDict, workdir: pathlib.Path, cohort: Cohort, report: build_store.Report
) -> dict[str, Store]:
    """Returns the prepared slices of each split with subjects, made once in the workdir.

    Calls `report(done, total)` after each subject.
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
    """Returns `config`, or `saved` if it is None.

    Raises:
        InputError: `config` does not fit the weights that were trained with `saved`.
    """
    if config is None:
        return saved
    check_config(config, devices=1)
    check_same(config_to_json(config), config_to_json(saved), str(workdir), NETWORK_KEYS)
    return with_absolute_folder(config)


def with_absolute_folder(config: ConfigDict) -> ConfigDict:
    """Returns the config with an absolute config.data.folder, for a checkpoint."""
    config = config.copy_and_resolve_references()
    if config.data.folder:
        config.data.folder = str(pathlib.Path(config.data.folder).absolute())
    return config


def prepare(config: Config, workdir: pathlib.Path) -> tuple[Cohort, dict[str, Store]]:
    """Returns the subjects of the run and their prepared slices by split.

    The first process of a job prepares what is missing, then the others read it.

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
    """Returns what gives a synthesised scan its intensity units.

    `scales` and `spacing` are medians over the training subjects, of each modality's
    scale and of the pixel size in mm. `ranges` are the least and largest scaled values,
    without the 0.1 % at either end of each scan.
    """
    ranges = {
        name: [e.ranges[name] for e in store.subjects if e.ranges[name] is not None]
        for name in modalities
    }
    return {
        "scales": {name: statistics.median(store.scales(name).values()) for name in modalities},
        "ranges": {
            name: (min(low for low, _ in pairs), max(high for _, high in pairs))
            for name, pairs in ranges.items()
        },
        "spacing": np.median([e.spacing for e in store.subjects], axis=0).tolist(),
    }
