"""Training of the five published methods: a generator and a discriminator.

Both are updated at once, from the same outputs. The gradient of the generator's loss
stops at the discriminator and vice versa, so that one backward pass serves both. MM-GAN is
published so: its discriminator is updated on outputs from before the generator's update.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm.baselines.method import GANBatch, Method
from ummcsgm.diffusion.missingness import sample_missing_patterns, stratified_uniforms
from ummcsgm.distributed import devices
from ummcsgm.training.dsm_step import (
    TrainState,
    UpdateRule,
    accumulate_gradients,
    apply_update,
    first_state,
    split_microbatches,
)
from ummcsgm.types import Array, Batch, Params


def make_optimizer(
    method: Method, schedule: Callable[[float], optax.Schedule]
) -> optax.GradientTransformation:
    """Adam for generator and discriminator, with the `schedule` of their published rates.
    Running statistics are left as they are."""
    generator, discriminator = (
        optax.adam(schedule(rate), *method.betas) for rate in method.learning_rates
    )
    transforms = {
        "generator": generator,
        "discriminator": discriminator,
        "statistics": optax.set_to_zero(),
    }
    return optax.partition(transforms, lambda params: {name: name for name in params})


def init_state(key: jax.Array, method: Method, rule: UpdateRule, grid: tuple) -> TrainState:
    """The state before the first step."""
    return first_state(jax.jit(method.init, static_argnums=1)(key, grid), rule)


def make_train_step(
    method: Method,
    rule: UpdateRule,
    patterns: np.ndarray,
    probabilities: np.ndarray,
    patterns_per_image: int,
    num_steps: int,
) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    `patterns_per_image` missing patterns of each image are sampled as for the mm-CSN,
    with the `probabilities` [N] of `patterns`, or with those of the method's curriculum
    at the step's share of `num_steps`. The gradient is that of the mean over the scored
    examples of the global batch. Random numbers are keyed by the example's index in the
    global batch, the same on any number of devices.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple:
        key = jax.random.fold_in(key, state.step)
        current = probabilities
        if method.curriculum is not None:
            current = method.curriculum(state.step / num_steps, patterns.shape[1])
        batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, patterns_per_image, 0), batch)
        examples = len(batch.valid)
        index = devices.device_index() * examples + jnp.arange(examples)  # in the global batch
        gan_batch = _sample_batch(jax.random.fold_in(key, 0), patterns, current, batch, index)
        count = jnp.maximum(devices.sum_over_devices(gan_batch.valid.sum()), 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), index)

        def mean_losses(params: Params, microbatch: tuple) -> tuple[Array, dict]:
            gan_batch, keys = microbatch
            losses = method.losses(keys, params, gan_batch)
            metrics = {"loss": losses.generator, **losses.metrics}
            metrics = {name: values.sum() / count for name, values in metrics.items()}
            total = metrics["loss"] + losses.discriminator.sum() / count
            return total, {"metrics": metrics, "statistics": losses.statistics}

        microbatches = split_microbatches((gan_batch, keys), rule.accumulate)
        sums = accumulate_gradients(mean_losses, state.params, microbatches)
        sums, grads = devices.sum_over_devices(sums)
        parts = rule.accumulate * devices.device_count()
        statistics = jax.tree.map(lambda total: total / parts, sums["statistics"])

        def set_statistics(params: Params) -> Params:
            return {**params, "statistics": statistics}

        return apply_update(rule, state, sums["metrics"], grads, set_statistics)

    return step


def _sample_batch(
    key: jax.Array, patterns: np.ndarray, probabilities: Array, batch: Batch, index: Array
) -> GANBatch:
    """This device's examples, at their `index` [B] in the global batch, with the patterns
    sampled for them."""
    uniforms = stratified_uniforms(key, len(index) * devices.device_count())[index]
    scored = sample_missing_patterns(uniforms, patterns, probabilities, batch.present)
    scored &= batch.valid[:, None]
    images = batch.images[..., : patterns.shape[1]].astype(jnp.float32)
    lesion = jnp.zeros(images.shape[:-1], bool)
    if batch.labels is not None:
        lesion = batch.labels > 0
    return GANBatch(images, scored | ~batch.present, scored, lesion)
