"""MM-GAN: its size, its curriculum and its losses by hand; its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines import mm_gan
from ummcsgm.diffusion.missingness import missing_patterns

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_unet_has_the_published_number_of_parameters():
    method = mm_gan.make_mm_gan(4, width=1.0, scale=1.0, axis=None)
    shapes = jax.eval_shape(lambda key: method.init(key, (256, 256)), jax.random.key(0))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    down = 4 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 4 * 512 * 512
    up = 512 * 512 + 3 * 1024 * 512 + 1024 * 256 + 512 * 128 + 256 * 64
    head = 16 * 128 * 4 + 4
    assert count(shapes["generator"]) == 16 * (down + up) + head
    discriminator = 8 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 4
    biases = 64 + 128 + 256 + 512
    assert count(shapes["discriminator"]) == 16 * discriminator + biases


def test_the_curriculum_begins_with_one_missing():
    size = missing_patterns(4, proper=True).sum(axis=1)

    def counts(progress):
        probabilities = np.asarray(mm_gan.curriculum(jnp.float32(progress), 4))
        assert abs(probabilities.sum() - 1) < 1e-6
        possible = probabilities > 0
        assert np.unique(probabilities[possible]).size == 1
        return [int(possible[size == missing].sum()) for missing in (1, 2, 3)]

    # Of 4, 6 and 4 patterns with one, two and three missing.
    assert counts(0.0) == counts(0.16) == [4, 0, 0]
    assert counts(0.2) == [4, 3, 0]
    assert counts(0.4) == [4, 6, 1]
    assert counts(0.6) == counts(1.0) == [4, 6, 4]
    # Of 3 and 3 patterns: 10, 7, 3 and 0 of 14 left out are 4, 3, 1 and 0 of 6.
    possible = [(mm_gan.curriculum(p, 3) > 0).tolist() for p in (0.0, 0.2, 0.4, 0.6)]
    assert [sum(flags) for flags in possible] == [2, 3, 5, 6]
    assert possible[0] == [True, True] + [False] * 4


class ConstantGenerator:
    """Generates 0.5 everywhere."""

    def apply(self, variables, images, keys=None):
        return jnp.full_like(images, 0.5)


class CandidateScores:
    """A discriminator that scores each voxel with its own value."""

    def apply(self, variables, pair):
        return jnp.split(pair, 2, axis=-1)[0], None


def test_the_discriminator_learns_to_score_seen_modalities_as_real_and_generated_as_not():
    """Modality 0 is seen and 1.7, 1 is scored and 0.2, 2 was never scanned."""
    batch = tiny_gan_batch.make_batch(3, (4, 4), [0, 1, 1], [0, 1, 0], [3.4, 0.4, 8.0])
    method = mm_gan.MMGAN(3, 2.0, ConstantGenerator(), CandidateScores())
    keys = jax.random.split(jax.random.key(0), 4)
    losses = jax.jit(method.losses)(keys, {"generator": {}, "discriminator": {}}, batch)
    adversarial = np.mean([(1.7 - 1) ** 2, (0.5 - 1) ** 2])
    l1 = 0.5 - 0.2
    real = np.mean([(1.7 - 1) ** 2, (0.2 - 1) ** 2])
    fake = np.mean([(1.7 - 1) ** 2, (0.5 - 0) ** 2])
    np.testing.assert_allclose(losses.metrics["adversarial"], adversarial, rtol=1e-6)
    np.testing.assert_allclose(losses.metrics["l1"], l1, rtol=1e-5)
    np.testing.assert_allclose(losses.generator, 0.1 * adversarial + 0.9 * l1, rtol=1e-5)
    np.testing.assert_allclose(losses.discriminator, 0.5 * (real + fake), rtol=1e-6)


def test_dropout_is_drawn_from_each_key_in_training():
    generator = mm_gan.Generator((4, 4, 4, 8, 8))
    images = jnp.asarray(tiny_gan_batch.make_images(2, (32, 32))[:2])
    variables = jax.jit(generator.init)(jax.random.key(0), images)
    apply = jax.jit(
        lambda seed: generator.apply(variables, images, jax.random.split(jax.random.key(seed), 2))
    )
    first, again, other = map(apply, (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=(1, 2, 3)) > 1e-6).all()
