"""Sub-VP, VE and cosine by config.sde.name: training, the mean, and draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import assert_exact_moments
from tiny_run import EDM, tiny_config

from ummcsgm.config import build
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import make_denoise, make_posterior
from ummcsgm.diffusion.samplers import address_keys, make_draw, sampler_times
from ummcsgm.distributed import devices
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("changes", [{}, EDM], ids=["mean", "edm"])
@pytest.mark.parametrize("name", ["sub_vp", "ve", "cosine"])
def test_an_sde_of_the_config_is_trained_and_drawn_from(name, changes):
    config = tiny_config("", sde__name=name, **changes)
    model, method = build.build_model(config), build_trainable(config, "mm-csn")
    images = np.random.default_rng(0).normal(0.5, 0.2, (2, 16, 16, 4)).astype(np.float32)
    batch = devices.shard(Batch(images, np.ones((2, 4), bool), np.ones(2, bool)))
    state = devices.replicate(method.start(jax.random.key(0)))
    step = devices.pmap_step(method.step)
    before = jax.tree.map(np.array, state.params)
    for _ in range(3):
        state, metrics = step(jax.random.key(1), state, batch)
    assert int(metrics["skipped"]) == 0 and np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - old).max(), state.params, before)
    assert max(jax.tree.leaves(moved)) > 0

    condition = mask_inputs(jnp.asarray(images), jnp.array([[True, False, True, False]] * 2))
    times = sampler_times("warm", model.sde, 3, sigma_min=0.02, warm_start_sigma=3.0)
    draw = make_draw("warm", model.sde, times)

    @jax.jit
    def complete(params, keys):
        mean = make_posterior(model, params, condition).moments().mean
        denoise = make_denoise(model, params, condition)
        return mean, condition.fill(draw(keys, denoise, condition.missing, mean))

    for completed in complete(state.params, address_keys(0, np.array([[0, 0], [1, 0]]))):
        assert np.isfinite(completed).all()
        np.testing.assert_array_equal(completed[..., [1, 3]], images[..., [1, 3]])
        assert np.abs(completed - images)[..., [0, 2]].max() > 0


@pytest.mark.parametrize("name", ["sub_vp", "ve", "cosine"])
@pytest.mark.parametrize(("sampler", "steps"), [("warm", 16), ("ancestral", 200)])
def test_an_sde_of_the_config_draws_a_gaussian_posterior(name, sampler, steps):
    sde = build.build_sde(tiny_config("", sde__name=name))
    assert_exact_moments(sampler, sde, steps, 0.05 if sampler == "ancestral" else 0.01)
