"""The segmentation network: its loss by hand, its step however it is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.data.labels import REGIONS, UNKNOWN, region
from ummcsgm.distributed import devices
from ummcsgm.models.segmenter import Segmenter
from ummcsgm.training.dsm_step import TrainState, UpdateRule
from ummcsgm.training.segmenter_step import (
    CLASSES,
    init_state,
    losses,
    make_segment,
    make_step,
    regions,
)
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

GRID, M = (16, 16), 3
MODEL = Segmenter(
    scale=0.25,
    widths=(32, 64),
    blocks=(1, 1),
    classes=len(CLASSES),
    attention_max_grid=0,
    remat=(False, False),
    patch=4,
    pixel_width=8,
    context=4,
    dtype=jnp.float32,
)
LEVELS = np.array(  # of the modalities, by label
    [[0.4, 0.5, 0.5], [0.6, 0.3, 0.3], [0.9, 0.4, 0.4], [0, 0, 0], [0.7, 0.4, 0.9]]
)
SGD = optax.sgd(0.1, momentum=0.9)


def batch_of(rows: int, seed: int = 0) -> Batch:
    """Images that show their labels, all four of them, through noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((rows, *GRID), np.float16)
    for row in range(rows):
        y, x = rng.integers(2, 7, 2)
        labels[row, y : y + 8, x : x + 8] = 2
        labels[row, y + 2 : y + 7, x + 2 : x + 7] = 4
        labels[row, y + 3 : y + 6, x + 3 : x + 6] = 1
    images = LEVELS[labels.astype(int)] + 0.03 * rng.normal(size=(*labels.shape, M))
    valid = np.ones(rows, bool)
    return Batch(images.astype(np.float16), np.ones((rows, M), bool), valid, labels)


@pytest.fixture(scope="module")
def first() -> TrainState:
    """A state of which no parameter is 0."""
    state = init_state(jax.random.key(0), MODEL, UpdateRule(SGD, 0.9, 1), (*GRID, M))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), state.params
    )
    return state.replace(params=params, ema=params)


@pytest.fixture(scope="module")
def run(first):
    """run(batch, devices, accumulate): the state after one step, and its metrics."""
    compiled = {}

    def step_of(count, accumulate):
        recipe = UpdateRule(SGD, 0.9, accumulate)
        return jax.pmap(
            make_step(MODEL, recipe, M),
            axis_name=devices.AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.local_devices()[:count],
        )

    def one(batch, count=1, accumulate=1):
        asked = count, accumulate
        compiled[asked] = compiled.get(asked) or step_of(*asked)
        parts = jax.tree.map(lambda a: a.reshape(count, len(a) // count, *a.shape[1:]), batch)
        state, told = compiled[asked](jax.random.key(5), first, parts)
        return jax.tree.map(np.asarray, (state.params, told))

    return one


def assert_same(one, other, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_a_region_is_the_sum_of_its_classes():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(regions(probabilities), [0.9, 0.6, 0.4], rtol=1e-6)
    for place, label in enumerate(CLASSES):
        sure = regions(np.eye(4)[place])
        assert [bool(region(label, name)) for name in REGIONS] == sure.tolist()


def test_the_loss_is_the_one_that_is_computed_by_hand():
    """Four pixels of core, of which the network knows nothing."""
    loss, dice = losses(jnp.zeros((1, 2, 2, 4)), np.ones((1, 2, 2)))
    by_hand = np.mean([7 / 8, 5 / 7, 1 / 2])
    np.testing.assert_allclose(dice, [by_hand], rtol=1e-6)
    np.testing.assert_allclose(loss, [np.log(4) + 1 - by_hand], rtol=1e-6)


def test_nothing_found_of_nothing_is_right():
    logits = jnp.zeros((1, 2, 2, 4)).at[..., 0].set(40.0)
    loss, dice = losses(logits, np.zeros((1, 2, 2)))
    np.testing.assert_allclose((loss[0], dice[0]), (0, 1), atol=1e-6)


def test_rows_without_a_segmentation_move_nothing(run, first):
    batch = batch_of(4)
    batch.labels[:] = UNKNOWN
    params, told = run(batch)
    assert told["loss"] == 0 and told["grad_norm"] == 0
    assert_same(params, first.params)


@pytest.mark.parametrize("how", ["unknown", "padding"])
def test_what_stands_in_a_row_that_does_not_count_is_not_read(run, how):
    """Of four rows the last two do not count: the step is that of the first two."""
    batch, other = batch_of(4), batch_of(4, seed=9)
    if how == "unknown":
        batch.labels[2:] = UNKNOWN
        other.labels[2:] = UNKNOWN
    else:
        batch.valid[2:] = False
        other.valid[2:] = False
    other.images[:2], other.labels[:2] = batch.images[:2], batch.labels[:2]
    assert (batch.images[2:] != other.images[2:]).any()
    params, told = run(batch)
    assert_same((params, told), run(other))
    alone = jax.tree.map(lambda leaf: leaf[:2], batch)
    assert_same((params, told), run(alone), 2e-6)


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 1), (2, 2)])
def test_the_step_is_the_same_however_it_is_divided(run, devices, accumulate):
    batch = batch_of(8)
    batch.labels[0] = UNKNOWN  # the parts have unequal numbers that count
    params, told = run(batch)
    assert told["grad_norm"] > 0.1
    assert_same((params, told), run(batch, devices, accumulate), 5e-6)


def test_neighbouring_slices_are_not_read(run):
    batch = batch_of(4)
    wide = np.concatenate([batch.images, np.full_like(batch.images, 7)], axis=-1)
    assert_same(run(batch), run(batch._replace(images=wide)))


def test_it_learns_a_few_slices_by_heart():
    """To the pixel: the regions do not lie on the grid of patches."""
    batch = batch_of(4)
    recipe = UpdateRule(optax.adam(5e-3), 0.9, 1)
    state = init_state(jax.random.key(0), MODEL, recipe, (*GRID, M))
    step = devices.pmap_step(make_step(MODEL, recipe, M))
    state, parts = devices.replicate(state), devices.shard(batch)
    for _ in range(120):
        state, _ = step(jax.random.key(0), state, parts)
    images = batch.images.astype(np.float32)
    found = regions(jax.jit(make_segment(MODEL))(state.params, images)) > 0.5
    for place, name in enumerate(REGIONS):
        true = region(batch.labels, name)
        assert 2 * (found[..., place] & true).sum() > 0.9 * (found[..., place].sum() + true.sum())
