"""Work shared by several processes, none of which outlives the one that asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

from ummcsgm.types import InputError


def each_done(make: Callable, items: Sequence, processes: int) -> Iterator:
    """`make` of each of `items`, by `processes` at a time, as they are done.

    What `make` raises is raised here, after the items that are in work.

    Raises:
        InputError: a process was killed.
    """
    return _shared(make, items, processes, as_completed)


def each_in_order(make: Callable, items: Sequence, processes: int) -> Iterator:
    """As `each_done`, in the order of `items`."""
    return _shared(make, items, processes, iter)


def _shared(make: Callable, items: Sequence, processes: int, ordered: Callable) -> Iterator:
    if processes <= 1 or len(items) <= 1:
        yield from map(make, items)
        return
    count = min(processes, len(items))
    # Not forked: the caller may hold threads, as JAX does, and a fork of those hangs.
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)
    try:
        for future in ordered([pool.submit(make, item) for item in items]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {count} processes was killed, as happens when memory runs out; "
            "what was finished is kept: go on with a smaller config.data.processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """This process leaves Ctrl-C to the one that began it, and ends when that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Else, the parent killed, it would wait for work for ever.
    parent_process().join()
    os._exit(1)
