"""A joint Gaussian over four modalities whose every posterior is known.

Its voxels are independent of one another, so one batch of images holds many draws. The
posterior of a given b is N(posterior mean, variance), variance zero on the seen.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.diffusion.missingness import mask_inputs, missing_patterns
from ummcsgm.diffusion.sde import SDE, VE, VP, Cosine, SubVP

SDES = {
    "vp": VP(0.1, 20.0),
    "subvp": SubVP(0.1, 20.0),
    "ve": VE(0.01, 50.0),
    "cosine": Cosine(318.0),
}
each_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
# VP by default, the other SDEs among the slow tests.
each_sde_slowly = pytest.mark.parametrize(
    "sde",
    [pytest.param(sde, id=n, marks=[pytest.mark.slow] * (n != "vp")) for n, sde in SDES.items()],
)
PATTERNS = missing_patterns(4, proper=False)
MEAN = np.array([0.5, -0.3, 0.8, 0.1])
_ROOT = np.array(
    [[0.9, 0.0, 0.0, 0.0], [0.5, 0.7, 0, 0], [-0.4, 0.3, 0.6, 0], [0.2, -0.5, 0.4, 0.8]]
)
COVARIANCE = _ROOT @ _ROOT.T


def draw_images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """[*shape, 4] independent draws of the joint Gaussian."""
    return MEAN + rng.normal(size=(*shape, 4)) @ _ROOT.T


def posterior(images: np.ndarray, missing: np.ndarray) -> tuple:
    """(mean [B, H, W, M], variance [B, M, M]) of a given b, and (b, 0) where seen."""
    mean, variance = np.array(images, np.float64), np.zeros((len(missing), 4, 4))
    for row, absent in enumerate(missing):
        seen = ~absent
        gain = COVARIANCE[np.ix_(absent, seen)] @ np.linalg.inv(COVARIANCE[np.ix_(seen, seen)])
        residual = images[row][..., seen] - MEAN[seen]
        mean[row][..., absent] = MEAN[absent] + residual @ gain.T
        variance[row][np.ix_(absent, absent)] = (
            COVARIANCE[np.ix_(absent, absent)] - gain @ COVARIANCE[np.ix_(seen, absent)]
        )
    return mean, variance


def make_gaussian_denoise(sde: SDE, mean: np.ndarray, variance: np.ndarray):
    """denoise(x, t) = m + V (V + tau^2)^-1 (x / alpha - m), which is b where seen."""
    eigenvalues, vectors = np.linalg.eigh(variance)
    eigenvalues = np.where(eigenvalues > 1e-9, eigenvalues, 0)

    def denoise(x, t):
        level = sde.noise_level(t)[:, None]
        shrink = jnp.asarray(eigenvalues, x.dtype)
        shrink = shrink / (shrink + jnp.square(level))
        basis, centre = jnp.asarray(vectors, x.dtype), jnp.asarray(mean, x.dtype)
        gain = jnp.einsum("bij,bj,bkj->bik", basis, shrink, basis)
        clean_scale = x / sde.mean(t)[:, None, None, None]
        return centre + jnp.einsum("bhwi,bij->bhwj", clean_scale - centre, gain)

    return denoise


def all_patterns(seed: int, shape: tuple[int, int]) -> tuple:
    """(images, condition, posterior mean, variance): all 15 missing patterns, one a row."""
    images = draw_images(np.random.default_rng(seed), (len(PATTERNS), *shape))
    condition = mask_inputs(jnp.asarray(images, jnp.float32), jnp.asarray(PATTERNS))
    return images, condition, *posterior(images, PATTERNS)
