"""UcDGAN: its target by name, its codes and its classes; and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lessons

from ummcsgm.baselines import ucdgan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")


def method_of(modalities=2):
    return ucdgan.make_ucdgan(modalities, width=0.125, scale=0.4, axis=None)


def test_codes_are_unlike_by_their_angle():
    one = jnp.array([3.0, 0, 0, 0]).reshape(1, 2, 2, 1) * jnp.ones((4, 1, 1, 1))
    other = jnp.array([[5.0, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [1, 1, 0, 0]])
    found = ucdgan.unlike(one, other.reshape(4, 2, 2, 1))
    np.testing.assert_allclose(found, [0, 1, 2, 1 - 0.5**0.5], atol=1e-6)


def test_the_class_is_learnt_by_cross_entropy():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    found = ucdgan.wrong_class(scores, jnp.array([0, 2]))
    np.testing.assert_allclose(found, [-np.log(0.5), -np.log(0.7)], rtol=1e-6)


def test_the_named_target_is_what_is_drawn():
    """From one code: another target is another image, by a tenth of its contrast, even
    where no border tells (an instance norm would subtract the name)."""
    generator = ucdgan.Generator((8, 16, 32), (48, 48))
    code = jax.random.normal(jax.random.key(0), (1, 12, 12, 32))
    names = jnp.eye(3)[:2]
    own = generator.init(jax.random.key(1), code, names[:1])
    one, other = (generator.apply(own, code, names[place : place + 1]) for place in (0, 1))
    inner = (slice(None), slice(16, 32), slice(16, 32))
    assert np.abs(one - other)[inner].mean() > 0.1 * one[inner].std()


class Constant:
    """In place of a network: made of what it is given by `rule`, and remembers."""

    def __init__(self, rule):
        self.rule, self.given = rule, []

    def apply(self, own, *given):
        self.given.append(given)
        return self.rule(*given)

    def clone(self, size):
        return self


def test_codes_are_averaged_the_target_is_scored_and_the_source_is_given_back():
    """A code is the image, and what is drawn of it is ten times its target more."""

    def draw(code, named):
        return code + 10 * (named @ jnp.arange(3.0))[:, None, None, None]

    encoder, generator = Constant(lambda image: image), Constant(draw)
    scores = jnp.zeros((4, 3))
    judge = Constant(lambda image: (0.1 * image, scores))
    networks = ucdgan.Networks(encoder, generator, judge, 3)
    missing = np.tile([False, False, True], (4, 1))
    lesson = tiny_lessons.lesson(3, (2, 2), missing)
    in_unit = (jnp.array([2.0, 4.0, 6.0]) + 1) / 2  # 2, 4 and 6 in [-1, 1]
    images = jnp.broadcast_to(in_unit, lesson.images.shape)
    params = {"generator": {"encoder": {}, "generator": {}}, "discriminator": {}}
    lesson = lesson._replace(images=images)
    found = ucdgan._losses(networks, jax.random.split(jax.random.key(0), 4), params, lesson)
    # Of 2 and 4, their mean and 10 times 2: 23, where it should be 6.
    np.testing.assert_allclose(found.told["l1"], 23 - 6, rtol=1e-6)
    # Back to 0 it is 23 again and should be 2; back to 1 it is 33 and should be 4.
    named = generator.given[1][1].argmax(axis=1)
    back = np.where(named == 0, 23 - 2, 33 - 4)
    assert set(named.tolist()) == {0, 1}
    np.testing.assert_allclose(found.told["cycle"], back, rtol=1e-6)
    fooled, classes = (2.3 - 1) ** 2, np.log(3)
    weights = 10 * 17 + back + 0.25 * (fooled + classes)
    np.testing.assert_allclose(found.generator, weights, rtol=1e-5)
    judged = 0.25 * ((0.6 - 1) ** 2 + 2.3**2 + 2 * classes)
    np.testing.assert_allclose(found.discriminator, judged, rtol=1e-5)
    answer = ucdgan._complete(networks, params, mask_inputs(images, lesson.missing))
    np.testing.assert_allclose(answer[..., 2], (23 + 1) / 2, rtol=1e-6)


def test_it_learns_four_slices_by_heart_and_tells_modalities_apart():
    """At ten times our rate, the discriminator's being the generator's: to 0.30 of
    what a blind guess errs."""
    method = dataclasses.replace(method_of(), rates=(1e-4, 1e-4))
    lesson = tiny_lessons.lesson(2)
    params, _ = tiny_lessons.learn(method, lesson, steps=100, rate=10)
    blind = tiny_lessons.blind_error(lesson)
    assert tiny_lessons.scored_error(method, params, lesson) < 0.4 * blind
    judge = ucdgan.Judge((8, 16, 32, 64), 2)
    own, images = {"params": params["discriminator"]}, 2 * lesson.images - 1
    # What the discriminator was shown as real: two rows of either.
    place = jnp.argmax(lesson.scored, axis=1)
    shown = jnp.take_along_axis(images, place[:, None, None, None], axis=-1)
    _, scores = judge.apply(own, shown)
    assert (ucdgan.wrong_class(scores, place) < 0.75 * np.log(2)).all()
