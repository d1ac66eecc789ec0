"""How large a noise level must be before it hides what b does not fix: by missing pattern.

A sampler may start from the mean, and training need not go higher, where the noise level is large
against every deviation of the images from their mean. Voxels vary together, so the largest
deviation is not a voxel's: see `diffusion.bands.largest_deviation`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.data.store import Store
from ummcsgm.diffusion.bands import largest_deviation
from ummcsgm.diffusion.missingness import mask_inputs, missing_patterns
from ummcsgm.diffusion.preconditioning import ScoreModel, make_posterior
from ummcsgm.types import Array, Missing, Params, Stacks

SLICES = 24  # of a store, evenly apart


def measure_posterior_scales(
    model: ScoreModel, modalities: tuple[str, ...], store: Store, params: Params
) -> dict[str, dict[str, float]]:
    """{"posterior_scales": by missing pattern, its modalities joined by "+"}.

    The root of the mean over slices of the square of the largest deviation over a block, of the
    modality of the pattern where it is largest; in units of the network's images. Patterns of which
    no slice of the store has a truth are left out.
    """
    indices = np.unique(np.linspace(0, len(store) - 1, SLICES).astype(int))
    images, present = store.read(indices)
    count = len(modalities) * (images.shape[-1] // len(modalities))  # without labels
    images = jnp.asarray(images[..., :count], jnp.float32)
    scales = {}
    for pattern in missing_patterns(len(modalities), proper=False):
        whole = ~(pattern & ~present).any(axis=1)
        if whole.any():
            squares = _deviations(model, params, images, jnp.asarray(pattern | ~present))
            largest = np.asarray(squares)[whole].mean(axis=0)[pattern].max()
            name = "+".join(np.array(modalities)[pattern])
            scales[name] = float(np.sqrt(largest))
    return {"posterior_scales": scales}


@functools.partial(jax.jit, static_argnums=0)
def _deviations(model: ScoreModel, params: Params, images: Stacks, missing: Missing) -> Array:
    """[B, M] `largest_deviation` of the images from their mean."""
    mean = make_posterior(model, params, mask_inputs(images, missing)).moments().mean
    residual = images[..., : missing.shape[-1]] - mean
    return largest_deviation(jnp.where(missing[:, None, None], residual, 0))
