"""TrainState, one step of denoising score matching, and the command that trains.

The state holds arrays only: what is in it is what is saved. A batch and all its random
numbers are functions of (seed, step), so a resumed run is the uninterrupted one.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm import build, build_data, checkpoint, job, parallel
from ummcsgm.data.batches import Batches, make_batches
from ummcsgm.data.store import Store
from ummcsgm.denoiser import Model
from ummcsgm.loop import fit
from ummcsgm.loss import Objective, draw_questions, losses
from ummcsgm.manifest import write_manifest
from ummcsgm.plans import Plan, Recipe, Watch
from ummcsgm.preparation import normaliser, prepare
from ummcsgm.programs import flops_of, peak_of
from ummcsgm.schema import RUN_KEYS, check_same
from ummcsgm.stopping import make_told_step
from ummcsgm.types import Array, Batch, Config, Params


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


def init_state(
    key: jax.Array, model: Model, recipe: Recipe, grid: tuple[int, int]
) -> TrainState:
    """The state before the first step; the EMA starts at the parameters."""
    modalities = model.network.modalities
    images = jnp.zeros((1, *grid, model.network.channels()))
    missing = jnp.zeros((1, modalities), bool)
    params = jax.jit(model.network.init)(key, images, missing, jnp.zeros(1))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=recipe.optimizer.init(params),
        bad=jnp.zeros(2, jnp.int32),
    )


def make_train_step(model: Model, objective: Objective, recipe: Recipe) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    `key` is the run's. The gradient is that of the mean loss over the scored examples
    of the GLOBAL batch, whatever the number of devices or microbatches. A step whose
    loss or gradient is not finite changes nothing but `step` and `bad`.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple:
        batch = batch._replace(images=batch.images.astype(jnp.float32))
        rows = len(batch.valid)
        place = parallel.device_index() * rows + jnp.arange(rows)
        questions = draw_questions(
            jax.random.fold_in(key, state.step),
            objective,
            model.sde,
            batch,
            place,
            rows * parallel.device_count(),
        )
        scored = questions.scored.any(axis=1)
        examples = jnp.maximum(parallel.total(scored.sum()), 1)

        def mean_losses(params: Params, part: tuple) -> tuple[Array, dict]:
            loss, likelihood = losses(model, params, objective, *part)
            told = {"loss": loss.sum() / examples}
            if likelihood is not None:
                told["variance_loss"] = likelihood.sum() / examples
            return sum(told.values()), told

        parts = _split((batch.images, questions), recipe.accumulate)
        told, grads = parallel.total(_accumulate(mean_losses, state.params, parts))
        return _update(recipe, state, told, grads)

    return step


def _split(tree: Any, parts: int) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), tree
    )


def _accumulate(mean_losses: Callable, params: Params, parts: Any) -> tuple:
    """(losses, gradient of their sum), each summed over the microbatches, of which one
    is in memory at a time."""

    def both(part: Any) -> tuple:
        (_, told), grads = jax.value_and_grad(mean_losses, has_aux=True)(params, part)
        return told, grads

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return both(first)

    def add(total: tuple, part: Any) -> tuple:
        return jax.tree.map(jnp.add, total, both(part)), None

    zeros = optax.tree.zeros_like(jax.eval_shape(both, first))
    return jax.lax.scan(add, zeros, parts)[0]


def _update(recipe: Recipe, state: TrainState, told: dict, grads: Params) -> tuple:
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(told["loss"]) & jnp.isfinite(norm)
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
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


def train(config: Config, workdir: pathlib.Path, *, trace: bool = False) -> None:
    """The workdir holds a checkpoint of step config.train.steps, continued from the
    newest one there; with `trace`, and a trace of some steps.

    Raises:
        InputError: the config or the data is wrong, or the checkpoint there was made
            with another network.
    """
    build_data.check_data(config)
    build.check_config(config, jax.device_count())
    config = build_data.located(config)
    if checkpoint.latest_step(workdir) is not None:
        saved = checkpoint.restore_about(workdir)["config"]
        check_same(build.config_to_json(config), saved, str(workdir), RUN_KEYS)
    cohort, stores = prepare(config, workdir)
    store = stores["train"]
    model, recipe = build.build_model(config), build.build_recipe(config)
    plan, space = build.build_plan(config), build.build_space(config)
    state = init_or_restore(workdir, model, recipe, plan.seed, space.grid)
    fields = build.config_to_json(config)
    _check_shared(workdir, int(state.step), fields, store)
    if parallel.first():
        write_manifest(workdir, fields, cohort.split, int(state.step))
    about = {"config": fields, **normaliser(store, space.modalities)}
    objective = build.build_objective(config)
    step = make_train_step(model, objective, recipe)
    key = jax.random.fold_in(jax.random.key(plan.seed), 1)
    batches, state = _batches(store, plan), parallel.replicate(state)
    watch = Watch(workdir, _least_seconds(model, objective, state, batches), trace)
    opened = checkpoint.open_checkpoints(workdir, keep=plan.keep)
    with opened as checkpoints, job.at_once():
        fit(
            functools.partial(parallel.over_devices(make_told_step(step)), key),
            state,
            batches,
            plan,
            watch,
            lambda done, state: checkpoint.save(
                checkpoints, done, state.replace(ema=None), state.ema, about
            ),
        )
    parallel.wait_for_all("the checkpoint")


def _least_seconds(
    model: Model, objective: Objective, state: TrainState, batches: Batches
) -> float | None:
    """How long one step would take at the peak of its devices; None where their kind
    is not known.

    Counted are the FLOPs of the gradient, each once, whatever is computed again.
    """
    peak = peak_of(jax.local_devices()[0].device_kind)
    if peak is None:
        return None
    levels = len(model.network.widths)
    network = model.network.clone(remat=(False,) * levels)
    plain = dataclasses.replace(model, network=network)
    whole = Recipe(optax.identity(), ema_decay=0.0, accumulate=1)
    step = make_train_step(plain, objective, whole)
    batch = batches.at(int(state.step))
    share = len(batch.valid) // jax.local_device_count()
    rows = jax.tree.map(lambda leaf: leaf[None, :share], batch)
    state = state.replace(opt_state=whole.optimizer.init(state.params))
    # On the CPU that is always there: accelerators do not tell what a program costs.
    host = jax.local_devices(backend="cpu")[:1]
    known = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    mapped = parallel.over_devices(step, host)
    return flops_of(mapped, jax.random.key(0), known, rows) / peak


def _check_shared(workdir: pathlib.Path, step: int, fields: dict, store: Store) -> None:
    """Raises InputError unless all processes go on with the same run."""
    parallel.check_alike(
        (step, json.dumps(fields, sort_keys=True), store.path.name),
        f"the processes of this job do not see the same run in {workdir}: they need "
        "one folder, that all of them share, and the same flags.",
    )


def init_or_restore(
    workdir: pathlib.Path,
    model: Model,
    recipe: Recipe,
    seed: int,
    grid: tuple[int, int],
) -> TrainState:
    """The newest checkpoint's state, or the state before the first step."""

    def start() -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return init_state(key, model, recipe, grid)

    if checkpoint.latest_step(workdir) is None:
        return start()
    shapes = jax.eval_shape(start)
    rest, ema = checkpoint.restore(workdir, shapes.replace(ema=None), shapes.ema)
    return rest.replace(ema=ema)


def _batches(store: Store, plan: Plan) -> Batches:
    return make_batches(
        store,
        batch=plan.batch,
        seed=plan.seed,
        flip=plan.flip,
        process=parallel.part()[0],
        processes=parallel.part()[1],
    )
