"""Devices and processes: the only file that knows of pmap, sharding and collectives.

A step is written for the rows of one device; `AXIS` names the devices it runs on. The
processes of a job each run the whole program and meet in its collectives.
"""

import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ummcsgm.types import InputError

AXIS = "devices"
LEAST = 4  # rows a CPU device: with fewer, what is not shared takes over
WEEK = 7 * 24 * 3600 * 1000  # ms; a process that ends is noticed long before


def use_cpu_cores(rows: int | None) -> None:
    """A CPU's cores become devices, as many as divide `rows` evenly and have LEAST of
    them each; all cores, if rows is None.

    XLA computes much of a network on one core, whatever there is, but several devices
    at once: on two cores a training step of the quickstart takes 0.7 of the time.
    Nothing happens in a job of several processes, where the environment or a caller
    has said how many devices there are, or where they are in use already.
    """
    told = os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices > 0 or "host_platform_device_count" in told:
        return
    if distributed.global_state.client is not None:
        return
    cores = len(os.sched_getaffinity(0))
    most = cores if rows is None else min(cores, max(rows // LEAST, 1))
    count = max(n for n in range(1, most + 1) if rows is None or rows % n == 0)
    with contextlib.suppress(RuntimeError):  # devices are in use
        jax.config.update("jax_num_cpu_devices", count)


def pmap_step(step: Callable, devices: list | None = None) -> Callable:
    """step(key, state, batch) mapped over the devices of all processes, or those given;
    the state is donated.

    The batch carries a leading axis of this process's devices (`shard`); key and state
    are the same everywhere and have none. Whatever the step returns must be `sum_over_devices`-ed
    over devices or computed alike on all: one device's is taken.
    """
    if devices is None:  # the rows of a process are neighbours in the global batch
        devices = sorted(jax.devices(), key=lambda one: (one.process_index, one.id))
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(1,),
    )


def replicate(tree: Any) -> Any:
    """The tree on every local device, laid out as `pmap_step` returns it.

    Without this the step would be compiled twice, for two layouts. What lies there
    already is not copied.
    """
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def shard(batch: Any) -> Any:
    """Every leaf [B, ...] -> [devices, B / devices, ...], on its way to the devices."""
    devices = jax.local_device_count()
    split = jax.tree.map(
        lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), batch
    )
    return jax.device_put(split, NamedSharding(_local_mesh(), PartitionSpec(AXIS)))


def shard_over_rows(answer: Callable) -> Callable:
    """answer(params, *rows) compiled, its rows shared among the local devices.

    Every device computes its rows by itself and needs nothing of the others'. Arrays
    [B, ...] of rows, or trees of them, go in and come out; B is to be a multiple of the
    number of devices, as `round_up_to_devices` makes it, and `params` `replicate`d.
    """
    everywhere, by_rows = PartitionSpec(), PartitionSpec(AXIS)
    mesh = _local_mesh()

    def own_rows(params: Any, rows: tuple) -> Any:
        return answer(params, *rows)

    compiled = jax.jit(
        jax.shard_map(
            own_rows,
            mesh=mesh,
            in_specs=(everywhere, by_rows),
            out_specs=by_rows,
            check_vma=False,  # a scan may begin with rows that are the same everywhere
        )
    )

    def shared(params: Any, *rows: Any) -> Any:
        return compiled(params, jax.device_put(rows, NamedSharding(mesh, by_rows)))

    return shared


def round_up_to_devices(size: int) -> int:
    """The least number, from `size` on, of which all local devices get equal shares."""
    devices = jax.local_device_count()
    return -(-size // devices) * devices


def per_device_flag(flag: bool) -> np.ndarray:
    """[devices] int32, for each of this process's devices whether `flag`."""
    return np.full(jax.local_device_count(), flag, np.int32)


def sum_over_devices(tree: Any) -> Any:
    """Sums over all devices; inside `pmap_step` only.

    Between CPUs all leaves go as one array: one by one, most of a step is waiting.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.psum(tree, AXIS)
    flat, back = ravel_pytree(tree)
    return back(jax.lax.psum(flat, AXIS))


def device_index() -> jax.Array:
    """This device's place among all; inside `pmap_step` only."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """Over how many devices the step is mapped; inside `pmap_step` only."""
    return jax.lax.axis_size(AXIS)


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def process_index_and_count() -> tuple[int, int]:
    """(k, n): this process is the k-th, from 0 on, of its job's n; (0, 1) alone."""
    return jax.process_index(), jax.process_count()


def is_multiprocess() -> bool:
    """Whether this process is one of a job of several."""
    return jax.process_count() > 1


def is_main() -> bool:
    """Whether this process is the one that writes what all share."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_nonmain() -> Iterator[None]:
    """Inside, what processes other than the first print goes nowhere."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def connect_devices() -> None:
    """Connects the devices of all processes, while these are near one another.

    Left to the first step, this fails if one process comes to it half a minute late.
    """
    multihost_utils.sync_global_devices("meet")


def barrier(name: str) -> None:
    """Returns when every process of the job has come to the place of this `name`.

    Through JAX's coordination service and not through devices, whose collectives give
    up on a process that is late.
    """
    if is_multiprocess():
        client = distributed.global_state.client  # public JAX has no such barrier
        _interruptible(lambda: client.wait_at_barrier(name, WEEK))


def check_same_on_all(value: object, sentence: str) -> None:
    """Raises InputError, with `sentence`, unless all processes give the same value."""
    barrier("check alike")
    mark = np.uint32(zlib.crc32(repr(value).encode()))
    if len(np.unique(multihost_utils.process_allgather(mark))) > 1:
        raise InputError(sentence)


def main_process_first(do: Callable[[], Any]) -> Any:
    """What do() gives: the first process does it alone, then the others, who find on
    disk what it left there."""
    if not is_main():
        barrier("the first process")
    done = do()
    if is_main():
        barrier("the first process")
    return done


def map_across_processes(work: Callable[[int], Any], count: int) -> list:
    """work(0), work(1) .. work(count - 1), each place's done by one process.

    `work` keeps on disk what it gives, and finds there what another process kept.
    """
    k, n = process_index_and_count()
    done = {place: work(place) for place in range(k, count, n)}
    barrier("what was divided")
    return [done[at] if at in done else work(at) for at in range(count)]


def _interruptible(wait: Callable[[], Any]) -> Any:
    """wait(), which holds up this thread where a signal is answered, unlike in C++."""
    results: list = []

    def run() -> None:
        try:
            results.append((wait(), None))
        except Exception as error:  # raised again below, where someone hears it
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    value, error = results[0]
    if error is not None:
        raise error
    return value
