"""Devices and processes: pmap, sharding, jax.distributed."""
