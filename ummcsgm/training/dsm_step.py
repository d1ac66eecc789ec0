"""One step of denoising score matching (eqs. 6-7), and the update that all methods share.

The batch and the random numbers of a step are functions of (seed, step), so that a
resumed run equals the uninterrupted run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ummcsgm.diffusion.loss import (
    Objective,
    draw_dsm_inputs,
    posterior_scale,
    training_losses,
    update_statistics,
)
from ummcsgm.diffusion.preconditioning import ScoreModel, init_params
from ummcsgm.distributed import devices
from ummcsgm.types import Array, Batch, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: arrays only, which is what a checkpoint holds.

    `bad` [2] int32 counts the steps whose loss or gradient was not finite: in a row
    until now, and in all.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    bad: Array


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """How parameters move: the optimizer, the EMA and the gradient accumulation."""

    optimizer: optax.GradientTransformation
    ema_decay: float
    accumulate: int  # microbatches in a step


def make_train_step(model: ScoreModel, objective: Objective, rule: UpdateRule) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    `key` is the run's. The gradient is that of the mean loss over the scored examples
    of the GLOBAL batch, whatever the number of devices or microbatches.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        batch = batch._replace(images=batch.images.astype(jnp.float32), labels=None)
        batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, objective.patterns_per_image, 0), batch)
        size = len(batch.valid)
        index = devices.device_index() * size + jnp.arange(size)
        key = jax.random.fold_in(key, state.step)
        total = size * devices.device_count()
        scale = functools.partial(posterior_scale, state.params)
        inputs = draw_dsm_inputs(key, objective, model.sde, batch, index, total, scale)
        examples = jnp.maximum(devices.sum_over_devices(inputs.scored.any(axis=1).sum()), 1)

        def mean_losses(params: Params, microbatch: tuple) -> tuple[Array, dict]:
            *losses, residual = training_losses(model, params, objective, *microbatch)
            names = ("loss", "variance_loss", "mean_loss")
            metrics = {
                name: loss.sum() / examples
                for name, loss in zip(names, losses, strict=True)
                if loss is not None
            }
            return sum(metrics.values()), (metrics, residual)

        microbatches = split_microbatches((batch.images, inputs), rule.accumulate)
        (metrics, residual), grads = devices.sum_over_devices(
            accumulate_gradients(mean_losses, state.params, microbatches)
        )

        def set_statistics(params: Params) -> Params:
            return update_statistics(params, residual, state.step) if residual else params

        return apply_update(rule, state, metrics, grads, set_statistics)

    return step


def init_state(
    key: jax.Array, model: ScoreModel, rule: UpdateRule, grid: tuple[int, int]
) -> TrainState:
    """The state of the mm-CSN before the first step."""
    return first_state(jax.jit(init_params, static_argnums=(0, 2))(model, key, grid), rule)


def first_state(params: Params, rule: UpdateRule) -> TrainState:
    """The state before the first step; the EMA starts at the parameters."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=rule.optimizer.init(params),
        bad=jnp.zeros(2, jnp.int32),
    )


def split_microbatches(tree: Any, count: int) -> Any:
    """Every leaf [B, ...] as [count, B / count, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(count, len(leaf) // count, *leaf.shape[1:]), tree)


def accumulate_gradients(mean_losses: Callable, params: Params, microbatches: Any) -> tuple:
    """(metrics, gradient), each summed over the microbatches.

    `mean_losses(params, microbatch)` returns (loss, metrics). One microbatch is in
    memory at a time.
    """

    def gradients(microbatch: Any) -> tuple:
        (_, metrics), grads = jax.value_and_grad(mean_losses, has_aux=True)(params, microbatch)
        return metrics, grads

    if len(jax.tree.leaves(microbatches)[0]) == 1:
        return gradients(jax.tree.map(lambda leaf: leaf[0], microbatches))

    def add(total: tuple, microbatch: Any) -> tuple:
        return jax.tree.map(jnp.add, total, gradients(microbatch)), None

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), microbatches
    )
    zeros = optax.tree.zeros_like(jax.eval_shape(gradients, shapes))
    return jax.lax.scan(add, zeros, microbatches)[0]


def apply_update(
    rule: UpdateRule,
    state: TrainState,
    metrics: dict,
    grads: Params,
    set_statistics: Callable[[Params], Params] = lambda params: params,
) -> tuple[TrainState, dict]:
    """(the state after a step, its metrics).

    Where the loss or the gradient is not finite, only `step` and `bad` change.
    `set_statistics(params)` sets the parameters that no gradient moves.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    updates, opt_state = rule.optimizer.update(grads, state.opt_state, state.params)
    params = set_statistics(optax.apply_updates(state.params, updates))
    # The horizon grows with the run, so that the EMA soon forgets the initialisation.
    decay = jnp.minimum(rule.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    moved = (params, ema, opt_state)
    before = (state.params, state.ema, state.opt_state)
    moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, before)
    in_row = jnp.where(finite, 0, state.bad[0] + 1)
    bad = jnp.stack([in_row, state.bad[1] + ~finite])
    state = TrainState(state.step + 1, *moved, bad)
    return state, metrics | {"grad_norm": norm, "in_row": bad[0], "skipped": bad[1]}
