"""ConfigDict -> layouts, cohort, stores: the half of `build` that meets the files."""

import dataclasses
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from ummcsgm.build import build_space, check_config, config_to_json
from ummcsgm.data import layouts, prepare, store
from ummcsgm.data.cohort import SPLITS, Cohort, open_cohort
from ummcsgm.data.layouts import Layout, Subject
from ummcsgm.data.phantom.make import write_phantom
from ummcsgm.data.search import NoSubjectError, find_subjects
from ummcsgm.schema import NETWORK_KEYS, check_fields, check_same
from ummcsgm.types import InputError


def check_data(config: ConfigDict) -> None:
    """Raises InputError, naming the key, if data cannot be prepared with the config."""
    check_fields(config.to_dict())
    build_layouts(config)


def build_layouts(config: ConfigDict) -> list[Layout]:
    """The layouts that the data may have: the one of config.data.layout, or all that
    know its modalities."""
    fields = config.data
    if fields.layout not in ("auto", *LAYOUTS):
        raise InputError(
            f"config.data.layout is {fields.layout!r}; wanted one of auto, "
            f"{', '.join(LAYOUTS)}."
        )
    layouts.check_entities(fields.entities)
    if fields.layout != "auto":
        return [LAYOUTS[fields.layout](fields)]
    if fields.pattern:
        return [LAYOUTS["flat"](fields)]
    return every_layout(config)


def every_layout(config: ConfigDict) -> list[Layout]:
    """All named layouts that know config.data.modalities.

    Raises:
        InputError: there is none.
    """
    possible, reasons = [], []
    for name in layouts.KNOWN:
        try:
            possible.append(LAYOUTS[name](config.data))
        except InputError as error:
            reasons.append(str(error))
    if not possible:
        raise InputError(f"{reasons[0]}; or name files with config.data.pattern")
    return possible


def find_anywhere(
    config: ConfigDict, folder: pathlib.Path
) -> tuple[Layout, list[Subject]]:
    """The subjects in `folder`, in the layout of the config or in any named one.

    In a named layout they have all contrasts that it knows, also those that are none of
    config.data.modalities.

    Raises:
        InputError: as `find_subjects`.
    """
    named = {name: _widened(config, name) for name in layouts.KNOWN}
    own = [named.get(layout.name, layout) for layout in build_layouts(config)]
    others = [layout for layout in named.values() if layout not in own]
    try:
        return find_subjects(folder, own)
    except NoSubjectError:
        if not others:
            raise
        return find_subjects(folder, [*own, *others])


def _widened(config: ConfigDict, name: str) -> Layout:
    """The named layout with all its contrasts and all config.data.modalities.

    Those that it does not know are written under their own names.
    """
    known = layouts.KNOWN[name]
    contrasts = {layouts.contrast_of(one): one for one in config.data.modalities}
    fields = config.data.copy_and_resolve_references()
    fields.modalities = tuple(contrasts.get(contrast, contrast) for contrast in known)
    layout = LAYOUTS[name](fields)
    own = {one: layout.words.get(one, one) for one in config.data.modalities}
    return dataclasses.replace(layout, words=own | layout.words)


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


def build_stores(
    config: ConfigDict, workdir: pathlib.Path, cohort: Cohort, report: prepare.Report
) -> dict[str, store.Store]:
    """The prepared slices of every split that has subjects, made once in the workdir.

    `report(done, of)` is called for each subject that is made.
    """
    fields, space = config.data, build_space(config)
    settings = store.Settings(space.modalities, space.view, fields.min_brain)
    members = {split: cohort.members(split) for split in SPLITS}
    return prepare.prepare(
        workdir / "prepared",
        members,
        settings,
        processes=fields.processes,
        report=report,
    )


def fitting(
    config: ConfigDict | None, saved: ConfigDict, workdir: pathlib.Path
) -> ConfigDict:
    """`config`, checked to fit the weights made with `saved`; `saved` if it is None."""
    if config is None:
        return saved
    check_config(config, devices=1)
    fields, made = config_to_json(config), config_to_json(saved)
    check_same(fields, made, str(workdir), NETWORK_KEYS)
    return located(config)


def located(config: ConfigDict) -> ConfigDict:
    """The config with an absolute config.data.folder: it is to be found from anywhere
    once it lies in a checkpoint."""
    config = config.copy_and_resolve_references()
    if config.data.folder:
        config.data.folder = str(pathlib.Path(config.data.folder).absolute())
    return config


LAYOUTS: dict[str, Callable[[ConfigDict], Layout]] = {
    "brats": lambda fields: layouts.brats(fields.modalities, fields.mask),
    "brats23": lambda fields: layouts.brats23(fields.modalities, fields.mask),
    "msd": lambda fields: layouts.msd(fields.modalities, fields.mask),
    "ixi": lambda fields: layouts.ixi(fields.modalities, fields.mask),
    "bids": lambda fields: layouts.bids(
        fields.modalities, fields.mask, fields.entities
    ),
    "flat": lambda fields: layouts.flat(fields.modalities, fields.pattern, fields.mask),
}
