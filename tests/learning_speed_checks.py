"""Images of a known law, and what R_k(tau) of a denoiser that knows the law has to be.

`test_preconditioning_benchmark` asserts that it is, `planted_bugs` that a mistake breaks it.
"""

from types import SimpleNamespace
from unittest.mock import patch

import jax.numpy as jnp
import numpy as np

from ummcsgm.benchmarks import preconditioning
from ummcsgm.diffusion.preconditioning import Posterior
from ummcsgm.diffusion.sde import VP
from ummcsgm.types import Estimate

SLICES, SIDE = 600, 16
BLOCK = 8
COARSE = np.array([1.0, 3.0])  # std of z, 8 times a block's mean, of each modality
FINE = np.array([0.05, 0.2])  # std of a voxel about its block's mean
MODEL = SimpleNamespace(
    network=SimpleNamespace(modalities=2), sde=VP(0.1, 20.0), preconditioning="edm"
)


def images():
    """[SLICES, SIDE, SIDE, 2] of mean 0."""
    rng = np.random.default_rng(0)
    count = SIDE // BLOCK
    z = COARSE * rng.normal(size=(SLICES, count, 1, count, 1, 2))
    fine = rng.normal(size=(SLICES, count, BLOCK, count, BLOCK, 2))
    fine = FINE * (fine - fine.mean(axis=(2, 4), keepdims=True))
    return (z / BLOCK + fine).reshape(SLICES, SIDE, SIDE, 2).astype(np.float32)


class Slices:
    """A store of `images`; the first slice has no second modality."""

    def __init__(self):
        self.images = images()
        self.present = np.ones((SLICES, 2), bool)
        self.present[0, 1] = False
        self.images[0, ..., 1] = 0

    def __len__(self):
        return SLICES

    def read(self, indices):
        return self.images[indices], self.present[indices]


def knows_the_law(model, params, condition):
    """The posterior of `images` as far as their blocks' means have it: the best of them."""

    def moments():
        return Estimate(condition.fill(jnp.zeros_like(condition.seen)), None)

    def estimate(x, t):
        level = model.sde.noise_level(t)[:, None, None, None, None, None]
        b, count = len(x), SIDE // BLOCK
        clean_scale = x / model.sde.mean(t)[:, None, None, None]
        blocks = clean_scale.reshape(b, count, BLOCK, count, BLOCK, 2)
        means = blocks.mean(axis=(2, 4), keepdims=True)
        gain = COARSE**2 / (COARSE**2 + level**2)
        denoised = jnp.broadcast_to(gain * means, blocks.shape).reshape(x.shape)
        return Estimate(condition.fill(denoised), None)

    return Posterior(estimate, moments)


def sees_nothing(model, params, condition):
    """The same mean, whatever the noisy images are."""
    moments = knows_the_law(model, params, condition).moments
    return Posterior(lambda x, t: moments(), moments)


def measured(posterior):
    """[2, LEVELS, BLOCKS, 3] the sums of the benchmark, and the questions."""
    questions = preconditioning.make_questions(Slices(), 2, SLICES)
    with (
        patch.object(preconditioning, "make_posterior", posterior),
        patch.object(preconditioning, "MICROBATCH", 1000),  # few programs' calls
    ):
        return preconditioning.make_evaluate(MODEL, questions)({}), questions


def assert_ratios_of_a_known_law():
    """R_8 is tau^2 / (S^2 + tau^2); at k = 1 the voxels' own variance, which is not denoised, is
    added above and below. The reference is computed from the images."""
    sums, questions = measured(knows_the_law)
    levels = np.array(preconditioning.LEVELS)[:, None]
    coarse = COARSE**2 / BLOCK**2
    fine = FINE**2 * (1 - 1 / BLOCK**2)
    left = levels**2 / (COARSE**2 + levels**2)
    expected = np.stack([(left * coarse + fine) / (coarse + fine), left], axis=-1)
    ratios = np.swapaxes(sums[..., 0] / sums[..., 1], 0, 1)  # [LEVELS, 2, BLOCKS]
    assert np.all(np.abs(ratios / expected - 1) < 0.1), ratios / expected
    store = Slices()
    blocks = store.images.reshape(SLICES, 2, BLOCK, 2, BLOCK, 2).astype(float)
    z = BLOCK * blocks.mean(axis=(2, 4)).reshape(-1, 2)
    for number, tau in enumerate(preconditioning.LEVELS):
        reference = np.sum(z**2 * tau**2 / (z**2 + tau**2), axis=0) / np.sum(z**2, axis=0)
        found = sums[:, number, 1, 2] / sums[:, number, 1, 1]
        assert np.allclose(found, reference, rtol=1e-3), (found, reference)
