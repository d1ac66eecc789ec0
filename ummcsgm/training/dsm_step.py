"""One step of denoising score matching: eqs. 6-7, to be mapped over devices.

A batch and all its random numbers are functions of (seed, step), so a resumed run is
the uninterrupted one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ummcsgm.diffusion.loss import Objective, draw_dsm_inputs, dsm_and_variance_losses
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.distributed import devices
from ummcsgm.training.plans import UpdateRule
from ummcsgm.training.train_state import TrainState, accumulate, first_state, split, update
from ummcsgm.types import Array, Batch, Params


def init_state(
    key: jax.Array, model: ScoreModel, recipe: UpdateRule, grid: tuple[int, int]
) -> TrainState:
    """The state before the first step."""
    modalities = model.network.modalities
    images = jnp.zeros((1, *grid, model.network.channels()))
    missing = jnp.zeros((1, modalities), bool)
    params = jax.jit(model.network.init)(key, images, missing, jnp.zeros(1))
    return first_state(params, recipe)


def make_train_step(model: ScoreModel, objective: Objective, recipe: UpdateRule) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    `key` is the run's. The gradient is that of the mean loss over the scored examples
    of the GLOBAL batch, whatever the number of devices or microbatches. A step whose
    loss or gradient is not finite changes nothing but `step` and `bad`.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple:
        batch = batch._replace(images=batch.images.astype(jnp.float32), labels=None)
        batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, objective.patterns_per_image, 0), batch)
        rows = len(batch.valid)
        place = devices.device_index() * rows + jnp.arange(rows)
        questions = draw_dsm_inputs(
            jax.random.fold_in(key, state.step),
            objective,
            model.sde,
            batch,
            place,
            rows * devices.device_count(),
        )
        scored = questions.scored.any(axis=1)
        examples = jnp.maximum(devices.sum_over_devices(scored.sum()), 1)

        def mean_losses(params: Params, part: tuple) -> tuple[Array, dict]:
            loss, likelihood = dsm_and_variance_losses(model, params, objective, *part)
            told = {"loss": loss.sum() / examples}
            if likelihood is not None:
                told["variance_loss"] = likelihood.sum() / examples
            return sum(told.values()), told

        parts = split((batch.images, questions), recipe.accumulate)
        told, grads = devices.sum_over_devices(accumulate(mean_losses, state.params, parts))
        return update(recipe, state, told, grads)

    return step
