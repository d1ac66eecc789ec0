"""What is seen is encoded once for all draws and steps, and a draw is the same in any batch."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import MODALITIES, tiny_config

from ummcsgm.config import build
from ummcsgm.diffusion.preconditioning import init_params
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import (
    TrainedModel,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

ROWS, DRAWS = 4, 3
MISSING = np.array([[0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 0]], bool)
SCALES = {"t1c": 0.3, "flair+t2": 0.8}


class Counting:
    """A network that counts the rows of each of its evaluations, as they run."""

    def __init__(self, network, rows):
        self.network, self.rows = network, rows

    def __getattr__(self, name):
        return getattr(self.network, name)

    def apply(self, params, images, *inputs, method):
        first = jax.tree.leaves(images)[0][:, 0, 0, 0]  # of `denoise` they are bands
        jax.debug.callback(lambda rows: self.rows.update({method: len(rows)}), first)
        return self.network.apply(params, images, *inputs, method=method)


@pytest.fixture(scope="module")
def trained():
    """A network of random parameters."""
    config = tiny_config("")
    model, space = build.build_model(config), build.build_space(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key, (16, 16)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.abs(0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    known = (dict.fromkeys(MODALITIES, 1.0), dict.fromkeys(MODALITIES, (0.0, 1.0)), (1.0, 1.0))
    params = devices.replicate(params)
    return TrainedModel(config, space, model, params, 0, *known, "abc", "def", SCALES)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(ROWS, 16, 16, 4)).astype(np.float32)


def options_of(trained, microbatch=4):
    options = build.build_evaluation_options(trained.config)
    return dataclasses.replace(options, microbatch=microbatch, sampler_steps=5)


def addresses_of(rows=range(ROWS)):
    return np.stack([slice_addresses("P3", list(rows), draw=k) for k in range(DRAWS)])


@pytest.mark.parametrize(("sampler", "steps"), [("warm", 5), ("heun", 9)])
def test_what_is_seen_is_encoded_once_for_all_draws_and_steps(trained, images, sampler, steps):
    rows = collections.Counter()
    model = dataclasses.replace(trained.model, network=Counting(trained.model.network, rows))
    counted, options = dataclasses.replace(trained, model=model), options_of(trained)
    estimate = make_mean_predictor(counted, options)(images, MISSING)
    jax.effects_barrier()
    assert rows == {"encode": ROWS}
    rows.clear()
    draws = list(make_sampler(counted, sampler, options)(images, MISSING, addresses_of(), estimate))
    jax.effects_barrier()
    assert len(draws) == DRAWS and rows == {"encode": ROWS, "denoise": ROWS * DRAWS * steps}


@pytest.mark.parametrize("sampler", ["warm", "sde_dpmpp2m"])
def test_a_draw_alone_is_the_draw_in_a_batch(trained, images, sampler):
    """Also beside rows that start elsewhere; a row's own pattern decides where it starts."""
    options = options_of(trained)
    estimate = make_mean_predictor(trained, options)(images, MISSING)
    together = np.stack(
        [*make_sampler(trained, sampler, options)(images, MISSING, addresses_of(), estimate)]
    )
    alone = make_sampler(trained, sampler, options_of(trained, 2))
    for index in ([1], [3, 0], [2, 3, 1]):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], estimate)
        draws = alone(images[index], MISSING[index], addresses_of(index), own)
        np.testing.assert_allclose(np.stack([*draws]), together[:, index], atol=2e-5)
    missing = np.broadcast_to(MISSING[:, None, None], images.shape)
    assert np.abs(together[0] - together[1])[missing].mean() > 0.01
    np.testing.assert_array_equal(together[:, ~missing], np.stack([images[~missing]] * DRAWS))


def test_each_row_starts_where_its_own_pattern_is_hidden(trained, images):
    """The draws of a pattern change with its own posterior scale, and with no other."""
    options = options_of(trained)
    estimate = make_mean_predictor(trained, options)(images, MISSING)

    def drawn(scales):
        other = dataclasses.replace(trained, posterior_scales=scales)
        (draw,) = make_sampler(other, "warm", options)(
            images, MISSING, addresses_of()[:1], estimate
        )
        return draw

    before, after = drawn(SCALES), drawn(SCALES | {"t1c": 0.5})
    changed = np.abs(after - before).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed > 0, [True, False, False, True])
    # A pattern of which nothing was measured starts at the largest scale of all.
    changed = np.abs(drawn(SCALES | {"flair+t2": 1.0}) - before).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed > 0, [False, True, True, False])
