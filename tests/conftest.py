"""Two CPU devices and a small network for every test; a key used twice is an error."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.models.mm_csn import MMCSN

# Before any device is used: afterwards JAX refuses the first.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_debug_key_reuse", True)


def pytest_configure(config):
    """Compiled programs are kept in pytest's cache folder, for the next run and for the
    processes that tests start."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder and hasattr(config, "cache"):
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs",
        float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
    )


@pytest.fixture(scope="module")
def quick_compile():
    """XLA compiles hastily: for modules that compile more than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each file's compiled programs go with it: a process that keeps those of all runs
    out of memory maps, and XLA crashes where it compiles the next one."""
    yield
    jax.clear_caches()


SMALL = {
    "modalities": 4,
    "widths": (32, 64),
    "blocks": (1, 1),
    "patch": 2,
    "attention_max_grid": 4,
    "pixel_width": 8,
    "pixel_layers": 1,
    "context_channels": 2,
    "conditioning": "both",
    "predict_variance": False,
    "neighbour_slices": 0,
    "remat": (False,) * 3,
    "dtype": jnp.float32,
}


@pytest.fixture(scope="session")
def make_network():
    """make_network(patch=2, ...): a network of 16 x 16 images, grids of 8 and 4."""
    return lambda **changes: MMCSN(**{**SMALL, **changes})


@pytest.fixture(scope="session")
def random_params():
    """random_params(network): no leaf is zero, so that every path carries signal."""

    def draw(network: MMCSN):
        images = jnp.zeros((1, 16, 16, network.channels()))
        missing = jnp.zeros((1, network.modalities), bool)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images, missing, jnp.zeros(1))
        rng = np.random.default_rng(0)

        def leaf(path, shape):
            noise = rng.normal(size=shape.shape).astype(np.float32)
            if path[-1].key == "kernel":
                return noise * np.float32(noise[..., 0].size ** -0.5)
            return 0.1 * noise + np.float32(path[-1].key == "scale")

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw
