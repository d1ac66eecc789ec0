"""The variance head learns what it claims, leaves the trunk alone and starts draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closed_form import SDES, draw_images, each_sde, posterior
from tiny_run import EDM, tiny_config

from ummcsgm.config import build
from ummcsgm.diffusion.loss import DSMInputs, training_losses
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import (
    ScoreModel,
    make_denoise,
    make_posterior,
)
from ummcsgm.diffusion.samplers import sample_from_mean
from ummcsgm.diffusion.sde import VP
from ummcsgm.diffusion.time_grids import log_uniform_times
from ummcsgm.models.mm_csn import LOG_VARIANCE, in_variance_head
from ummcsgm.training.dsm_step import init_state, make_train_step
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

SINGLE = np.eye(4, dtype=bool)
TINY = {"widths": (8,), "blocks": (0,), "attention_max_grid": 0, "patch": 4}
TINY |= {"predict_variance": True}
ASKED = SINGLE[:, None, None]
STD, STEPS = 0.4, 300


class Exact:
    """The network whose two heads are right for one known posterior."""

    def __init__(self, mean, variance):
        self.mean, self.variance = jnp.asarray(mean), jnp.asarray(variance)

    def conditioning_cache(self, *inputs):
        return None

    def apply(self, params, inputs, missing, level, once):
        tau = jnp.exp(4 * level)[:, None, None, None]
        total = jnp.square(tau) + STD**2
        y = inputs * jnp.sqrt(total)
        share = self.variance / (self.variance + jnp.square(tau))
        denoised = self.mean + share * (y - self.mean)
        skip, out = STD**2 / total, tau * STD / jnp.sqrt(total)
        spread = jnp.maximum(share * jnp.square(tau), 1e-12)
        image = (denoised - skip * y) / out
        logs = jnp.log(spread / jnp.square(out))
        return jnp.concatenate([image, 0 * image + logs], axis=-1)


def told(model, params, images, missing):
    """What one evaluation tells."""

    @jax.jit
    def answer(params, images, missing):
        condition = mask_inputs(images, missing)
        return make_posterior(model, params, condition).moments()

    return answer(params, images, missing)


def exact_model(sde):
    """(model, images, posterior sd [4, 1, 1, 4]): each modality is missing once."""
    images = draw_images(np.random.default_rng(0), (4, 3, 3))
    mean, variance = posterior(images, SINGLE)
    own = np.einsum("bii->bi", variance)[:, None, None]
    network = Exact(mean.astype(np.float32), own.astype(np.float32))
    return ScoreModel(network, sde, STD), images.astype(np.float32), np.sqrt(own)


@each_sde
def test_one_evaluation_answers_the_mean_and_its_variance(sde):
    model, images, sd = exact_model(sde)
    mean, variance = told(model, None, images, SINGLE)
    # Noise of the highest level, 50 to 318, tells 1 / level^2 of what it hides.
    np.testing.assert_allclose(np.sqrt(variance), 0 * mean + sd, rtol=1e-3)
    np.testing.assert_allclose(mean, model.network.mean, atol=2e-3)
    seen = np.broadcast_to(~ASKED, mean.shape)
    assert not np.any(variance[seen]) and np.all(variance[~seen] > 0)
    np.testing.assert_array_equal(mean[seen], images[seen])


def test_a_warm_start_with_the_predicted_variance_is_exact_from_level_1():
    """A draw is affine in its noise: two of them, at 0 and at 1, tell its sd."""
    model, images, sd = exact_model(SDES["vp"])
    mean, predicted = told(model, None, images, SINGLE)
    denoise = make_denoise(model, None, mask_inputs(jnp.asarray(images), jnp.asarray(SINGLE)))
    times = log_uniform_times(model.sde, 12, 1.0, 0.01)

    def drawn(variance, unit):
        def noise(like, step):
            return 0 * like + unit

        return sample_from_mean(noise, model.sde, denoise, mean, times, variance=variance)

    def ratio(variance):
        """Of the draws' sd and the posterior's, [4, 9]: one modality per pattern."""
        wide = np.asarray(drawn(variance, 1.0) - drawn(variance, 0.0)) / np.where(ASKED, sd, 1)
        return wide[np.broadcast_to(ASKED, wide.shape)].reshape(4, -1)

    np.testing.assert_allclose(ratio(predicted), 1, atol=0.01)
    known = np.square(sd[ASKED])[:, None]
    deficit = 1 - np.square(ratio(0.0))
    np.testing.assert_allclose(deficit, known / (known + 1) + 0 * deficit, atol=0.01)
    assert deficit.min() > 0.15


def test_the_head_learns_a_variance_that_differs_from_voxel_to_voxel(make_network):
    """The truth has sd 0.05 + 0.3 b at a b that is seen; the trunk, which stands
    still, answers 0. The head finds that sd within 6 % in each tenth of b's range."""
    network = make_network(**TINY | {"modalities": 2, "pixel_width": 32})
    model = ScoreModel(network, VP(0.1, 20.0), 0.25)
    missing = jnp.tile(jnp.array([True, False]), (16, 1))
    seen = jnp.zeros((16, 8, 8, 2))
    start = jax.jit(model.network.init)(jax.random.key(0), seen, missing, jnp.zeros(16))
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-2, STEPS))
    inputs = DSMInputs(missing, missing, jnp.ones(16), seen, jnp.ones(16, bool))
    objective = build.build_objective(
        tiny_config(
            "",
            data__modalities=("t1", "t2"),
            missingness__size_probabilities="uniform",
            **EDM,
        )
    )

    rng = np.random.default_rng(0)

    def draw():
        seen = rng.uniform(size=(16, 8, 8))
        error = (0.05 + 0.3 * seen) * rng.normal(size=seen.shape)
        return np.stack([error, seen], axis=-1).astype(np.float32)

    @jax.jit
    def step(params, opt_state, images):
        def loss(params):
            return training_losses(model, params, objective, images, inputs)[1].mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = start, optimizer.init(start)
    for _ in range(STEPS):
        params, opt_state = step(params, opt_state, draw())
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, start)
    assert moved == in_variance_head(params)
    images = draw()
    seen, variance = images[..., 1], told(model, params, images, missing).variance
    assert not np.any(variance[..., 1])
    for low in np.arange(0, 1, 0.1):
        inside = (seen >= low) & (seen < low + 0.1)
        truth = np.square(0.05 + 0.3 * seen[inside])
        ratio = np.sqrt(np.mean(variance[inside, 0]) / np.mean(truth))
        assert ratio == pytest.approx(1, abs=0.06)


def steps_of(network):
    """The state after three steps of a run, and what each told."""
    head = network.predict_variance
    config = tiny_config("", network__predict_variance=head, train__clip=1e-3, **EDM)
    model, recipe = (ScoreModel(network, VP(0.1, 20.0), STD), build.build_update_rule(config))
    start = jax.jit(lambda key: init_state(key, model, recipe, (16, 16)))
    state = start(jax.random.key(0))
    step = jax.pmap(
        make_train_step(model, build.build_objective(config), recipe),
        axis_name="devices",
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.local_devices()[:1],
    )
    rng, told = np.random.default_rng(0), []
    for _ in range(3):
        images = rng.uniform(size=(1, 4, 16, 16, 4)).astype(np.float32)
        batch = Batch(images, np.ones((1, 4, 4), bool), np.ones((1, 4), bool))
        state, metrics = step(jax.random.key(1), state, batch)
        told.append({name: float(value) for name, value in metrics.items()})
    return jax.tree.map(np.asarray, state), told


def test_the_trunk_moves_bit_for_bit_as_without_the_head(make_network):
    """Though both are clipped: each by its own norm."""
    (ours, told), (theirs, plain) = (
        steps_of(make_network(**TINY | {"predict_variance": variance}))
        for variance in (True, False)
    )
    for tree, other in ((ours.params, theirs.params), (ours.ema, theirs.ema)):
        own, trunk = dict(tree["params"]), other["params"]
        head = own.pop("variance")
        assert own.keys() == trunk.keys()
        jax.tree.map(np.testing.assert_array_equal, own, trunk)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(head)) > 0
    assert [one["loss"] for one in told] == [one["loss"] for one in plain]
    assert all("variance_loss" in one for one in told)
    assert not any("variance_loss" in one for one in plain)


def test_the_variance_is_bounded_and_near_that_of_the_data_at_first(make_network, random_params):
    network = make_network(**TINY)
    model, params = ScoreModel(network, SDES["vp"], STD), random_params(network)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 4)).astype(np.float32)
    first = jax.jit(network.init)(jax.random.key(0), images, SINGLE, jnp.zeros(4))

    def logs(params):
        variance = told(model, params, images, SINGLE).variance
        return np.log(variance[np.broadcast_to(ASKED, variance.shape)] / STD**2)

    np.testing.assert_allclose(logs(first), -0.31, atol=0.01)
    head = in_variance_head(params)
    wild = jax.tree.map(lambda leaf, own: leaf * (1e4 if own else 1), params, head)
    least, most = LOG_VARIANCE
    assert np.min(logs(wild)) == pytest.approx(least, abs=1e-3)
    assert np.max(logs(wild)) == pytest.approx(most, abs=1e-3)
