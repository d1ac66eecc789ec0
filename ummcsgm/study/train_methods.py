"""Training of the mm-CSN and of a study's other methods, each in its folder.

The mm-CSN's checkpoints lie in WORKDIR itself, another method's in WORKDIR/methods/NAME: methods
may be trained in several workdirs, on several machines, and their folders copied together.
"""

import functools
import json
import pathlib
import time
from collections.abc import Sequence

import jax

from ummcsgm.config import build, build_data
from ummcsgm.config.build import build_downstream
from ummcsgm.config.build_data import normaliser, prepare
from ummcsgm.config.build_methods import (
    BY_SECONDS,
    MM_CSN,
    SEGMENTER,
    build_budget,
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
from ummcsgm.distributed import devices, processes
from ummcsgm.training import checkpoint
from ummcsgm.training.logging import training_seconds
from ummcsgm.training.train import train, training_batches
from ummcsgm.types import Config, InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

WARMUP_STEPS, TIMED_STEPS = 3, 20


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
                train_method(with_allowed_steps(config, workdir, name), workdir, method=name)
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
        held_out=stores.get("validation"),
        trace=trace,
    )


def _check_same_run(folder: pathlib.Path, method: str, fields: dict, options: dict) -> None:
    """Raises InputError if the checkpoint of `folder` is of another network, task or
    data, or of a method with other options."""
    if checkpoint.latest_step(folder) is not None:
        metadata = checkpoint.restore_metadata(folder)
        check_same(fields, metadata["config"], str(folder), fixed_keys(method))
        check_options(metadata.get("options", {}), options, str(folder))


def with_allowed_steps(config: Config, workdir: pathlib.Path, name: str) -> Config:
    """The config with the number of steps that the method of this name trains for.

    As many as the mm-CSN; or, if config.study.budget is seconds, as many as the method
    makes here in the time that the mm-CSN trained. That number is measured once and kept
    in the method's allowance.json, so that a stopped run continues as it began; it is
    measured again when the mm-CSN has trained for longer.

    Raises:
        InputError: the budget is seconds, and the mm-CSN has not been trained here.
    """
    if build_budget(config) != BY_SECONDS:
        return config
    path = method_folder(workdir, name) / "allowance.json"
    seconds = training_seconds(workdir)
    if seconds is None:
        raise InputError(
            f"config.study.budget is 'seconds', those that the mm-CSN trained, and "
            f"{workdir} has no log of it: train it there first."
        )
    if not path.is_file() or read_json(path)["seconds"] != seconds:
        steps = max(1, round(seconds / _seconds_per_step(config, workdir, name)))
        content = json.dumps({"seconds": seconds, "steps": steps})
        # The measurement of the first of several processes counts for all.
        processes.main_process_first(lambda: processes.is_main() and write_atomic(path, content))
    return build.with_steps(config, read_json(path)["steps"])


def _seconds_per_step(config: Config, workdir: pathlib.Path, name: str) -> float:
    _, stores = prepare(config, workdir)
    method, options = build_trainable(config, name), build.build_train_options(config)
    batches = training_batches(stores["train"], options)
    state = devices.replicate(method.start(jax.random.key(options.seed)))
    step = functools.partial(devices.pmap_step(method.step), jax.random.key(0))
    sharded = [devices.shard(batches.at(index)) for index in range(WARMUP_STEPS + TIMED_STEPS)]
    start = 0.0
    for index, batch in enumerate(sharded):
        if index == WARMUP_STEPS:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / TIMED_STEPS
