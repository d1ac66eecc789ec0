"""The loop around the training step: what is read ahead, told, saved, and its end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ummcsgm.data.loader import Batches
from ummcsgm.distributed import devices
from ummcsgm.training.plans import LogOptions, TrainOptions
from ummcsgm.training.stopping import exit_after_stop, stop_requests
from ummcsgm.utils.compilation_cache import profiler_trace
from ummcsgm.utils.progress import TrainingLog

TRACES = "profile"  # the folder of traces in a workdir


def run_training(
    step: Callable,
    state: Any,
    batches: Batches,
    plan: TrainOptions,
    watch: LogOptions,
    save: Callable[[int, Any], None],
) -> Any:
    """The state after `plan.steps` of `step(state, (batch, asked))`, saved on the way
    and at the end.

    The next step is dispatched before the last one's metrics are read, so that the
    device never waits for the log. SIGTERM and SIGINT end the loop after a step, save,
    and exit with 128 + the signal's number. Of several processes that one step is the
    same for all, whichever was asked: the step after the first that was told of it.

    Raises:
        FloatingPointError: `plan.max_nonfinite` steps in a row were not finite.
    """
    first = int(state.step)
    pending, stop, alone = None, False, not devices.is_multiprocess()
    folder = watch.workdir / TRACES if watch.trace and devices.is_main() else None
    told = _log(watch, first, plan)
    with stop_requests() as asked, told as log, profiler_trace(folder) as at:
        source = _rows(batches, first, asked)
        rows = next(source) if first < plan.steps else None
        for done in range(first + 1, plan.steps + 1):
            at(done - first - 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, metrics = step(state, rows)
            if done < plan.steps:
                rows = next(source)
            stop = pending is not None and _report(log, plan, *pending)
            pending = (done, metrics)
            stop |= alone and bool(asked)  # read once: the next step has what is later
            if done % plan.save_every == 0 or done == plan.steps or stop:
                stop |= _report(log, plan, *pending)
                pending = None
                save(done, state)
            if stop:
                break
        if asked or stop:
            exit_after_stop(asked, int(state.step), all_do=stop)
    return state


def _rows(batches: Batches, first: int, asked: list[int]) -> Iterator[tuple]:
    """What each step from `is_main` on is given, on its way to the devices."""
    for batch in batches.from_step(first):
        yield devices.shard((batch, devices.per_device_flag(bool(asked))))


@contextlib.contextmanager
def _log(
    watch: LogOptions, first: int, plan: TrainOptions
) -> Iterator[Callable[[int, dict], None]]:
    """log(step, metrics), of which the first process alone keeps something."""
    if not devices.is_main():
        yield lambda step, metrics: None
        return
    with TrainingLog(watch, first, plan) as log:
        yield log.add


def _report(log: Callable[[int, dict], None], plan: TrainOptions, done: int, metrics: dict) -> bool:
    """Whether a process was asked to stop before the step, whose metrics are logged."""
    values = {name: float(value) for name, value in metrics.items()}
    in_row, asked = int(values.pop("in_row")), values.pop("asked") > 0
    if in_row >= plan.max_nonfinite:
        raise FloatingPointError(
            f"the loss or its gradient was not finite at step {done} and at the "
            f"{in_row - 1} steps before it: lower config.train.learning_rate, or for a "
            "published method its config.study.lr_scale, or look at the training images; "
            "nothing after the last checkpoint is kept."
        )
    log(done, values)
    return asked
