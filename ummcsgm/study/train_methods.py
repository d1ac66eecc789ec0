"""Training of the mm-CSN and of a study's other methods, each in its folder.

The mm-CSN's checkpoints lie in WORKDIR itself, another method's in
WORKDIR/methods/NAME: methods may be trained in several workdirs, on several machines,
and their folders copied together.
"""

import pathlib
from collections.abc import Sequence

import jax

from ummcsgm.config import build, build_data
from ummcsgm.config.build import build_downstream
from ummcsgm.config.build_data import normaliser, prepare
from ummcsgm.config.build_methods import (
    MM_CSN,
    SEGMENTER,
    build_method_names,
    build_trainable,
    check_options,
    check_study,
    fixed_keys,
    method_config,
    method_folder,
    method_options,
)
from ummcsgm.config.schema import check_same
from ummcsgm.study.allowance import allowed
from ummcsgm.training import checkpoint
from ummcsgm.training.train import train
from ummcsgm.types import Config, InputError


def default_methods(config: Config, mode: str) -> tuple[str, ...]:
    """The methods that a mode trains by default: the mm-CSN; in a study all others too."""
    return _method_names(config) if mode == "study" else (MM_CSN,)


def _method_names(config: Config) -> tuple[str, ...]:
    """The mm-CSN, the other methods, and the segmentation network if it is wanted."""
    check_study(config)
    segmenter = (SEGMENTER,) if build_downstream(config) else ()
    return (MM_CSN, *build_method_names(config), *segmenter)


def train_all(
    config: Config, workdir: pathlib.Path, names: Sequence[str], *, trace: bool
) -> list[str]:
    """Trains the methods of these names; returns those that failed because their loss
    was not finite any more, for which the others do not wait.

    Raises:
        InputError: a name is none of the study's; or as `train_method`.
        FloatingPointError: the loss of the mm-CSN, of the segmenter or of the only
            method was not finite.
    """
    known = _method_names(config)
    for name in names:
        if name not in known:
            raise InputError(
                f"--methods has {name!r}; wanted some of {', '.join(known)}, which are "
                "the mm-CSN, config.study.methods and, with config.study.segmenter_steps, "
                f"{SEGMENTER}."
            )
    failed = []
    for name in names:
        if len(names) > 1:
            print(f"training: {name}", flush=True)
        if name == MM_CSN:
            train_method(config, workdir, trace=trace)
        elif name == SEGMENTER:  # its steps are config.study.segmenter_steps
            train_method(config, workdir, method=name)
        else:
            try:
                train_method(allowed(config, workdir, name), workdir, method=name)
            except FloatingPointError as error:
                if len(names) == 1:
                    raise
                failed.append(name)
                print(f"training: {name} is left as it is: {error}", flush=True)
    return failed


def train_method(
    config: Config, workdir: pathlib.Path, *, method: str = MM_CSN, trace: bool = False
) -> None:
    """Trains `method` to step config.train.steps in its folder of the workdir, from the
    newest checkpoint there if any.

    With `trace`, a profiler trace of some steps is written too.

    Raises:
        InputError: the config or the data is wrong, or the checkpoint there was made
            with another network, other options or from other slices.
        FloatingPointError: too many steps in a row were not finite.
    """
    build_data.check_data(config)
    build.check_config(config, jax.device_count())
    check_study(config)
    config = method_config(build_data.with_absolute_folder(config), method)
    folder, fields = method_folder(workdir, method), build.config_to_json(config)
    options = method_options(config, method)
    _check_same_run(folder, method, fields, options)
    cohort, stores = prepare(config, workdir)
    store = stores["train"]
    metadata = {"config": fields, "method": method, "options": options, "data": store.digest}
    metadata |= normaliser(store, build.build_space(config).modalities)
    train(
        build_trainable(config, method),
        store,
        build.build_train_options(config),
        folder,
        metadata,
        split=cohort.split,
        trace=trace,
    )


def _check_same_run(folder: pathlib.Path, method: str, fields: dict, options: dict) -> None:
    """Raises InputError if the checkpoint of `folder` is of another network, task or
    data, or of a method with other options."""
    if checkpoint.latest_step(folder) is not None:
        metadata = checkpoint.restore_metadata(folder)
        check_same(fields, metadata["config"], str(folder), fixed_keys(method))
        check_options(metadata.get("options", {}), options, str(folder))
