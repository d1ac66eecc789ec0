"""One step of training: however it is divided, whatever goes wrong, and its EMA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.diffusion.loss import NoiseProposal, Objective, weigh_edm
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.diffusion.sde import VP
from ummcsgm.distributed import devices
from ummcsgm.training.dsm_step import TrainState, UpdateRule, make_train_step
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

TABLE = missing_patterns(4, proper=False)
OBJECTIVE = Objective(
    TABLE,
    pattern_probabilities(TABLE, (0.4, 0.25, 0.2, 0.15)),
    NoiseProposal(0.2, -1.2, 1.4, 0.003, 0.0, 0.25, 1.0),
    weigh_edm,
    False,
)
# Plain momentum: Adam would divide a gradient's rounding by the gradient.
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def network(make_network):
    return make_network(widths=(8,), blocks=(1,), attention_max_grid=0, conditioning="both")


@pytest.fixture(scope="module")
def new_state(network, random_params):
    params = random_params(network)

    def new(learning_rate=0.05):
        own, opt_state = jax.tree.map(jnp.array, params), SGD.init(params)
        opt_state.hyperparams["learning_rate"] = jnp.float32(learning_rate)
        ema = jax.tree.map(jnp.array, params)
        return TrainState(jnp.int32(0), own, ema, opt_state, jnp.zeros(2, jnp.int32))

    return new


@pytest.fixture(scope="module")
def make_run(network):
    """make_run(count, accumulate): run(state, batches) -> (state, metrics)."""
    compiled = {}

    def make(count, accumulate):
        if (count, accumulate) not in compiled:
            recipe = UpdateRule(SGD, 0.99, accumulate)
            compiled[count, accumulate] = jax.pmap(
                make_train_step(ScoreModel(network, VP(0.1, 20.0), 0.5), OBJECTIVE, recipe),
                axis_name=devices.AXIS,
                in_axes=(None, None, 0),
                out_axes=None,
                devices=jax.local_devices()[:count],
            )
        step = compiled[count, accumulate]

        def run(state, batches):
            metrics = []
            for batch in batches:
                parts = jax.tree.map(
                    lambda a: a.reshape(count, len(a) // count, *a.shape[1:]), batch
                )
                state, numbers = step(jax.random.key(5), state, parts)
                metrics.append(jax.tree.map(np.asarray, numbers))
            return jax.tree.map(np.asarray, state), metrics

        return run

    return make


def batch_of(seed):
    """Eight slices of 16 x 16: a padded one, and one that lacks two modalities."""
    rng = np.random.default_rng(seed)
    images = (0.5 * rng.normal(size=(8, 16, 16, 4))).astype(np.float32)
    present, valid = np.ones((8, 4), bool), np.arange(8) != 6
    present[2, :2] = False
    return Batch(np.where(present[:, None, None], images, 0), present, valid)


def largest(one, other):
    """The largest difference of two trees of arrays."""
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in pairs)


def assert_same(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 1), (1, 2)])
def test_a_step_is_the_same_however_its_batch_is_divided(make_run, new_state, devices, accumulate):
    batches = [batch_of(seed) for seed in range(4)]
    whole, numbers = make_run(1, 1)(new_state(), batches)
    parts, others = make_run(devices, accumulate)(new_state(), batches)
    assert largest(parts.params, whole.params) < 2e-5
    assert largest(parts.ema, whole.ema) < 2e-5
    assert largest(parts.opt_state, whole.opt_state) < 2e-4
    for ours, theirs in zip(others, numbers, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-4)
    # The steps were large enough for a difference to show.
    assert largest(whole.params, new_state().params) > 1e-2
    assert whole.step == 4


def test_batches_and_steps_are_not_all_alike(make_run, new_state):
    """The check above would be blind to questions that never change."""
    run = make_run(1, 1)
    _, numbers = run(new_state(), [batch_of(0)] * 3)
    assert len({float(n["loss"]) for n in numbers}) == 3
    again, _ = run(new_state(), [batch_of(0)] * 3)
    once_more, _ = run(new_state(), [batch_of(0)] * 3)
    assert_same(again, once_more)


def test_padding_changes_nothing_at_all(make_run, new_state):
    batch = batch_of(0)
    images = batch.images.copy()
    images[6] = 100.0
    ours, numbers = make_run(2, 1)(new_state(), [batch._replace(images=images)])
    theirs, others = make_run(2, 1)(new_state(), [batch])
    assert_same((ours, numbers), (theirs, others))
    counted = batch._replace(images=images, valid=np.ones(8, bool))
    moved, _ = make_run(2, 1)(new_state(), [counted])
    assert largest(moved.params, theirs.params) > 1e-4


def test_the_mean_is_over_scored_examples_not_over_rows(make_run, new_state):
    """Seven valid rows, or one alone: each example weighs as much in its mean."""
    batch = batch_of(0)
    losses = []
    for row in np.flatnonzero(batch.valid):
        alone = batch._replace(valid=np.arange(8) == row)
        losses.append(make_run(2, 1)(new_state(), [alone])[1][0]["loss"])
    together = make_run(2, 1)(new_state(), [batch])[1][0]["loss"]
    assert together == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_batch_of_padding_alone_is_a_step_of_no_gradient(make_run, new_state):
    batch = batch_of(0)._replace(valid=np.zeros(8, bool))
    state, (numbers,) = make_run(2, 1)(new_state(), [batch])
    assert_same(state.params, new_state().params)
    assert numbers["loss"] == numbers["grad_norm"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_counts(make_run, new_state, value):
    good, broken = batch_of(0), batch_of(0)
    broken.images[1, 3, 3, :] = value  # on the first device only
    run = make_run(2, 1)
    before, _ = run(new_state(), [good])
    state, numbers = run(before, [broken, broken])
    assert not np.isfinite(numbers[0]["loss"]) or not np.isfinite(numbers[0]["grad_norm"])
    kept = ("params", "ema", "opt_state")
    assert_same([getattr(state, k) for k in kept], [getattr(before, k) for k in kept])
    assert state.step == 3
    np.testing.assert_array_equal(state.bad, [2, 2])
    after, _ = run(state, [good])
    np.testing.assert_array_equal(after.bad, [0, 2])
    assert largest(after.params, before.params) > 1e-4


def test_the_average_of_parameters_that_stand_still_is_those_parameters(make_run, new_state):
    state, _ = make_run(1, 1)(new_state(learning_rate=0.0), [batch_of(i) for i in range(5)])
    assert_same(state.params, new_state().params)
    assert largest(state.ema, state.params) < 1e-6


def test_the_average_moves_by_its_decay_towards_the_parameters(make_run, new_state):
    """min(.99, (1 + step) / (10 + step)) of the average stays: .1, then 2 / 11."""
    run, start = make_run(1, 1), new_state()
    first, _ = run(start, [batch_of(0)])
    second, _ = run(first, [batch_of(1)])
    for decay, old, new in ((0.1, new_state(), first), (2 / 11, first, second)):
        expected = jax.tree.map(
            lambda ema, p, decay=decay: decay * np.asarray(ema) + (1 - decay) * p,
            old.ema,
            new.params,
        )
        assert largest(new.ema, expected) < 1e-6
        assert largest(new.ema, new.params) > 1e-4


def test_a_state_holds_arrays_only(new_state):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(new_state()))


def test_several_questions_of_an_image_are_so_many_rows(network, new_state):
    """A step that asks two is the step on a batch that has each image twice."""
    recipe = UpdateRule(optax.sgd(0.1), 0.5, 1)
    model = ScoreModel(network, VP(0.1, 20.0), 0.5)

    def step_of(objective, batch):
        mapped = jax.pmap(
            make_train_step(model, objective, recipe),
            axis_name=devices.AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.local_devices()[:1],
        )
        state = new_state().replace(opt_state=recipe.optimizer.init({}))
        rows = jax.tree.map(lambda leaf: leaf[None], batch)
        state, told = mapped(jax.random.key(5), state, rows)
        return jax.tree.map(np.asarray, (state.params, told["loss"]))

    once = batch_of(0)
    twice = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), once)
    both = step_of(dataclasses.replace(OBJECTIVE, patterns_per_image=2), once)
    assert_same(both, step_of(OBJECTIVE, twice))
    assert largest(both[0], step_of(OBJECTIVE, once)[0]) > 1e-6
