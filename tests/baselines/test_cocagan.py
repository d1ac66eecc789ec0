"""CocaGAN: its lesion weights, its common space and its inputs by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines import cocagan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_an_error_inside_the_lesion_counts_five_times():
    batch = tiny_gan_batch.make_batch(2, (4, 4), [False, True])
    lesion = np.zeros((4, 4, 4), bool)
    lesion[0, :2] = lesion[1, 1, 2] = True  # half of example 0, one voxel of example 1
    truth = jnp.zeros_like(batch.images)
    generated = truth.at[..., 1].set(0.5).at[..., 0].set(7.0)
    batch = batch._replace(lesion=jnp.asarray(lesion))
    error = jax.jit(cocagan.lesion_weighted_error)(generated, batch, truth)
    np.testing.assert_allclose(error, [0.5 * 3, 0.5 * (15 + 5) / 16, 0.5, 0.5])


def test_the_inputs_are_all_available_modalities_or_the_chosen_one_where_it_is_available():
    missing = jnp.array([[False, False, True], [True, False, False]])
    inputs = cocagan.select_inputs(missing, None)
    assert inputs.tolist() == [[True, True, False], [False, True, True]]
    inputs = cocagan.select_inputs(missing, 0)
    assert inputs.tolist() == [[True, False, False], [False, True, True]]


class KnownNetwork:
    """Returns answer(images)."""

    def __init__(self, answer):
        self.answer = answer

    def apply(self, variables, images, *flags):
        return self.answer(images)


def test_a_chosen_input_is_the_only_one_where_it_is_available():
    """A generator whose output is the number of modalities that it uses."""
    generator = KnownNetwork(None)
    generator.apply = lambda variables, images, used: (
        jnp.broadcast_to(used.sum(axis=1)[:, None, None, None], images.shape) * 2.0 - 1,
        None,
    )
    missing = jnp.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    condition = mask_inputs(jnp.asarray(tiny_gan_batch.make_images(3)), missing)
    for input_modality, counts in ((None, [2, 2, 1, 2]), (1, [1, 2, 1, 1])):
        method = cocagan.CocaGAN(3, input_modality, generator, None, None)
        completed = np.asarray(jax.jit(method.complete)({"generator": {}}, condition))
        for example, count in enumerate(counts):
            assert (completed[example][..., np.asarray(missing)[example]] == count).all()


def test_encoders_learn_even_and_the_classifier_correct_probabilities():
    guesses = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.1, 0.1, 0.8]])
    scores = jnp.log(jnp.asarray(guesses))[None] * jnp.ones((3, 1, 1))
    available = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    uneven, wrong = jax.jit(cocagan.classifier_losses)(scores, available)
    by_hand = -np.log(guesses).mean(axis=1) - np.log(3)
    right = -np.log([0.5, 1 / 3, 0.8])
    np.testing.assert_allclose(uneven, [by_hand.mean(), by_hand[0], 0], atol=1e-6)
    np.testing.assert_allclose(wrong, [right.mean(), right[0], 0], atol=1e-6)
    assert abs(by_hand[1]) < 1e-12


def test_the_parts_of_the_loss_have_our_weights():
    """In [-1, 1]: 0 is seen and 0.8, 1 is scored and 0.9, 2 was never scanned."""
    guess = jnp.array([0.5, 0.25, 0.25])
    method = cocagan.CocaGAN(
        3,
        None,
        generator=KnownNetwork(lambda images: (jnp.full_like(images, 0.5), [images] * 3)),
        discriminator=KnownNetwork(lambda images: (images.mean(axis=-1, keepdims=True), None)),
        classifier=KnownNetwork(lambda features: (None, jnp.log(guess) * jnp.ones((12, 1)))),
    )
    images = (np.array([0.8, 0.9, 9]) + 1) / 2
    batch = tiny_gan_batch.make_batch(3, (4, 4), [0, 1, 1], [0, 1, 0], images)
    params = {"generator": {}, "discriminator": {"images": {}, "features": {}}}
    losses = jax.jit(method.losses)(jax.random.key(0), params, batch)
    fake, real = (0.8 + 0.5) / 3, (0.8 + 0.9) / 3
    uneven = -np.log(np.asarray(guess)).mean() - np.log(3)
    parts = 10 * 0.4 + 0.25 * (fake - 1) ** 2 + 0.25 * uneven
    np.testing.assert_allclose(losses.generator, parts, rtol=1e-5)
    discriminator = 0.5 * ((real - 1) ** 2 + fake**2) - 0.25 * np.log(0.5)
    np.testing.assert_allclose(losses.discriminator, discriminator, rtol=1e-5)
