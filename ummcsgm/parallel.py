"""Devices and processes: the only file that knows of pmap, sharding and collectives.

A step is written for the rows of one device; `AXIS` names the devices it runs on.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def over_devices(step: Callable) -> Callable:
    """step(key, state, batch) mapped over the devices; the state is donated.

    The batch carries a leading axis of devices (`shard`); key and state are the same
    everywhere and have none. Whatever the step returns must be `total`-ed over devices
    or computed alike on all: device 0's is taken.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=(1,),
    )


def replicate(tree: Any) -> Any:
    """The tree on every local device, laid out as `over_devices` returns it.

    Without this the step would be compiled twice, for two layouts. What lies there
    already is not copied.
    """
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def shard(batch: Any) -> Any:
    """Every leaf [B, ...] -> [devices, B / devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(
        lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), batch
    )


def over_rows(answer: Callable) -> Callable:
    """answer(params, *rows) compiled, its rows shared among the local devices.

    Every device computes its rows by itself and needs nothing of the others'. Arrays
    [B, ...] of rows, or trees of them, go in and come out; B is to be a multiple of the
    number of devices, as `whole_rows` makes it, and `params` `replicate`d.
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


def whole_rows(size: int) -> int:
    """The least number, from `size` on, of which all local devices get equal shares."""
    devices = jax.local_device_count()
    return -(-size // devices) * devices


def total(tree: Any) -> Any:
    """Sums over all devices; inside `over_devices` only."""
    return jax.lax.psum(tree, AXIS)


def device_index() -> jax.Array:
    """This device's place among all; inside `over_devices` only."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """Over how many devices the step is mapped; inside `over_devices` only."""
    return jax.lax.axis_size(AXIS)


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
