"""The loop around the training step: prefetch, log, save, stop.

Schedulers signal the processes of a job at different moments, and a step belongs to all of them: a
flag in every step says whether a process received a signal, so that all stop after the same step.
"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ummcsgm.distributed import devices, processes
from ummcsgm.distributed.processes import Stopped
from ummcsgm.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The batch and, in steps, the length and the rhythm of training."""

    seed: int
    batch: int  # examples, over all devices
    flip: bool  # mirror left and right at random
    steps: int
    save_every: int
    keep_checkpoints: int  # checkpoints
    log_every: int
    max_nonfinite: int  # steps in a row whose loss or gradient may be not finite


def run_training(
    step: Callable,
    state: Any,
    batches: Any,
    options: TrainOptions,
    save: Callable[[int, Any], None],
    *,
    log: Callable[[int, dict], None] = lambda step, metrics: None,
    before_step: Callable[[int], None] = lambda index: None,
) -> Any:
    """The state after `options.steps` of `step(state, (batch, stop_flags))`.

    `batches.from_step(n)` iterates over the batches from step n on. `save(step, state)` is called
    every `save_every` steps and at the end, `log(step, metrics)` for every step, and
    `before_step(i)` before the i-th step of this call. The next step is dispatched before the
    metrics of the last are read, so that the device never waits for the log. SIGTERM and SIGINT end
    the loop after a step; it saves and exits with 128 + the signal's number.

    Raises:
        FloatingPointError: `options.max_nonfinite` steps in a row were not finite.
    """
    first = int(state.step)
    pending, stop, single_process = None, False, jax.process_count() == 1
    with stop_requests() as signals:
        source = _sharded_batches(batches, first, signals)
        batch = next(source) if first < options.steps else None
        for done in range(first + 1, options.steps + 1):
            before_step(done - first - 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, metrics = step(state, batch)
            if done < options.steps:
                batch = next(source)
            stop = pending is not None and _report(log, options, *pending)
            pending = (done, metrics)
            stop |= single_process and bool(signals)  # a later signal: after the next step
            if done % options.save_every == 0 or done == options.steps or stop:
                stop |= _report(log, options, *pending)
                pending = None
                save(done, state)
            if stop:
                break
        if signals or stop:
            exit_after_stop(signals, int(state.step), all_stop=stop)
    return state


def _sharded_batches(batches: Any, first: int, signals: list[int]) -> Iterator[tuple]:
    """(batch, stop flags) for each step from `first` on, on their way to the devices."""
    for batch in batches.from_step(first):
        yield devices.shard((batch, devices.per_device_flag(bool(signals))))


def _report(
    log: Callable[[int, dict], None], options: TrainOptions, done: int, metrics: dict
) -> bool:
    """Logs the metrics of step `done`; whether a process had a signal before it."""
    values = {name: float(value) for name, value in metrics.items()}
    in_row, stop = int(values.pop("in_row")), values.pop("stop") > 0
    if in_row >= options.max_nonfinite:
        raise FloatingPointError(
            f"the loss or its gradient was not finite at step {done} and at the "
            f"{in_row - 1} steps before it: lower config.train.learning_rate, or for a "
            "published method its config.study.lr_scale, or look at the training images; "
            "nothing after the last checkpoint is kept."
        )
    log(done, values)
    return stop


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives the first SIGTERM or SIGINT; a second one kills."""
    signals: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: Any) -> None:
        signals.append(number)
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def with_stop_flag(step: Callable) -> Callable:
    """`step` of (batch, stop flags) instead of a batch, with the metric `stop`: the
    number of devices whose process received a signal."""

    def flagged(key: jax.Array, state: Any, inputs: tuple[Batch, Array]) -> tuple:
        batch, flags = inputs
        state, metrics = step(key, state, batch)
        return state, metrics | {"stop": devices.sum_over_devices(flags.sum())}

    return flagged


def exit_after_stop(signals: list[int], done: int, *, all_stop: bool) -> None:
    """Raises Stopped if all processes stop, else SystemExit, with 128 + the signal's
    number; SIGTERM's in a process that received none."""
    name = signal.Signals(signals[0]).name if signals else "another process was asked"
    print(
        f"{name}: saved at step {done}; the same command continues.",
        file=sys.stdout if processes.is_main() else sys.stderr,
        flush=True,
    )
    kind = Stopped if all_stop else SystemExit
    raise kind(128 + (signals[0] if signals else signal.SIGTERM))
