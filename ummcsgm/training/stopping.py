"""How training stops when it is asked to: all processes after one and the same step.

Schedulers signal processes at different moments, and a step is of all of them.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ummcsgm.distributed import devices
from ummcsgm.distributed.processes import Stopped
from ummcsgm.types import Array, Batch


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that the first SIGTERM or SIGINT is put into; a second one kills."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def with_stop_flag(step: Callable) -> Callable:
    """`step`, of (batch, asked) in place of the batch, with the metric `asked`: how
    many devices are of a process that was asked to stop."""

    def told(key: jax.Array, state: Any, rows: tuple[Batch, Array]) -> tuple:
        batch, asked = rows
        state, metrics = step(key, state, batch)
        return state, metrics | {"asked": devices.sum_over_devices(asked.sum())}

    return told


def exit_after_stop(asked: list[int], done: int, *, all_do: bool) -> None:
    """Raises SystemExit, where `all_do` Stopped; as SIGTERM does in a process that was
    not asked itself."""
    name = signal.Signals(asked[0]).name if asked else "another process was asked"
    print(
        f"{name}: saved at step {done}; the same command continues.",
        file=sys.stdout if devices.is_main() else sys.stderr,
        flush=True,
    )
    kind = Stopped if all_do else SystemExit
    raise kind(128 + (asked[0] if asked else signal.SIGTERM))
