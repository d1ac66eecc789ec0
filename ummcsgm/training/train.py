"""The command that trains: the mm-CSN, or another method of the study."""

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax

from ummcsgm.config import build, build_data
from ummcsgm.config.build_methods import MM_CSN, check_options, check_study, method_options
from ummcsgm.config.courses import build_trainable, fixed_keys, method_config, method_folder
from ummcsgm.config.preparation import normaliser, prepare
from ummcsgm.config.schema import check_same
from ummcsgm.data.loader import Batches, make_batches
from ummcsgm.data.store import Store
from ummcsgm.distributed import devices, processes
from ummcsgm.training import checkpoint
from ummcsgm.training.loop import run_training
from ummcsgm.training.plans import LogOptions, TrainOptions
from ummcsgm.training.stopping import with_stop_flag
from ummcsgm.training.train_state import TrainState
from ummcsgm.types import Config, InputError
from ummcsgm.utils.compilation_cache import flops_of, peak_of
from ummcsgm.utils.provenance import write_manifest


def train(
    config: Config, workdir: pathlib.Path, *, method: str = MM_CSN, trace: bool = False
) -> None:
    """The place of `method` in the workdir holds a checkpoint of step
    config.train.steps, continued from the newest one there; with `trace`, and a trace
    of some steps.

    Raises:
        InputError: the config or the data is wrong, or the checkpoint there was made
            with another network or from other slices.
    """
    build_data.check_data(config)
    build.check_config(config, jax.device_count())
    check_study(config)
    config = method_config(build_data.with_absolute_folder(config), method)
    place, fields = method_folder(workdir, method), build.config_to_json(config)
    options = method_options(config, method)
    _check_begun(place, method, fields, options)
    cohort, stores = prepare(config, workdir)
    store = stores["train"]
    _check_slices(place, store)
    plan, space = build.build_train_options(config), build.build_space(config)
    course = build_trainable(config, method)
    state = start_or_restore(place, course.start, plan.seed)
    _check_shared(place, int(state.step), fields, store)
    if devices.is_main():
        write_manifest(place, fields, cohort.split, int(state.step))
    about = {"config": fields, "method": method, "options": options}
    about |= {"data": store.digest, **normaliser(store, space.modalities)}
    key = jax.random.fold_in(jax.random.key(plan.seed), 1)
    batches, state = batches_of(store, plan), devices.replicate(state)
    watch = LogOptions(place, _least_seconds(course.counted, state, batches), trace)
    opened = checkpoint.open_checkpoints(place, keep=plan.keep_checkpoints)
    with opened as checkpoints, processes.abort_if_peer_lost():
        run_training(
            functools.partial(devices.pmap_step(with_stop_flag(course.step)), key),
            state,
            batches,
            plan,
            watch,
            lambda done, state: checkpoint.save(
                checkpoints, done, state.replace(ema=None), state.ema, about
            ),
        )
    devices.barrier(f"the checkpoint of {method}")


def _check_begun(place: pathlib.Path, method: str, fields: dict, options: dict) -> None:
    """Raises InputError if what was begun in `place` was another network, or from other
    slices, or for another task, or a method with other options."""
    if checkpoint.latest_step(place) is not None:
        about = checkpoint.restore_metadata(place)
        check_same(fields, about["config"], str(place), fixed_keys(method))
        check_options(about.get("options", {}), options, str(place))


def _check_slices(place: pathlib.Path, store: Store) -> None:
    """Raises InputError if what was begun in `place` saw other slices than the store's:
    a network of two data sets is none that a config and a split describe."""
    if checkpoint.latest_step(place) is None:
        return
    if checkpoint.restore_metadata(place)["data"] != store.digest:
        raise InputError(
            f"{place} was trained on other slices than those of {store.path}: a "
            "training file has changed since; put it back, or use a new --workdir."
        )


def _least_seconds(counted: Callable, state: TrainState, batches: Batches) -> float | None:
    """How long one step would take at the peak of its devices; None where their kind
    is not known.

    Counted are the FLOPs of the gradient, each once, whatever is computed again.
    """
    peak = peak_of(jax.local_devices()[0].device_kind)
    if peak is None:
        return None
    batch = batches.at(int(state.step))
    share = len(batch.valid) // jax.local_device_count()
    rows = jax.tree.map(lambda leaf: leaf[None, :share], batch)
    state = state.replace(opt_state=optax.identity().init(state.params))
    # On the CPU that is always there: accelerators do not tell what a program costs.
    host = jax.local_devices(backend="cpu")[:1]
    known = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    mapped = devices.pmap_step(counted, host)
    return flops_of(mapped, jax.random.key(0), known, rows) / peak


def _check_shared(workdir: pathlib.Path, step: int, fields: dict, store: Store) -> None:
    """Raises InputError unless all processes go on with the same run."""
    devices.check_same_on_all(
        (step, json.dumps(fields, sort_keys=True), store.path.name),
        f"the processes of this job do not see the same run in {workdir}: they need "
        "one folder, that all of them share, and the same flags.",
    )


def start_or_restore(
    place: pathlib.Path, start: Callable[[jax.Array], TrainState], seed: int
) -> TrainState:
    """The newest checkpoint's state, or the state before the first step."""

    def first() -> TrainState:
        return start(jax.random.fold_in(jax.random.key(seed), 0))

    if checkpoint.latest_step(place) is None:
        return first()
    shapes = jax.eval_shape(first)
    rest, ema = checkpoint.restore(place, shapes.replace(ema=None), shapes.ema)
    return rest.replace(ema=ema)


def batches_of(store: Store, plan: TrainOptions) -> Batches:
    """The batches of a run: this process's rows of each."""
    return make_batches(
        store,
        batch=plan.batch,
        seed=plan.seed,
        flip=plan.flip,
        process=devices.process_index_and_count()[0],
        processes=devices.process_index_and_count()[1],
    )
