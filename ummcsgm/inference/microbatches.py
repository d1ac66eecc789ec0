"""Rows of any number through a function that takes a fixed number of them.

A row is one slice of one draw of one question; whatever is asked becomes a stream of
rows, so that a compiled program has one shape and little of it is padding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ummcsgm.types import Array

Take = Callable[[Array], tuple]  # the arrays of the rows with these numbers


def run_in_microbatches(answer: Callable, size: int, total: int, take: Take) -> Iterator[Any]:
    """What `answer(*take(rows))` is for rows 0, 1, .. total - 1, `size` at a time.

    Arrays, or trees of them, with a leading axis of rows, as numpy. The last microbatch
    is padded with copies of its last row, which do not come out, so `answer` is
    compiled once. A microbatch is dispatched before the last one is read: the device
    does not wait for the host, and no more than two are on their way.
    """
    pending, waiting = None, 0
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        answered = answer(*take(rows))
        if waiting:
            yield _read(pending, waiting)
        pending, waiting = answered, min(size, total - start)
    if waiting:
        yield _read(pending, waiting)


def regroup_rows(parts: Iterable[Any], size: int) -> Iterator[Any]:
    """Trees of arrays with any number of rows each, as trees of `size` rows each.

    What is left at the end, fewer than `size` rows, does not come out.
    """
    held, count = [], 0
    for part in parts:
        held.append(part)
        count += len(jax.tree.leaves(part)[0])
        while count >= size:
            whole = _joined(held)
            yield jax.tree.map(lambda array: array[:size], whole)
            # A copy: what was given away is not to be kept alive by its rest.
            held = [jax.tree.map(lambda array: array[size:].copy(), whole)]
            count -= size


def _read(answered: Any, count: int) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[:count], answered)


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
