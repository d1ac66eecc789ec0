"""Training of one method in its folder: restore, run the loop, save checkpoints."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax

from ummcsgm.data.loader import Batches, make_batches
from ummcsgm.data.store import Store
from ummcsgm.distributed import devices, processes
from ummcsgm.training import checkpoint
from ummcsgm.training.dsm_step import TrainState
from ummcsgm.training.logging import TRACES, TrainingLog, peak_flops, profiler_trace, program_flops
from ummcsgm.training.loop import TrainOptions, run_training, with_stop_flag
from ummcsgm.types import InputError, Params
from ummcsgm.utils.provenance import write_manifest


@dataclasses.dataclass(frozen=True)
class TrainableMethod:
    """How a method is trained.

    `start(key)` is the state before the first step, `step(key, state, batch)` the step.
    `counted` is the step without recomputation and optimizer: its FLOPs are the model's.
    `measure(store, params)` has JSON values about the averaged parameters, for the checkpoint's
    metadata.
    """

    start: Callable[[jax.Array], TrainState]
    step: Callable
    counted: Callable
    measure: Callable[[Store, Params], dict] | None = None


def train(
    method: TrainableMethod,
    store: Store,
    options: TrainOptions,
    folder: pathlib.Path,
    metadata: dict,
    *,
    split: dict[str, list[str]],
    held_out: Store | None = None,
    trace: bool = False,
) -> None:
    """Trains to step `options.steps`, from the newest checkpoint of `folder` if any.

    What a checkpoint measures of its parameters is of the slices `held_out`, or of those of
    `store` where there are none.

    Each checkpoint carries `metadata`, whose "config" has the run's config as JSON
    values and "method" the method's name. The manifest lists the subjects of `split`.
    With `trace`, a profiler trace of some steps is written.

    Raises:
        InputError: the checkpoint was trained on other slices, or the processes of the
            job do not see the same run.
        FloatingPointError: too many steps in a row were not finite.
    """
    check_same_slices(folder, store)
    state = start_or_restore(folder, method.start, options.seed)
    first, config = int(state.step), metadata["config"]
    processes.check_same_on_all(
        (first, json.dumps(config, sort_keys=True), store.path.name),
        f"the processes of this job do not see the same run in {folder}: they need "
        "one folder, that all of them share, and the same flags.",
    )
    if processes.is_main():
        write_manifest(folder, config, split, first)
    key = jax.random.fold_in(jax.random.key(options.seed), 1)
    batches, state = training_batches(store, options), devices.replicate(state)
    seconds = _min_step_seconds(method.counted, state, batches) if processes.is_main() else None
    processes.barrier("the FLOPs of a step")  # counting them may take longer than Orbax waits

    measured_store = held_out if held_out is not None and len(held_out) else store

    def save(step: int, state: TrainState) -> None:
        measured = method.measure(measured_store, state.ema) if method.measure else {}
        with processes.collective(ValueError):  # Orbax waits for all processes
            checkpoint.save(
                checkpoints, step, state.replace(ema=None), state.ema, metadata | measured
            )

    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.collective())
        checkpoints = stack.enter_context(
            checkpoint.open_checkpoints(folder, keep=options.keep_checkpoints)
        )
        stack.enter_context(processes.abort_if_peer_lost())
        callbacks = {}
        if processes.is_main():
            log = stack.enter_context(TrainingLog(folder, options, first, seconds))
            traces = folder / TRACES if trace else None
            before_step = stack.enter_context(profiler_trace(traces))
            callbacks = {"log": log.add, "before_step": before_step}
        run_training(
            functools.partial(devices.pmap_step(with_stop_flag(method.step)), key),
            state,
            batches,
            options,
            save,
            **callbacks,
        )
    processes.barrier(f"the checkpoint of {metadata['method']}")


def check_same_slices(folder: pathlib.Path, store: Store) -> None:
    """Raises InputError if the checkpoint of `folder` was trained on other slices than
    the store's: no config and no split would describe such a network."""
    if checkpoint.latest_step(folder) is None:
        return
    if checkpoint.restore_metadata(folder)["data"] != store.digest:
        raise InputError(
            f"{folder} was trained on other slices than those of {store.path}: a "
            "training file has changed since; put it back, or use a new --workdir."
        )


def start_or_restore(
    folder: pathlib.Path, start: Callable[[jax.Array], TrainState], seed: int
) -> TrainState:
    """The newest checkpoint's state, or the state before the first step."""

    def first_state() -> TrainState:
        return start(jax.random.fold_in(jax.random.key(seed), 0))

    if checkpoint.latest_step(folder) is None:
        return first_state()
    shapes = jax.eval_shape(first_state)
    state, ema = checkpoint.restore(folder, shapes.replace(ema=None), shapes.ema)
    return state.replace(ema=ema)


def training_batches(store: Store, options: TrainOptions) -> Batches:
    """The batches of a run: this process's examples of each."""
    process, count = processes.process_index_and_count()
    return make_batches(
        store,
        batch=options.batch,
        seed=options.seed,
        flip=options.flip,
        process=process,
        processes=count,
    )


def _min_step_seconds(counted: Callable, state: TrainState, batches: Batches) -> float | None:
    """The time of a step at the peak of its devices; None if their kind is unknown.

    It counts the FLOPs of the gradient once, without what is computed again.
    """
    peak = peak_flops(jax.local_devices()[0].device_kind)
    if peak is None:
        return None
    batch = batches.at(int(state.step))
    share = len(batch.valid) // jax.local_device_count()
    batch = jax.tree.map(lambda leaf: leaf[None, :share], batch)
    state = state.replace(opt_state=optax.identity().init(state.params))
    # On the CPU, which is always there: accelerators do not count a program's FLOPs.
    cpu = jax.local_devices(backend="cpu")[:1]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    return program_flops(devices.pmap_step(counted, cpu), jax.random.key(0), zeros, batch) / peak
