"""What a training step changes, and how: gradients to parameters, whatever is trained.

The state holds arrays only: what is in it is what is saved.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ummcsgm.training.plans import UpdateRule
from ummcsgm.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    `bad` counts the steps whose loss or gradient was not finite: [2] int32, in a row
    until now, and in all.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    bad: Array


def first_state(params: Params, recipe: UpdateRule) -> TrainState:
    """The state before the first step; the EMA starts at the parameters."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=recipe.optimizer.init(params),
        bad=jnp.zeros(2, jnp.int32),
    )


def split(tree: Any, parts: int) -> Any:
    """Every leaf [B, ...] as [parts, B / parts, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), tree)


def accumulate(mean_losses: Callable, params: Params, parts: Any) -> tuple:
    """(losses, gradient of their sum), each summed over the microbatches, of which one
    is in memory at a time."""

    def both(part: Any) -> tuple:
        (_, told), grads = jax.value_and_grad(mean_losses, has_aux=True)(params, part)
        return told, grads

    if len(jax.tree.leaves(parts)[0]) == 1:
        return both(jax.tree.map(lambda leaf: leaf[0], parts))

    def add(total: tuple, part: Any) -> tuple:
        return jax.tree.map(jnp.add, total, both(part)), None

    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parts)
    zeros = optax.tree.zeros_like(jax.eval_shape(both, like))
    return jax.lax.scan(add, zeros, parts)[0]


def update(
    recipe: UpdateRule,
    state: TrainState,
    told: dict,
    grads: Params,
    settle: Callable[[Params], Params] = lambda params: params,
) -> tuple[TrainState, dict]:
    """(the state after a step, its metrics); where the loss or the gradient is not
    finite, nothing changes but `step` and `bad`.

    `settle` puts into the moved parameters what no gradient moves.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(told["loss"]) & jnp.isfinite(norm)
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = settle(optax.apply_updates(state.params, updates))
    # The horizon grows with the run, so that the EMA soon forgets initialisation.
    decay = jnp.minimum(recipe.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    moved = (params, ema, opt_state)
    stayed = (state.params, state.ema, state.opt_state)
    moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, stayed)
    in_row = jnp.where(finite, 0, state.bad[0] + 1)
    bad = jnp.stack([in_row, state.bad[1] + ~finite])
    state = TrainState(state.step + 1, *moved, bad)
    counts = {"grad_norm": norm, "in_row": bad[0], "skipped": bad[1]}
    return state, told | counts
