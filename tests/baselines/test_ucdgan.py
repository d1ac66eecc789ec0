"""UcDGAN: its one-hot target, its codes and its classes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines import ucdgan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_codes_are_compared_by_their_angle():
    code = jnp.array([3.0, 0, 0, 0]).reshape(1, 2, 2, 1) * jnp.ones((4, 1, 1, 1))
    other = jnp.array([[5.0, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [1, 1, 0, 0]])
    distance = ucdgan.cosine_distance(code, other.reshape(4, 2, 2, 1))
    np.testing.assert_allclose(distance, [0, 1, 2, 1 - 0.5**0.5], atol=1e-6)


def test_the_class_loss_is_the_cross_entropy():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    loss = ucdgan.cross_entropy(scores, jnp.array([0, 2]))
    np.testing.assert_allclose(loss, [-np.log(0.5), -np.log(0.7)], rtol=1e-6)


def test_a_chosen_channel_is_any_of_the_flagged():
    flags = jnp.array([[False, True, True, False]] * 4000 + [[False] * 4])
    index = np.asarray(ucdgan.choose_channel(jax.random.split(jax.random.key(0), 4001), flags))
    assert set(index[:-1].tolist()) == {1, 2}
    assert abs((index[:-1] == 1).mean() - 0.5) < 0.03  # 4 standard errors
    assert index[-1] == 0


def test_the_named_target_is_what_is_generated():
    """From one code: another target gives another image, by a tenth of its contrast, even
    far from the border (an instance norm would subtract the name)."""
    generator = ucdgan.Generator((8, 16, 32))
    code = jax.random.normal(jax.random.key(0), (1, 12, 12, 32))
    names, size = jnp.eye(3)[:2], (48, 48)
    params = jax.jit(generator.init, static_argnums=3)(jax.random.key(1), code, names[:1], size)
    apply = jax.jit(generator.apply, static_argnums=3)
    first, second = (apply(params, code, name[None], size) for name in names)
    inner = (slice(None), slice(16, 32), slice(16, 32))
    assert np.abs(first - second)[inner].mean() > 0.1 * first[inner].std()


class KnownNetwork:
    """Returns rule(*inputs), and remembers the inputs."""

    def __init__(self, rule):
        self.rule, self.inputs = rule, []

    def apply(self, variables, *inputs):
        self.inputs.append(inputs)
        return self.rule(*inputs)


def test_codes_are_averaged_the_target_is_scored_and_the_source_is_reconstructed():
    """A code is the image; generating adds ten times the index of the target."""

    def generate(code, target, size):
        return code + 10 * (target @ jnp.arange(3.0))[:, None, None, None]

    generator, scores = KnownNetwork(generate), jnp.zeros((4, 3))
    method = ucdgan.UcDGAN(
        3,
        encoder=KnownNetwork(lambda image: image),
        generator=generator,
        discriminator=KnownNetwork(lambda image: (0.1 * image, scores)),
    )
    images = (np.array([2.0, 4.0, 6.0]) + 1) / 2  # 2, 4 and 6 in [-1, 1]
    batch = tiny_gan_batch.make_batch(3, (2, 2), [False, False, True], images=images)
    params = {"generator": {"encoder": {}, "generator": {}}, "discriminator": {}}

    @jax.jit
    def run(keys, batch):
        losses = method.losses(keys, params, batch)
        return losses, generator.inputs[1][1].argmax(axis=1)

    losses, source = run(jax.random.split(jax.random.key(0), 4), batch)
    # The mean of 2 and 4, and 10 times 2: 23, where it should be 6.
    np.testing.assert_allclose(losses.metrics["l1"], 23 - 6, rtol=1e-6)
    # Back to 0 it is 23 again and should be 2; back to 1 it is 33 and should be 4.
    back = np.where(source == 0, 23 - 2, 33 - 4)
    assert set(source.tolist()) == {0, 1}
    np.testing.assert_allclose(losses.metrics["cycle"], back, rtol=1e-6)
    adversarial, classes = (2.3 - 1) ** 2, np.log(3)
    total = 10 * 17 + back + 0.25 * (adversarial + classes)
    np.testing.assert_allclose(losses.generator, total, rtol=1e-5)
    discriminator = 0.25 * ((0.6 - 1) ** 2 + 2.3**2 + 2 * classes)
    np.testing.assert_allclose(losses.discriminator, discriminator, rtol=1e-5)
    completed = jax.jit(method.complete)(params, mask_inputs(batch.images, batch.missing))
    np.testing.assert_allclose(completed[..., 2], (23 + 1) / 2, rtol=1e-6)
