"""Four slices to learn by heart, and how well a method does: for the tests of each.

The slices are discs of smooth tissue, every modality its own function of three smooth
maps, so that one cannot be had from another without the shape of things.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm.baselines.method import GANBatch
from ummcsgm.diffusion.missingness import mask_inputs

ROWS = 4


def images(modalities=4, grid=(16, 16), seed=0):
    """[ROWS, H, W, M], 0 outside a disc and about 1/2 inside."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in grid), indexing="ij")
    inside = (rows**2 + columns**2 < 0.9)[None, ..., None]
    phase = rng.uniform(0, 2 * np.pi, (3, ROWS, 1, 1))
    slope = rng.uniform(-3, 3, (2, 3, ROWS, 1, 1))
    maps = np.sin(phase + slope[0] * rows + slope[1] * columns)
    weights = rng.normal(size=(3, modalities))
    mixed = np.tanh(np.einsum("kbhw,km->bhwm", maps, weights))
    return np.where(inside, 0.55 + 0.35 * mixed, 0).astype(np.float32)


def lesson(modalities=4, grid=(16, 16), missing=None, scored=None, seed=0):
    """One lesson; each row lacks one modality, in turn, and is scored there."""
    truth = images(modalities, grid, seed)
    if missing is None:
        missing = np.eye(modalities, dtype=bool)[np.arange(ROWS) % modalities]
    scored = missing if scored is None else scored
    lesion = np.zeros(truth.shape[:3], bool)
    return GANBatch(*map(jnp.asarray, (truth, missing, scored, lesion)))


def start(method, grid=(16, 16), seed=0):
    """The method's parameters before the first step."""
    return jax.jit(method.init, static_argnums=1)(jax.random.key(seed), grid)


def scored_error(method, params, taught):
    """The mean absolute error of the scored channels, as `complete` answers them."""
    question = mask_inputs(taught.images, taught.missing)
    answer = np.asarray(jax.jit(method.complete)(params, question))
    wrong = np.abs(answer - taught.images).transpose(0, 3, 1, 2)
    return wrong[np.asarray(taught.scored)].mean()


def blind_error(taught):
    """The least that one image for all rows, or one number a modality, would give."""
    truth, scored = np.asarray(taught.images), np.asarray(taught.scored)

    def error(guess):
        return np.abs(truth - guess).transpose(0, 3, 1, 2)[scored].mean()

    mean_image = truth.mean(axis=0)
    median = np.median(truth, axis=(0, 1, 2))
    return min(error(mean_image), error(median))


def learn(method, taught, *, steps, rate):
    """(params, the losses told at the last step) after `steps` of Adam on one lesson,
    both nets at `rate` times the published rate."""
    faster = [optax.adam(rate * each, *method.betas) for each in method.rates]
    which = {"generator": "g", "discriminator": "d", "statistics": "none"}
    adam = optax.multi_transform(
        {"g": faster[0], "d": faster[1], "none": optax.set_to_zero()}, which
    )

    def step(state, key):
        params, moments = state

        def total(params):
            keys = jax.random.split(key, ROWS)
            found = method.losses(keys, params, taught)
            return found.generator.mean() + found.discriminator.mean(), found

        grads, found = jax.grad(total, has_aux=True)(params)
        updates, moments = adam.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        params["statistics"] = found.statistics
        return (params, moments), {k: v.mean() for k, v in found.told.items()}

    # A loop outside the program: within one, XLA's convolutions are slow on a CPU.
    compiled = jax.jit(step, donate_argnums=0)
    params = start(method, taught.images.shape[1:3])
    state = (params, adam.init(params))
    for key in jax.random.split(jax.random.key(1), steps):
        state, told = compiled(state, key)
    return state[0], told
