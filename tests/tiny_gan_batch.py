"""Four small slices for the published methods: a batch, its errors, a training run.

The slices are discs of smooth tissue. Every modality is its own function of three smooth
maps, so that no modality follows from another voxel by voxel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm.baselines.method import GANBatch
from ummcsgm.diffusion.missingness import mask_inputs

EXAMPLES = 4


def make_images(modalities=4, grid=(16, 16), seed=0):
    """[EXAMPLES, H, W, M], 0 outside a disc and about 1/2 inside."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grid), indexing="ij")
    inside = (y**2 + x**2 < 0.9)[None, ..., None]
    phase = rng.uniform(0, 2 * np.pi, (3, EXAMPLES, 1, 1))
    slope = rng.uniform(-3, 3, (2, 3, EXAMPLES, 1, 1))
    maps = np.sin(phase + slope[0] * y + slope[1] * x)
    weights = rng.normal(size=(3, modalities))
    mixed = np.tanh(np.einsum("kbhw,km->bhwm", maps, weights))
    return np.where(inside, 0.55 + 0.35 * mixed, 0).astype(np.float32)


def make_batch(modalities=4, grid=(16, 16), missing=None, scored=None, images=None):
    """A batch; by default example b lacks modality b (modulo M) and is scored there.

    `missing` and `scored` [M] are repeated for every example; `images` [M] constants.
    """
    truth = make_images(modalities, grid)
    if images is not None:
        truth = np.broadcast_to(np.asarray(images, np.float32), truth.shape)
    if missing is None:
        missing = np.eye(modalities, dtype=bool)[np.arange(EXAMPLES) % modalities]
    missing = np.broadcast_to(np.asarray(missing, bool), (EXAMPLES, modalities))
    scored = missing if scored is None else np.broadcast_to(scored, missing.shape).astype(bool)
    lesion = np.zeros(truth.shape[:3], bool)
    return GANBatch(*map(jnp.asarray, (truth, missing, scored, lesion)))


def init(method, grid=(16, 16)):
    """The method's parameters before the first step."""
    return jax.jit(method.init, static_argnums=1)(jax.random.key(0), grid)


def relative_error(method, params, batch):
    """The mean absolute error of the scored channels as `complete` predicts them, over
    the least that one image for all examples, or one number a modality, would give."""
    condition = mask_inputs(batch.images, batch.missing)
    completed = np.asarray(jax.jit(method.complete)(params, condition))
    truth, scored = np.asarray(batch.images), np.asarray(batch.scored)

    def error(prediction):
        return np.abs(truth - prediction).transpose(0, 3, 1, 2)[scored].mean()

    constant = min(error(truth.mean(axis=0)), error(np.median(truth, axis=(0, 1, 2))))
    return error(completed) / constant


def train(method, batch, *, steps, rate):
    """The parameters after `steps` of Adam on one batch at `rate` times the published
    learning rates; a pair is for (generator, discriminator)."""
    rates = np.multiply(rate, method.learning_rates).tolist()
    adams = [optax.adam(rate, *method.betas) for rate in rates]
    transforms = dict(zip(("generator", "discriminator"), adams, strict=True))
    transforms["statistics"] = optax.set_to_zero()
    optimizer = optax.multi_transform(transforms, {name: name for name in transforms})

    def step(state, key):
        params, moments = state

        def total(params):
            losses = method.losses(jax.random.split(key, EXAMPLES), params, batch)
            return losses.generator.mean() + losses.discriminator.mean(), losses.statistics

        grads, statistics = jax.grad(total, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        params = {**optax.apply_updates(params, updates), "statistics": statistics}
        return params, moments

    # A loop outside the program: within one, XLA's convolutions are slow on a CPU.
    compiled = jax.jit(step, donate_argnums=0)
    params = init(method, batch.images.shape[1:3])
    state = (params, optimizer.init(params))
    for key in jax.random.split(jax.random.key(1), steps):
        state = compiled(state, key)
    return state[0]
