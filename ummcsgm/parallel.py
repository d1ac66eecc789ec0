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

    Without this the step would be compiled twice, for two layouts.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: Any) -> Any:
    """Every leaf [B, ...] -> [devices, B / devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(
        lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), batch
    )


def total(tree: Any) -> Any:
    """Sums over all devices; inside `over_devices` only."""
    return jax.lax.psum(tree, AXIS)


def device_index() -> jax.Array:
    """This device's place among all; inside `over_devices` only."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """Over how many devices the step is mapped; inside `over_devices` only."""
    return jax.lax.axis_size(AXIS)
