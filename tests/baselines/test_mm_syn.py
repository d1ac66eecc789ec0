"""MM-SYN: its latents and the sum of its losses by hand; and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lessons

from ummcsgm.baselines import mm_syn

pytestmark = pytest.mark.usefixtures("quick_compile")


def latents(*values):
    return [np.full((4, 2, 2, 3), value, np.float32) for value in values]


AVAILABLE = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0]], bool)


def test_the_variance_is_of_the_available_latents():
    # Of 1, 4 and 7: about 2.5 for the first two, about 4 for all.
    found = mm_syn.variance(latents(1.0, 4.0, 7.0), AVAILABLE)
    np.testing.assert_allclose(found, [2.25, 6.0, 0, 0])


def test_fused_is_the_maximum_of_the_available_latents():
    """A missing modality's latent is decoded alone and is in no fusion."""
    method = mm_syn.make_mm_syn(3, width=0.125, scale=0.4, axis=None)
    params = tiny_lessons.start(method)["generator"]
    generator = mm_syn.Generator((4, 8, 16), 4)
    images = jnp.asarray(tiny_lessons.images(3))
    run = jax.jit(lambda *rows: generator.apply({"params": params}, *rows, True))
    decoded, each = run(images, AVAILABLE)
    by_hand = jnp.maximum(each[0], each[1])[:1]
    decoder = mm_syn.Decoder(4)
    own = {"params": params["decoder2"]}
    same = decoder.apply(own, by_hand)[..., 0]
    np.testing.assert_allclose(decoded[0, :1, ..., 2], same, atol=1e-5)
    alone = decoder.apply(own, each[1])[..., 0]
    np.testing.assert_allclose(decoded[2, ..., 2], alone, atol=1e-5)
    # With one available, fused is that one.
    np.testing.assert_allclose(decoded[0, 2], decoded[2, 2], atol=1e-5)
    assert np.abs(decoded[0, 0] - decoded[2, 0]).max() > 1e-3


class Known:
    """In place of the generator: fused is 0, the single ones 1, 2 and 3."""

    def apply(self, own, images, available, singles):
        decoded = [jnp.full_like(images, value) for value in (0.0, 1.0, 2.0, 3.0)]
        return jnp.stack(decoded), latents(1.0, 4.0, 7.0)


def test_every_available_latent_is_to_give_every_output_that_has_a_truth():
    """Truths are 10, 20 and 30 times the mean. 0 and 1 are available; 2 is scored in
    row 0 and was never scanned in row 1."""
    missing = np.tile([False, False, True], (4, 1))
    scored = missing.copy()
    scored[1] = [False, False, False]
    scored[2], missing[2] = [True, False, False], [True, False, False]
    lesson = tiny_lessons.lesson(3, (2, 2), missing, scored)
    truth = jnp.broadcast_to(jnp.array([5.0, 10.0, 15.0]), lesson.images.shape)
    lesson = lesson._replace(images=truth)
    key, params = jax.random.key(0), {"generator": {}}
    found = mm_syn._losses(Known(), 0.5, key, params, lesson)
    fused, first, second = 10 + 20 + 30, 9 + 19 + 29, 8 + 18 + 28
    third = 7 + 17 + 27
    told = found.told
    np.testing.assert_allclose(told["fused"], [fused, 0, fused, fused])
    single = first + second
    np.testing.assert_allclose(told["single"], [single, 0, second + third, single])
    np.testing.assert_allclose(told["variance"], [2.25, 0, 2.25, 2.25])
    np.testing.assert_allclose(told["l1"], [30, 0, 10, 30])
    np.testing.assert_allclose(found.generator[0], fused + single + 2.25)


def test_it_learns_four_slices_by_heart():
    """At fifty times the published rate, meant for many thousand steps: to 0.23 of
    what a blind guess errs."""
    method = mm_syn.make_mm_syn(2, width=0.125, scale=0.4, axis=None)
    lesson = tiny_lessons.lesson(2)
    params, _ = tiny_lessons.learn(method, lesson, steps=150, rate=50)
    blind = tiny_lessons.blind_error(lesson)
    assert tiny_lessons.scored_error(method, params, lesson) < 0.4 * blind
