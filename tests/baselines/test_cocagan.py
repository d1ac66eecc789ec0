"""CocaGAN: its lesions, its common space and its inputs by hand; and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lessons

from ummcsgm.baselines import cocagan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")


def method_of(modalities=2, inputs=None):
    return cocagan.make_cocagan(modalities, width=0.125, scale=0.4, axis=None, inputs=inputs)


def test_an_error_inside_the_lesion_counts_five_times():
    missing = np.tile([False, True], (4, 1))
    lesson = tiny_lessons.lesson(2, (4, 4), missing)
    lesion = np.zeros((4, 4, 4), bool)
    lesion[0, :2] = lesion[1, 1, 2] = True  # a half of row 0, one voxel of row 1
    truth = jnp.zeros_like(lesson.images)
    drawn = truth.at[..., 1].set(0.5).at[..., 0].set(7.0)
    lesson = lesson._replace(lesion=jnp.asarray(lesion))
    found = cocagan.aware_error(drawn, lesson, truth)
    np.testing.assert_allclose(found, [0.5 * 3, 0.5 * (15 + 5) / 16, 0.5, 0.5])


def test_what_is_used_is_all_or_the_one_where_it_is_available():
    missing = jnp.array([[False, False, True], [True, False, False]])
    used = cocagan.used_of(missing, None)
    assert used.tolist() == [[True, True, False], [False, True, True]]
    used = cocagan.used_of(missing, 0)
    assert used.tolist() == [[True, False, False], [False, True, True]]


def test_with_one_input_the_answer_is_of_it_alone():
    method, images = method_of(3, inputs=1), tiny_lessons.images(3)
    params = tiny_lessons.start(method)
    missing = jnp.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]], bool)
    complete = jax.jit(method.complete)
    answer = complete(params, mask_inputs(images, missing))
    images[..., [0, 2]] *= -2.0
    changed = complete(params, mask_inputs(images, missing))
    moved = np.abs(changed - answer).max(axis=(1, 2))[np.asarray(missing)]
    # Rows 0 and 1 have it, rows 2 and 3 (two of its modalities) have not.
    assert (moved[:2] == 0).all()
    assert (moved[2:] > 1e-4).all()


def test_the_guess_is_to_be_even_for_one_and_right_for_the_other():
    chance = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.1, 0.1, 0.8]])
    scores = jnp.log(jnp.asarray(chance))[None] * jnp.ones((3, 1, 1))
    available = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    uneven, wrong = cocagan.guess_losses(scores, available)
    even = -np.log(chance).mean(axis=1) - np.log(3)
    own = -np.log([0.5, 1 / 3, 0.8])
    np.testing.assert_allclose(uneven, [even.mean(), even[0], 0], atol=1e-6)
    np.testing.assert_allclose(wrong, [own.mean(), own[0], 0], atol=1e-6)
    assert abs(even[1]) < 1e-12


class Known:
    """In place of a network: what `answer` makes of the images that it is given."""

    def __init__(self, answer):
        self.answer = answer

    def apply(self, own, images, *flags):
        return self.answer(images)


def test_the_parts_of_the_loss_have_our_weights():
    """In [-1, 1]: 0 is seen and 0.8, 1 is scored and 0.9, 2 was never scanned."""
    generator = Known(lambda images: (jnp.full_like(images, 0.5), [images] * 3))
    judge = Known(lambda images: images.mean(axis=-1, keepdims=True))
    chance = jnp.array([0.5, 0.25, 0.25])
    guesser = Known(lambda features: jnp.log(chance) * jnp.ones((len(features), 1)))
    missing, scored = (
        np.tile(flags, (4, 1)) for flags in ([False, True, True], [False, True, False])
    )
    lesson = tiny_lessons.lesson(3, (4, 4), missing, scored)
    images = jnp.broadcast_to((jnp.array([0.8, 0.9, 9]) + 1) / 2, (4, 4, 4, 3))
    params = {"generator": {}, "discriminator": {"images": {}, "features": {}}}
    found = cocagan._losses(
        (generator, judge, guesser), None, jax.random.key(0), params, lesson._replace(images=images)
    )
    fake, real = (0.8 + 0.5) / 3, (0.8 + 0.9) / 3
    uneven = -np.log(np.asarray(chance)).mean() - np.log(3)
    parts = 10 * 0.4 + 0.25 * (fake - 1) ** 2 + 0.25 * uneven
    np.testing.assert_allclose(found.generator, parts, rtol=1e-5)
    judged = 0.5 * ((real - 1) ** 2 + fake**2) - 0.25 * np.log(0.5)
    np.testing.assert_allclose(found.discriminator, judged, rtol=1e-5)


def test_it_learns_four_slices_by_heart():
    """At ten times our rate: to 0.25 of what a blind guess errs."""
    lesson, method = tiny_lessons.lesson(2), method_of()
    params, _ = tiny_lessons.learn(method, lesson, steps=100, rate=10)
    blind = tiny_lessons.blind_error(lesson)
    assert tiny_lessons.scored_error(method, params, lesson) < 0.4 * blind
