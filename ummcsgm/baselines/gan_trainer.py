"""The one trainer of the five published methods: a generator and what judges it.

Both move at once, from the same answers: the gradient of the generator's loss stops at
the discriminator and the other way round, so that one backward pass serves both. That
is the published order of MM-GAN, whose discriminator is updated on the answers that
the generator gave before its own update.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm.baselines.method import GANBatch, Method
from ummcsgm.diffusion.missingness import sample_missing_patterns, stratified_uniforms
from ummcsgm.distributed import devices
from ummcsgm.training.plans import UpdateRule
from ummcsgm.training.train_state import TrainState, accumulate, first_state, split, update
from ummcsgm.types import Array, Batch, Params

NETWORKS = ("generator", "discriminator")


def make_optimizer(
    method: Method, schedule: Callable[[float], optax.Schedule]
) -> optax.GradientTransformation:
    """Adam for generator and discriminator, each at `schedule` of its published rate;
    running statistics are not its to move."""
    one, two = method.betas
    rates = dict(zip(NETWORKS, method.rates, strict=True))
    own = {name: optax.adam(schedule(rate), one, two) for name, rate in rates.items()}
    own["statistics"] = optax.set_to_zero()
    return optax.partition(own, lambda params: {name: name for name in params})


def init_state(key: jax.Array, method: Method, recipe: UpdateRule, grid: tuple) -> TrainState:
    """The state before the first step."""
    return first_state(jax.jit(method.init, static_argnums=1)(key, grid), recipe)


def make_train_step(
    method: Method,
    recipe: UpdateRule,
    table: np.ndarray,
    weights: np.ndarray,
    each: int,
    steps: int,
) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    `each` questions of an image are dealt as for the mm-CSN, with the `weights` [N] of
    `table`, or as the method's own curriculum has them after the present part of
    `steps`. The gradient is that of the mean over the scored examples of the global
    batch. What is random of an example has a key of its own, whichever the device.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple:
        key = jax.random.fold_in(key, state.step)
        progress, now = state.step / steps, weights
        if method.deal is not None:
            now = method.deal(progress, table.shape[1])
        rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, each, 0), batch)
        place = devices.device_index() * len(rows.valid) + jnp.arange(len(rows.valid))
        lesson = _lesson(jax.random.fold_in(key, 0), table, now, rows, place)
        examples = jnp.maximum(devices.sum_over_devices(lesson.scored.any(axis=1).sum()), 1)
        own = jax.random.fold_in(key, 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, place)

        def mean_losses(params: Params, part: tuple) -> tuple[Array, dict]:
            lesson, keys = part
            outcome = method.losses(keys, params, lesson)
            told = {"loss": outcome.generator, **outcome.told}
            told = {name: values.sum() / examples for name, values in told.items()}
            total = told["loss"] + outcome.discriminator.sum() / examples
            return total, {"told": told, "statistics": outcome.statistics}

        parts = split((lesson, keys), recipe.accumulate)
        told, grads = accumulate(mean_losses, state.params, parts)
        told, grads = devices.sum_over_devices((told, grads))
        shares = recipe.accumulate * devices.device_count()
        means = jax.tree.map(lambda total: total / shares, told["statistics"])

        def settle(params: Params) -> Params:
            return {**params, "statistics": means}

        return update(recipe, state, told["told"], grads, settle)

    return step


def _lesson(
    key: jax.Array, table: np.ndarray, weights: Array, batch: Batch, place: Array
) -> GANBatch:
    """What the rows of this device are asked, at their `place` [B] of a deck over the
    global batch."""
    cards = stratified_uniforms(key, len(place) * devices.device_count())[place]
    scored = sample_missing_patterns(cards, table, weights, batch.present) & batch.valid[:, None]
    images = batch.images[..., : table.shape[1]].astype(jnp.float32)
    lesion = jnp.zeros(images.shape[:-1], bool)
    if batch.labels is not None:
        lesion = batch.labels > 0
    return GANBatch(images, scored | ~batch.present, scored, lesion)
