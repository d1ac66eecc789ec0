"""MM-SYN: its latents and its losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines import mm_syn

pytestmark = pytest.mark.usefixtures("quick_compile")
AVAILABLE = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0]], bool)


def constant_latents(*values):
    return [np.full((4, 2, 2, 3), value, np.float32) for value in values]


def test_the_variance_is_over_the_available_latents():
    # Of 1, 4 and 7: about 2.5 for the first two, about 4 for all.
    variance = mm_syn.latent_variance(constant_latents(1.0, 4.0, 7.0), AVAILABLE)
    np.testing.assert_allclose(variance, [2.25, 6.0, 0, 0])


def test_the_fused_latent_is_the_maximum_of_the_available_ones():
    """A missing modality's latent is decoded alone and is in no fusion."""
    generator = mm_syn.Generator((4, 8, 16), 4)
    images = jnp.asarray(tiny_gan_batch.make_images(3, (8, 8)))
    variables = jax.jit(generator.init, static_argnums=3)(
        jax.random.key(0), images, AVAILABLE, True
    )
    apply = jax.jit(generator.apply, static_argnums=3)
    decoded, latents = apply(variables, images, AVAILABLE, True)
    decode = jax.jit(mm_syn.Decoder(4).apply)
    params = {"params": variables["params"]["decoder2"]}
    fused = decode(params, jnp.maximum(latents[0], latents[1]))[..., 0]
    np.testing.assert_allclose(decoded[0, 0, ..., 2], fused[0], atol=1e-5)
    alone = decode(params, latents[1])[..., 0]
    np.testing.assert_allclose(decoded[2, ..., 2], alone, atol=1e-5)
    # With one available, the fused latent is that one.
    np.testing.assert_allclose(decoded[0, 2], decoded[2, 2], atol=1e-5)
    assert np.abs(decoded[0, 0] - decoded[2, 0]).max() > 1e-3


class KnownGenerator:
    """Decodes the fused latent to 0, and the modalities' to 1, 2 and 3."""

    def apply(self, variables, images, available, single_latents):
        decoded = [jnp.full_like(images, value) for value in (0.0, 1.0, 2.0, 3.0)]
        return jnp.stack(decoded), constant_latents(1.0, 4.0, 7.0)


def test_every_output_with_a_known_truth_is_trained_from_every_available_latent():
    """Truths are 10, 20 and 30 times the scale. 0 and 1 are available; 2 is scored in
    example 0 and was never scanned in example 1, which is padding."""
    missing = np.tile([False, False, True], (4, 1))
    scored = missing.copy()
    scored[1] = False
    scored[2] = missing[2] = [True, False, False]
    batch = tiny_gan_batch.make_batch(3, (2, 2), missing, scored, [5.0, 10.0, 15.0])
    method = mm_syn.MMSYN(3, 0.5, KnownGenerator())
    losses = jax.jit(method.losses)(jax.random.key(0), {"generator": {}}, batch)
    fused, first, second, third = (60 - 3 * latent for latent in range(4))
    metrics = losses.metrics
    np.testing.assert_allclose(metrics["fused"], [fused, 0, fused, fused])
    single = first + second
    np.testing.assert_allclose(metrics["single"], [single, 0, second + third, single])
    np.testing.assert_allclose(metrics["variance"], [2.25, 0, 2.25, 2.25])
    np.testing.assert_allclose(metrics["l1"], [30, 0, 10, 30])
    np.testing.assert_allclose(losses.generator[0], fused + single + 2.25)
