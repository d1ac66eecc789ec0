"""Two CPU devices and a small network for every test; a key used twice is an error."""

import jax
import jax.numpy as jnp
import pytest

from ummcsgm.network import MMCSN

# Before any device is used: afterwards JAX refuses the first.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_debug_key_reuse", True)

SMALL = {
    "modalities": 4,
    "widths": (32, 64),
    "blocks": (1, 1),
    "stem": "haar",
    "patch": 2,
    "attention_at": 4,
    "pixel_width": 8,
    "pixel_layers": 1,
    "context": 2,
    "conditioning": "both",
    "dtype": jnp.float32,
}


@pytest.fixture(scope="session")
def make_network():
    """make_network(stem="haar", ...): a network of 16 x 16 images, grids of 8 and 4."""
    return lambda **changes: MMCSN(**{**SMALL, **changes})


@pytest.fixture(scope="session")
def random_params():
    """random_params(network): no leaf is zero, so that every path carries signal."""

    def draw(network: MMCSN, seed: int = 0):
        images = jnp.zeros((1, 16, 16, network.modalities))
        missing = jnp.zeros((1, network.modalities), bool)
        params = jax.jit(network.init)(
            jax.random.key(seed), images, missing, jnp.zeros(1)
        )
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        leaves = [
            leaf + jax.random.normal(key, leaf.shape) * leaf[..., :1].size ** -0.5
            if leaf.ndim > 1
            else leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, leaves)

    return draw
