"""What comes next is made in a thread while what is there is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any


def prefetch(pool: Executor, make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Future]:
    """The future of `make(item)` for each of `items`, in order.

    The next one is on its way when one is handed out, and none after it: at most two
    are there at a time.
    """
    waiting: Future | None = None
    for item in items:
        future = pool.submit(make, item)
        if waiting is not None:
            yield waiting
        waiting = future
    if waiting is not None:
        yield waiting
