"""The trainer that five methods share, on a method whose every number is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.baselines.gan_trainer import init_state, make_optimizer, make_train_step
from ummcsgm.baselines.method import Method, MethodLosses
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.distributed import devices
from ummcsgm.training.plans import UpdateRule
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")
TABLE = missing_patterns(4, proper=True)
EVEN = pattern_probabilities(TABLE, ())
ROWS = 8


def init(key, grid):
    return {
        "generator": {"w": jnp.zeros(())},
        "discriminator": {"v": jnp.zeros(())},
        "statistics": {"s": jnp.zeros(())},
    }


def losses(keys, params, lesson):
    """w times how many are asked, -v times the lesion, and statistics of the sizes."""
    size = lesson.scored.sum(axis=1).astype(jnp.float32)
    counted = size > 0
    lesion = jnp.where(counted, lesson.lesion.mean(axis=(1, 2)), 0.0)
    generator = params["generator"]["w"] * size
    judge = -params["discriminator"]["v"] * lesion
    told = {"size": size, "absent": (lesson.missing & ~lesson.scored).sum(axis=1)}
    return MethodLosses(generator, judge, {"s": size.mean()}, told)


METHOD = Method(
    name="known",
    title="known",
    note="",
    init=init,
    complete=lambda params, question: question.seen,
    losses=losses,
    deal=None,
    rates=(1e-3, 1e-4),
    betas=(0.5, 0.999),
)


def batch(rows=ROWS, labels=None):
    images = np.ones((rows, 2, 2, 4), np.float16)
    return Batch(images, np.ones((rows, 4), bool), np.ones(rows, bool), labels)


def moved(method, rows, *, recipe=None, count=2, steps=100, weights=EVEN, done=0, each=1):
    """(the state after one step over so many devices, its metrics)."""
    recipe = UpdateRule(optax.sgd(1.0), 0.5, 1) if recipe is None else recipe
    state = init_state(jax.random.key(0), method, recipe, (2, 2))
    state = state.replace(step=jnp.int32(done))
    step = make_train_step(method, recipe, TABLE, weights, each, steps)
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(count, len(leaf) // count, *leaf.shape[1:]), rows
    )
    mapped = devices.pmap_step(step, jax.devices()[:count])
    state, metrics = mapped(jax.random.key(1), state, parts)
    return jax.tree.map(np.asarray, state), jax.tree.map(float, metrics)


def test_each_network_moves_by_its_own_gradient_over_the_global_batch():
    labels = np.zeros((ROWS, 2, 2), np.float16)
    labels[:3, 0] = 4  # half of each of three slices is tumour
    state, told = moved(METHOD, batch(labels=labels))
    assert state.params["generator"]["w"] == pytest.approx(-told["size"])
    assert state.params["discriminator"]["v"] == pytest.approx(3 / ROWS * 0.5)
    assert state.params["statistics"]["s"] == pytest.approx(told["size"])
    assert told["loss"] == 0.0 and state.step == 1
    # The EMA's horizon is short at first: 1 - 1/10 of the way to the new parameters.
    assert state.ema["generator"]["w"] == pytest.approx(-0.9 * told["size"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_and_microbatches_change_nothing(accumulate):
    recipe = UpdateRule(optax.sgd(1.0), 0.5, accumulate)
    one, told = moved(METHOD, batch(), count=1)
    two, same = moved(METHOD, batch(), recipe=recipe)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert told == pytest.approx(same)


def test_what_is_random_of_an_example_is_the_same_on_any_device():
    def random(keys, params, lesson):
        told = losses(keys, params, lesson)
        drawn = jax.vmap(jax.random.uniform)(keys) * (told.told["size"] > 0)
        return told._replace(generator=params["generator"]["w"] * drawn)

    method = dataclasses.replace(METHOD, losses=random)
    alone, _ = moved(method, batch(), count=1)
    recipe = UpdateRule(optax.sgd(1.0), 0.5, 2)
    shared, _ = moved(method, batch(), recipe=recipe)
    own = alone.params["generator"]["w"]
    assert own == pytest.approx(shared.params["generator"]["w"], rel=1e-6)
    assert -1 < own < 0
    later, _ = moved(method, batch(), count=1, done=1)
    assert later.params["generator"]["w"] != own


def test_several_questions_of_an_image_are_so_many_rows():
    rows = batch()
    twice = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), rows)
    uneven = pattern_probabilities(TABLE, (0.4, 0.3, 0.3))
    _, told = moved(METHOD, rows, weights=uneven, each=2)
    _, same = moved(METHOD, twice, weights=uneven)
    _, once = moved(METHOD, rows, weights=uneven)
    assert told == pytest.approx(same) != pytest.approx(once)


def test_padding_and_what_was_never_scanned_are_asked_nothing():
    rows = batch()
    present = rows.present.copy()
    present[:, 3] = False
    valid = np.arange(ROWS) < 5
    _, told = moved(METHOD, rows._replace(present=present, valid=valid))
    # Of five scored rows each lacks the fourth modality; padding lacks it, too.
    assert told["absent"] == pytest.approx(ROWS / 5)
    only = TABLE[:, 3].nonzero()[0]
    weights = np.zeros(len(TABLE))
    weights[only] = 1 / len(only)
    state, told = moved(METHOD, rows._replace(present=present), weights=weights)
    assert told["size"] == 0 and state.params["generator"]["w"] == 0


def test_a_methods_own_curriculum_is_asked_at_its_place_in_the_run():
    def deal(progress, modalities):
        early = jnp.asarray(TABLE.sum(axis=1) == 1, jnp.float32)
        late = jnp.asarray(TABLE.sum(axis=1) == 3, jnp.float32)
        return jnp.where(progress < 0.5, early / 4, late / 4)

    taught = dataclasses.replace(METHOD, deal=deal)
    assert moved(taught, batch(), done=49)[1]["size"] == 1
    assert moved(taught, batch(), done=50)[1]["size"] == 3


def test_a_gradient_that_is_not_finite_moves_nothing():
    def broken(keys, params, lesson):
        told = losses(keys, params, lesson)
        return told._replace(generator=told.generator * jnp.nan)

    state, told = moved(dataclasses.replace(METHOD, losses=broken), batch())
    assert state.params["generator"]["w"] == 0 == state.params["discriminator"]["v"]
    assert state.params["statistics"]["s"] == 0
    assert (state.step, told["in_row"], told["skipped"]) == (1, 1, 1)


def test_each_network_has_the_rate_that_was_published_for_it():
    """Adam's first step is its learning rate, whatever the gradient."""
    optimizer = make_optimizer(METHOD, lambda rate: optax.constant_schedule(3 * rate))
    labels = np.full((ROWS, 2, 2), 4, np.float16)
    recipe = UpdateRule(optimizer, 0.5, 1)
    state, told = moved(METHOD, batch(labels=labels), recipe=recipe)
    assert state.params["generator"]["w"] == pytest.approx(-3e-3, rel=1e-4)
    assert state.params["discriminator"]["v"] == pytest.approx(3e-4, rel=1e-4)
    assert state.params["statistics"]["s"] == pytest.approx(told["size"])


def test_another_step_asks_other_questions_and_the_same_step_the_same():
    uneven = pattern_probabilities(TABLE, (0.4, 0.3, 0.3))
    sizes = [
        moved(METHOD, batch(), done=done, weights=uneven)[1]["size"]
        for done in (0, 0, 1, 2, 3, 4, 5, 6)
    ]
    assert sizes[0] == sizes[1] and len(set(sizes)) > 1
