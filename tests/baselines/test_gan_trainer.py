"""The trainer of the published methods, on a method whose every number is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.baselines.gan_trainer import init_state, make_optimizer, make_train_step
from ummcsgm.baselines.method import Method, MethodLosses
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.distributed import devices
from ummcsgm.training.dsm_step import UpdateRule
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")
PATTERNS = missing_patterns(4, proper=True)
EVEN = pattern_probabilities(PATTERNS, ())
UNEVEN = pattern_probabilities(PATTERNS, (0.4, 0.3, 0.3))
EXAMPLES = 8


class KnownMethod(Method):
    """Losses: w times the number of scored modalities, -v times the lesion's share."""

    name = "known"
    learning_rates = (1e-3, 1e-4)

    def init(self, key, grid):
        return {
            "generator": {"w": jnp.zeros(())},
            "discriminator": {"v": jnp.zeros(())},
            "statistics": {"s": jnp.zeros(())},
        }

    def losses(self, keys, params, batch):
        size = batch.scored.sum(axis=1).astype(jnp.float32)
        lesion = jnp.where(batch.valid, batch.lesion.mean(axis=(1, 2)), 0.0)
        generator = params["generator"]["w"] * size
        discriminator = -params["discriminator"]["v"] * lesion
        unscored = (batch.missing & ~batch.scored).sum(axis=1)
        metrics = {"size": size, "unscored": unscored}
        return MethodLosses(generator, discriminator, {"s": size.mean()}, metrics)


KNOWN = KnownMethod()


def make_batch(examples=EXAMPLES, labels=None):
    images = np.ones((examples, 2, 2, 4), np.float16)
    return Batch(images, np.ones((examples, 4), bool), np.ones(examples, bool), labels)


@functools.cache
def compile_step(method, rule, count, probabilities, patterns_per_image):
    """A step is compiled once for all tests that take it."""
    arguments = (PATTERNS, np.array(probabilities), patterns_per_image, 100)
    step = make_train_step(method, rule, *arguments)
    return devices.pmap_step(step, jax.devices()[:count])


SGD = UpdateRule(optax.sgd(1.0), 0.5, 1)
SGD_MICROBATCHES = UpdateRule(optax.sgd(1.0), 0.5, 2)


def take_step(
    batch, method=KNOWN, *, rule=SGD, count=2, probabilities=EVEN, step=0, patterns_per_image=1
):
    """(the state after step number `step` of 100 on so many devices, its metrics)."""
    state = init_state(jax.random.key(0), method, rule, (2, 2)).replace(step=jnp.int32(step))
    shards = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)
    mapped = compile_step(method, rule, count, tuple(probabilities), patterns_per_image)
    state, metrics = mapped(jax.random.key(1), state, shards)
    return jax.tree.map(np.asarray, state), jax.tree.map(float, metrics)


def test_each_network_moves_by_its_own_gradient_over_the_global_batch():
    labels = np.zeros((EXAMPLES, 2, 2), np.float16)
    labels[:3, 0] = 4  # half of each of three slices is tumour
    state, metrics = take_step(make_batch(labels=labels))
    assert state.params["generator"]["w"] == pytest.approx(-metrics["size"])
    assert state.params["discriminator"]["v"] == pytest.approx(3 / EXAMPLES * 0.5)
    assert state.params["statistics"]["s"] == pytest.approx(metrics["size"])
    assert metrics["loss"] == 0.0 and state.step == 1
    # The EMA's horizon is short at first: 1 - 1/10 of the way to the new parameters.
    assert state.ema["generator"]["w"] == pytest.approx(-0.9 * metrics["size"])


class RandomLosses(KnownMethod):
    """The generator's gradient of an example is a random number of its key."""

    def losses(self, keys, params, batch):
        losses = super().losses(keys, params, batch)
        draws = jax.vmap(jax.random.uniform)(keys) * batch.valid
        metrics = losses.metrics | {"draw": draws}
        return losses._replace(generator=params["generator"]["w"] * draws, metrics=metrics)


def test_devices_and_microbatches_change_nothing():
    """Neither the sums nor an example's random numbers."""
    method = RandomLosses()
    state, metrics = take_step(make_batch(), method, count=1)
    shared, same = take_step(make_batch(), method, rule=SGD_MICROBATCHES)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert metrics == pytest.approx(same)
    assert -1 < state.params["generator"]["w"] < 0
    _, later = take_step(make_batch(), method, count=1, step=1)
    assert later["draw"] != metrics["draw"]


def test_several_patterns_of_an_image_are_as_many_examples():
    batch = make_batch()
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), batch)
    _, metrics = take_step(batch, probabilities=UNEVEN, patterns_per_image=2)
    _, same = take_step(repeated, probabilities=UNEVEN)
    _, single = take_step(batch, probabilities=UNEVEN)
    assert metrics == pytest.approx(same) != pytest.approx(single)


def test_padding_and_what_was_never_scanned_are_not_scored():
    batch = make_batch()
    present = batch.present.copy()
    present[:, 3] = False
    valid = np.arange(EXAMPLES) < 5
    _, metrics = take_step(batch._replace(present=present, valid=valid))
    # Each of five scored examples lacks the fourth modality; padding lacks it, too.
    assert metrics["unscored"] == pytest.approx(EXAMPLES / 5)
    impossible = PATTERNS[:, 3] / PATTERNS[:, 3].sum()
    state, metrics = take_step(batch._replace(present=present), probabilities=impossible)
    assert metrics["size"] == 0 and state.params["generator"]["w"] == 0


def test_a_methods_own_curriculum_follows_the_progress_of_training():
    class WithCurriculum(KnownMethod):
        @staticmethod
        def curriculum(progress, modalities):
            size = PATTERNS.sum(axis=1)
            return jnp.where(progress < 0.5, jnp.float32(size == 1), jnp.float32(size == 3)) / 4

    method = WithCurriculum()
    assert take_step(make_batch(), method, step=49)[1]["size"] == 1
    assert take_step(make_batch(), method, step=50)[1]["size"] == 3


def test_a_loss_that_is_not_finite_moves_nothing():
    class NotFinite(KnownMethod):
        def losses(self, keys, params, batch):
            losses = super().losses(keys, params, batch)
            return losses._replace(generator=losses.generator * jnp.nan)

    state, metrics = take_step(make_batch(), NotFinite())
    assert state.params["generator"]["w"] == 0 == state.params["discriminator"]["v"]
    assert state.params["statistics"]["s"] == 0
    assert (state.step, metrics["in_row"], metrics["skipped"]) == (1, 1, 1)


def test_each_network_has_its_published_learning_rate():
    """Adam's first step is its learning rate, whatever the gradient."""
    optimizer = make_optimizer(KnownMethod(), lambda rate: optax.constant_schedule(3 * rate))
    labels = np.full((EXAMPLES, 2, 2), 4, np.float16)
    rule = UpdateRule(optimizer, 0.5, 1)
    state, metrics = take_step(make_batch(labels=labels), rule=rule)
    assert state.params["generator"]["w"] == pytest.approx(-3e-3, rel=1e-4)
    assert state.params["discriminator"]["v"] == pytest.approx(3e-4, rel=1e-4)
    assert state.params["statistics"]["s"] == pytest.approx(metrics["size"])
