"""Devices: the only file with pmap, sharding and sums over devices.

A step is written for the examples of one device; `AXIS` names the devices it is mapped over.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
MIN_EXAMPLES = 4  # for each CPU device; below, the overhead outweighs the second core


class CollectiveError(RuntimeError):
    """A sum over the devices of several processes failed."""


def use_cpu_cores(batch: int | None) -> None:
    """Makes the cores of a CPU its devices: as many as divide `batch` evenly with at least
    MIN_EXAMPLES each; all cores if `batch` is None.

    XLA computes much of a network on one core, but several devices at once: on two cores a training
    step of the quickstart takes 0.7 of the time. Does nothing in a job of several processes, where
    the environment or a caller has set the number of devices, or where they are in use.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices > 0 or "host_platform_device_count" in flags:
        return
    if jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0))
    most = cores if batch is None else min(cores, max(batch // MIN_EXAMPLES, 1))
    count = max(n for n in range(1, most + 1) if batch is None or batch % n == 0)
    with contextlib.suppress(RuntimeError):  # devices are in use
        jax.config.update("jax_num_cpu_devices", count)


def pmap_step(step: Callable, devices: list | None = None) -> Callable:
    """step(key, state, batch) mapped over the devices of all processes, or those given.

    The batch has a leading axis of this process's devices (`shard`); key and state are
    the same on all devices and have none. What the step returns must be summed over the
    devices or computed alike on all: the first device's value is taken.

    Raises:
        CollectiveError: the step failed on the devices, in a job of several processes.
    """
    if devices is None:  # the examples of a process are neighbours in the global batch
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(1,),
    )
    if jax.process_count() == 1:
        return mapped

    def checked(*arguments: Any) -> Any:
        try:
            return mapped(*arguments)
        except ValueError as error:
            # JAX has the same type for a step that cannot be traced, which is the step's
            # fault, and for a failed sum over devices. The first would fail again here.
            mapped.lower(*arguments)
            raise CollectiveError(str(error)) from error

    checked.lower = mapped.lower
    return checked


def replicate(tree: Any) -> Any:
    """The tree on every local device, laid out as `pmap_step` returns it.

    Without it the step would be compiled twice, for two layouts.
    """
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def shard(batch: Any) -> Any:
    """Every leaf [B, ...] -> [devices, B / devices, ...], on its way to the devices."""
    devices = jax.local_device_count()
    split = jax.tree.map(
        lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), batch
    )
    return jax.device_put(split, NamedSharding(_local_mesh(), PartitionSpec(AXIS)))


def shard_over_rows(function: Callable) -> Callable:
    """function(params, *arrays) compiled, its examples shared among the local devices.

    Arrays [B, ...], or trees of them, go in and come out; a device needs nothing of the others. B
    must be a multiple of the number of devices (`round_up_to_devices`), and `params` `replicate`d.
    """
    mesh, by_example = _local_mesh(), PartitionSpec(AXIS)
    compiled = jax.jit(
        jax.shard_map(
            lambda params, arrays: function(params, *arrays),
            mesh=mesh,
            in_specs=(PartitionSpec(), by_example),
            out_specs=by_example,
            check_vma=False,  # a scan may begin with values that are the same everywhere
        )
    )

    def sharded(params: Any, *arrays: Any) -> Any:
        return compiled(params, jax.device_put(arrays, NamedSharding(mesh, by_example)))

    return sharded


def round_up_to_devices(size: int) -> int:
    """The smallest multiple of the number of local devices that is at least `size`."""
    devices = jax.local_device_count()
    return -(-size // devices) * devices


def per_device_flag(flag: bool) -> np.ndarray:
    """[devices] int32: `flag` for each of this process's devices."""
    return np.full(jax.local_device_count(), flag, np.int32)


def sum_over_devices(tree: Any) -> Any:
    """Sums over all devices; inside `pmap_step` only.

    Between CPUs all leaves go as one array: leaf by leaf, most of a step is waiting.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.psum(tree, AXIS)
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, AXIS))


def device_index() -> jax.Array:
    """The index of this device among all; inside `pmap_step` only."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """The number of devices that the step is mapped over; inside `pmap_step` only."""
    return jax.lax.axis_size(AXIS)


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
