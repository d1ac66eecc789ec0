"""A function applied to many items by several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

from ummcsgm.types import InputError


def map_in_processes(
    function: Callable, items: Sequence, processes: int, *, ordered: bool = True
) -> Iterator:
    """The results of `function` for each of `items`, computed by `processes` processes.

    They come in the order of `items`, or as they are done where `ordered` is False. What `function`
    raises is raised here, after the items that are in work. The processes end with this one.

    Raises:
        InputError: a process was killed.
    """
    if processes <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    count = min(processes, len(items))
    # Not forked: the caller may hold threads, as JAX does, and a fork of those hangs.
    pool = ProcessPoolExecutor(count, get_context("spawn"), _start_process)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in futures if ordered else as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {count} processes was killed, as happens when memory runs out; "
            "what was finished is kept: go on with a smaller config.data.processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Leaves Ctrl-C to the parent process, and ends this process when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Without this, a killed parent would leave it waiting for work for ever.
    parent_process().join()
    os._exit(1)
