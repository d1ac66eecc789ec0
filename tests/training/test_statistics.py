"""The residual's statistics: measured over the global batch, and moved by no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.diffusion.loss import NoiseProposal, Objective, posterior_scale, update_statistics
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.diffusion.sde import VP
from ummcsgm.distributed import devices
from ummcsgm.models.residual_mm_csn import ResidualMMCSN
from ummcsgm.training.dsm_step import UpdateRule, init_state, make_train_step
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

TABLE = missing_patterns(4, proper=False)
OBJECTIVE = Objective(
    TABLE,
    pattern_probabilities(TABLE, (0.4, 0.25, 0.2, 0.15)),
    NoiseProposal(0.2, -1.2, 1.4, 0.01, 10.0, 0.0, 10.0),
    None,
    False,
    1,
    2,
)


@pytest.fixture(scope="module")
def model(make_network):
    mean = make_network(widths=(8,), blocks=(0,), attention_max_grid=0, remat=(False,))
    return ScoreModel(ResidualMMCSN(mean, (32,), 0), VP(0.1, 20.0), 0.5, "mean")


@pytest.fixture(scope="module")
def make_run(model):
    """make_run(count, accumulate=1, optimizer=sgd): run(batches, state) -> (state, metrics)."""
    compiled = {}

    def make(count, accumulate=1, name="sgd"):
        optimizer = {"sgd": optax.sgd(0.02, momentum=0.9), "adam": optax.adam(0.01)}[name]
        rule = UpdateRule(optimizer, 0.99, accumulate)
        if (count, accumulate, name) not in compiled:
            compiled[count, accumulate, name] = jax.pmap(
                make_train_step(model, OBJECTIVE, rule),
                axis_name=devices.AXIS,
                in_axes=(None, None, 0),
                out_axes=None,
                devices=jax.local_devices()[:count],
            )

        def run(batches, state=None):
            state, told = state or init_state(jax.random.key(0), model, rule, (16, 16)), []
            for batch in batches:
                rows = jax.tree.map(
                    lambda leaf: leaf.reshape(count, len(leaf) // count, *leaf.shape[1:]), batch
                )
                state, metrics = compiled[count, accumulate, name](jax.random.key(5), state, rows)
                told.append(jax.tree.map(np.asarray, metrics))
            return jax.tree.map(np.asarray, state), told

        return run

    return make


def batch_of(seed, absent=()):
    """Eight slices: a padded one, one that lacks two modalities, and none with the `absent`."""
    images = (0.5 * np.random.default_rng(seed).normal(size=(8, 16, 16, 4))).astype(np.float32)
    present, valid = np.ones((8, 4), bool), np.arange(8) != 6
    present[2, :2] = False
    present[:, list(absent)] = False
    return Batch(np.where(present[:, None, None], images, 0), present, valid)


def largest(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in pairs)


@pytest.mark.parametrize(
    ("count", "accumulate"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_a_step_is_the_same_however_its_batch_is_divided(make_run, count, accumulate):
    batches = [batch_of(seed) for seed in range(3)]
    whole, numbers = make_run(1)(batches)
    parts, others = make_run(count, accumulate)(batches)
    assert largest(parts.params, whole.params) < 2e-5
    assert largest(parts.ema, whole.ema) < 2e-5
    for name, value in whole.params["statistics"].items():
        np.testing.assert_allclose(parts.params["statistics"][name], value, rtol=1e-5)
    for ours, theirs in zip(others, numbers, strict=True):
        for name in ("loss", "mean_loss", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)
    start, _ = make_run(1)([])
    assert largest(whole.params["params"], start.params["params"]) > 1e-3
    assert largest(whole.params["statistics"], start.params["statistics"]) > 1e-2


def test_a_run_that_goes_on_from_its_state_is_the_straight_run(make_run):
    batches = [batch_of(seed) for seed in range(4)]
    straight, _ = make_run(2)(batches)
    run = make_run(2)
    halfway, _ = run(batches[:2])
    resumed, _ = run(batches[2:], halfway)
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed, straight)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_statistics_are_the_residuals_whatever_the_optimizer(make_run):
    """Adam would move a parameter whose gradient is small as far as any other."""
    found = [make_run(1, name=name)([batch_of(0)])[0] for name in ("sgd", "adam")]
    for one, other in zip(*(jax.tree.leaves(s.params["statistics"]) for s in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert largest(found[0].params["params"], found[1].params["params"]) > 1e-3


def test_the_first_step_is_nine_tenths_of_the_batchs_own_residual(make_run, model):
    """At initialisation the mean is 0, so that the residual is the missing images themselves."""
    images = np.full((8, 16, 16, 4), 0.5, np.float32) * np.array([1, 2, 3, 4], np.float32)
    batch = Batch(images, np.ones((8, 4), bool), np.ones(8, bool))
    found = make_run(1)([batch])[0].params["statistics"]
    value = images[0, 0, 0]
    # A constant image has no details: its coarse coefficients are blocks of 2 x 2 pixels.
    coarse = np.square(value * model.network.multiple())
    moved = found["deviation"] != 1  # [sizes, M]: those that were missing
    assert 4 <= moved.sum() < 16 and moved[0].any()
    for size, modality in np.ndindex(4, 4):
        own = float(moved[size, modality])
        power, share = found["band_power"][size, :, modality], 1 - 0.9 * own
        expected = [share * 0.25 + 0.9 * own * coarse[modality], share * 0.25]
        np.testing.assert_allclose(power, expected, rtol=1e-5)
        deviation = share + 0.9 * own * np.square(value[modality]) * 256
        np.testing.assert_allclose(found["deviation"][size, modality], deviation, rtol=1e-5)


def test_a_modality_that_was_never_missing_keeps_its_numbers(make_run):
    """By the modality, and by how many are missing: of one that was never scanned, all are at
    least two."""
    start, _ = make_run(1)([])
    state, _ = make_run(1)([batch_of(seed, absent=(1,)) for seed in range(3)])
    for name, value in state.params["statistics"].items():
        before = start.params["statistics"][name]
        np.testing.assert_array_equal(value[..., 1], before[..., 1])
        np.testing.assert_array_equal(value[0], before[0])
        assert np.all((value != before).any(axis=0)[..., [0, 2, 3]])
    nothing = batch_of(0)._replace(valid=np.zeros(8, bool))
    still, _ = make_run(1)([nothing])
    assert largest(still.params, start.params) == 0


def test_a_step_that_is_not_finite_leaves_the_statistics(make_run):
    run, broken = make_run(1), batch_of(1)
    broken.images[0, 3, 3, :] = np.inf
    before, _ = run([batch_of(0)])
    after, (told,) = run([broken], before)
    assert told["skipped"] == 1
    assert largest(after.params["statistics"], before.params["statistics"]) == 0


def test_old_numbers_decay_and_those_that_were_not_measured_stay():
    old = {"band_power": jnp.full((2, 3, 2), 4.0), "deviation": jnp.full((2, 2), 9.0)}
    sums = {
        "band_power": jnp.full((2, 3, 2), 10.0),
        "deviation": jnp.full((2, 2), 50.0),
        "examples": jnp.array([[5, 0], [0, 2]]),
    }
    for step, decay in ((0, 0.1), (1, 2 / 11), (100_000, 0.99)):
        params = update_statistics({"statistics": old, "params": 1}, sums, jnp.int32(step))
        assert params["params"] == 1
        power, deviation = (params["statistics"][name] for name in ("band_power", "deviation"))
        for size, count in enumerate((5, 2)):
            own = decay * 4 + (1 - decay) * 10 / count
            np.testing.assert_allclose(power[size, :, size], own, rtol=1e-5)
            np.testing.assert_array_equal(power[size, :, 1 - size], 4)
            own = decay * 9 + (1 - decay) * 50 / count
            np.testing.assert_allclose(deviation[size, size], own, rtol=1e-5)
            assert deviation[size, 1 - size] == 9


def test_a_patterns_scale_is_of_its_own_size_and_its_largest_missing_modality():
    deviation = np.array([[1.0, 4.0, 9.0], [16.0, 25.0, 36.0], [49.0, 64.0, 81.0]])
    params = {"statistics": {"deviation": jnp.asarray(deviation)}}
    missing = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    np.testing.assert_allclose(posterior_scale(params, missing), [1, 3, 5, 6, 9, 0])
    np.testing.assert_array_equal(posterior_scale({"params": 1}, missing), 1)
