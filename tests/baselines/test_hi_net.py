"""Hi-Net: its fusions, statistics and loss weights by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines import hi_net

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_fusion_is_sum_product_and_maximum_over_the_available():
    features = [np.full((4, 1, 1, 1), value, np.float32) for value in (-2.0, 3.0, 5.0)]
    flags = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    fused = hi_net.fuse(features, flags)[:, 0, 0]
    by_hand = [[6, -30, 5], [1, -6, 3], [-2, -2, -2], [0, 1, 0]]
    np.testing.assert_array_equal(fused, by_hand)


class ConstantGenerator:
    """Generates 0.5 everywhere, and reconstructs 0.25."""

    def apply(self, variables, images, available, valid, mutable):
        return (jnp.full_like(images, 0.5), jnp.full_like(images, 0.25)), {"statistics": {}}


class MeanScores:
    """A discriminator that scores a voxel with the mean of its modalities."""

    def apply(self, variables, images, valid):
        return images.mean(axis=-1, keepdims=True)


def test_the_parts_of_the_loss_have_the_published_weights():
    """In [-1, 1]: 0 and 1 are seen and 0.8, 2 is scored and 0.9; 3 was never scanned,
    and is 0 for the discriminator."""
    images = (np.array([0.8, 0.8, 0.9, 9]) + 1) / 2
    batch = tiny_gan_batch.make_batch(4, (4, 4), [0, 0, 1, 1], [0, 0, 1, 0], images)
    method = hi_net.HiNet(4, ConstantGenerator(), MeanScores())
    params = {"generator": {}, "discriminator": {}, "statistics": {}}
    losses = jax.jit(method.losses)(jax.random.key(0), params, batch)
    fake, real = (0.8 + 0.8 + 0.5) / 4, (0.8 + 0.8 + 0.9) / 4
    parts = [(fake - 1) ** 2, 100 * 0.4, 20 * (0.55 + 0.55)]
    np.testing.assert_allclose(losses.generator, sum(parts), rtol=1e-5)
    discriminator = 0.5 * ((real - 1) ** 2 + fake**2)
    np.testing.assert_allclose(losses.discriminator, discriminator, rtol=1e-5)


def test_statistics_are_of_the_examples_that_have_a_modality():
    """Modality 0 is missing everywhere: its encoder's statistics stay as they are."""
    generator = hi_net.Generator((4, 4, 4), None)
    images = jnp.asarray(tiny_gan_batch.make_images(2))
    available = jnp.array([[False, True]] * 4)
    arguments = (images, available, jnp.ones(4, bool))
    variables = jax.jit(generator.init)(jax.random.key(0), *arguments)
    apply = jax.jit(lambda *arguments: generator.apply(*arguments, mutable=["statistics"]))
    _, changed = apply(variables, *arguments)
    before, after = variables["statistics"], changed["statistics"]
    for name in before:
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before[name], after[name])
        assert set(jax.tree.leaves(same)) == {name == "encoder0"}, name
    complete = jax.jit(lambda variables: generator.apply(variables, images, available, None)[0])
    moved = complete({**variables, **changed}) - complete(variables)
    assert np.abs(moved).max() > 1e-5
