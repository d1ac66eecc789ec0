"""MM-GAN: its curriculum, its map of labels and its U-Net, by hand; and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lessons

from ummcsgm.baselines import mm_gan
from ummcsgm.diffusion.missingness import missing_patterns

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_published_unet_has_the_published_number_of_parameters():
    method = mm_gan.make_mm_gan(4, width=1.0, scale=1.0, axis=None)
    shapes = jax.eval_shape(lambda key: method.init(key, (256, 256)), jax.random.key(0))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    down = 4 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 4 * 512 * 512
    up = 512 * 512 + 3 * 1024 * 512 + 1024 * 256 + 512 * 128 + 256 * 64
    head = 16 * 128 * 4 + 4
    assert count(shapes["generator"]) == 16 * (down + up) + head
    judge = 8 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 4
    biases = 64 + 128 + 256 + 512
    assert count(shapes["discriminator"]) == 16 * judge + biases


def test_the_curriculum_begins_with_one_missing():
    size = missing_patterns(4, proper=True).sum(axis=1)

    def at(progress):
        weights = np.asarray(mm_gan.curriculum(jnp.float32(progress), 4))
        assert abs(weights.sum() - 1) < 1e-6
        dealt = weights > 0
        assert np.unique(weights[dealt]).size == 1
        return [int(dealt[size == missing].sum()) for missing in (1, 2, 3)]

    # Of 4, 6 and 4 scenarios with one, two and three missing.
    assert at(0.0) == at(0.16) == [4, 0, 0]
    assert at(0.2) == [4, 3, 0]
    assert at(0.4) == [4, 6, 1]
    assert at(0.6) == at(1.0) == [4, 6, 4]
    # Of 3 and 3: 14 is to 10, 7, 3 as 6 is to 4, 3, 1.
    counts = [(mm_gan.curriculum(p, 3) > 0).tolist() for p in (0.0, 0.2, 0.4, 0.6)]
    assert [sum(dealt) for dealt in counts] == [2, 3, 5, 6]
    assert counts[0] == [True, True] + [False] * 4


class Half:
    """In place of the U-Net: half of an image's mean, wherever it is asked."""

    def apply(self, own, images, keys=None):
        return jnp.full_like(images, 0.5) * own["params"]


class Itself:
    """In place of the discriminator: its verdict on a voxel is the candidate's."""

    def apply(self, own, candidate, real):
        return candidate * own["params"]


def outcome(gain=1.0):
    """Modality 0 is seen and 1.7 everywhere, 1 is scored and 0.2, 2 was never scanned;
    the answer is 0.5."""
    lesson = tiny_lessons.lesson(3, (4, 4))
    flags = [np.tile(row, (4, 1)) for row in ([0, 1, 1], [0, 1, 0])]
    images = jnp.broadcast_to(jnp.array([3.4, 0.4, 8.0]), lesson.images.shape)
    missing, scored = (jnp.asarray(flag, bool) for flag in flags)
    lesson = lesson._replace(images=images, missing=missing, scored=scored)
    params = {"generator": 1.0, "discriminator": gain}
    keys = jax.random.split(jax.random.key(0), 4)
    return mm_gan._losses(Half(), Itself(), 2.0, keys, params, lesson)


def test_the_seen_are_to_be_called_real_and_the_synthesised_not():
    found = outcome()
    fooled = np.mean([(1.7 - 1) ** 2, (0.5 - 1) ** 2])
    l1 = 0.5 - 0.2
    real = np.mean([(1.7 - 1) ** 2, (0.2 - 1) ** 2])
    fake = np.mean([(1.7 - 1) ** 2, (0.5 - 0) ** 2])
    np.testing.assert_allclose(found.told["adversarial"], fooled, rtol=1e-6)
    np.testing.assert_allclose(found.told["l1"], l1, rtol=1e-5)
    np.testing.assert_allclose(found.generator, 0.1 * fooled + 0.9 * l1, rtol=1e-5)
    np.testing.assert_allclose(found.discriminator, 0.5 * (real + fake), rtol=1e-6)


def test_dropout_is_drawn_from_the_key_in_training_alone():
    method = mm_gan.make_mm_gan(4, width=0.125, scale=0.4, axis=None)
    lesson = tiny_lessons.lesson(4, (18, 18))
    params = tiny_lessons.start(method, (18, 18))
    losses = jax.jit(
        lambda seed: method.losses(
            jax.random.split(jax.random.key(seed), tiny_lessons.ROWS), params, lesson
        )
    )
    one, other, again = (losses(seed).generator for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other) > 1e-6).all()


def test_it_learns_four_slices_by_heart():
    """At ten times the published rate: to 0.30 of what a blind guess errs."""
    method = mm_gan.make_mm_gan(2, width=0.125, scale=0.4, axis=None)
    lesson = tiny_lessons.lesson(2)
    params, _ = tiny_lessons.learn(method, lesson, steps=100, rate=10)
    blind = tiny_lessons.blind_error(lesson)
    assert tiny_lessons.scored_error(method, params, lesson) < 0.4 * blind
