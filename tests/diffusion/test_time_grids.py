"""Time grids: their noise levels, their ends, and what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import SDES, each_sde
from tiny_run import tiny_config

from ummcsgm.config import build
from ummcsgm.diffusion.time_grids import (
    GRIDS,
    check_times,
    karras_times,
    log_uniform_times,
    noise_level_at,
    uniform_times,
)
from ummcsgm.inference.predictor import sampler_time_grid
from ummcsgm.types import InputError


def levels_of(sde, times):
    return np.asarray(sde.noise_level(jnp.asarray(times)), np.float64)


@each_sde
def test_a_log_uniform_grid_multiplies_the_noise_by_one_factor_and_ends_in_0(sde):
    times = log_uniform_times(sde, 12, 20.0, 0.02)
    assert times.shape == (13,) and times.dtype == np.float32
    assert times[-1] == 0
    levels = levels_of(sde, times[:-1])
    np.testing.assert_allclose(levels[[0, -1]], [20, 0.02], rtol=1e-4)
    np.testing.assert_allclose(levels[1:] / levels[:-1], 1e-3 ** (1 / 11), rtol=1e-4)


@each_sde
def test_a_karras_grid_is_their_equation_5(sde):
    times = karras_times(sde, 18, 20.0, 0.02)
    roots = 20 ** (1 / 7) + np.arange(18) / 17 * (0.02 ** (1 / 7) - 20 ** (1 / 7))
    np.testing.assert_allclose(levels_of(sde, times[:-1]), roots**7, rtol=2e-4)
    assert times[-1] == 0
    even = karras_times(sde, 18, 20.0, 0.02, rho=1.0)
    levels = levels_of(sde, even[:-1])
    np.testing.assert_allclose(levels, np.linspace(20, 0.02, 18), rtol=1e-3)


@each_sde
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_from_the_highest_level_begins_at_time_1(sde, name):
    highest = float(sde.noise_level(jnp.float32(1)))
    times = GRIDS[name](sde, 10, highest, 0.02)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 11
    assert np.array_equal(check_times(times), times)
    later = GRIDS[name](sde, 10, 3.0, 0.02)
    np.testing.assert_allclose(levels_of(sde, later[:1]), 3, rtol=1e-4)
    assert later[-1] == 0 and len(later) == 11


def test_one_step_is_from_the_highest_level_to_0():
    times = log_uniform_times(SDES["vp"], 1, 3.0, 0.01)
    assert times.shape == (2,) and times[1] == 0
    np.testing.assert_allclose(levels_of(SDES["vp"], times[:1]), 3, rtol=1e-4)


def test_a_grid_may_be_made_while_tracing():
    @jax.jit
    def made(x):
        return x + log_uniform_times(SDES["vp"], 4, 3.0, 0.01)

    np.testing.assert_array_equal(made(jnp.zeros(5)), log_uniform_times(SDES["vp"], 4, 3.0, 0.01))


@pytest.mark.parametrize(
    "name, highest, lowest, said",
    [
        ("ve", 3.0, 0.01, "above 0.01"),  # its level at t = 0
        ("ve", 80.0, 0.02, "at most 50"),
        ("vp", 3.0, 0.0, "above 0"),
        ("vp", 200.0, 0.01, "at most 152"),
    ],
)
@pytest.mark.parametrize("make", [log_uniform_times, karras_times])
def test_levels_that_the_sde_does_not_reach_are_refused(make, name, highest, lowest, said):
    with pytest.raises(InputError, match=said):
        make(SDES[name], 5, highest, lowest)


@pytest.mark.parametrize("make", [uniform_times, None])
def test_no_steps_are_refused(make):
    with pytest.raises(InputError, match="0 steps"):
        if make:
            make(0)
        else:
            log_uniform_times(SDES["vp"], 0, 3.0, 0.01)


@pytest.mark.parametrize(
    "times, said",
    [
        ([1.0, 0.5, 0.0, 0.0], "reaches 0 before its end"),
        ([0.0, -0.5], "reaches 0 before its end"),
        ([1.0, 0.5, 0.5, 0.0], "decrease"),
        ([0.2, 0.5, 0.0], "decrease"),
        ([1.5, 0.5, 0.0], "within"),
        ([1.0, 0.5, -0.1], "within"),
        ([1.0, np.nan, 0.0], "nan"),
        ([1.0], "two or more"),
        ([], "two or more"),
    ],
)
def test_what_is_no_grid_is_refused_with_what_is_wanted(times, said):
    with pytest.raises(InputError, match=said):
        check_times(np.array(times))


def test_a_config_names_the_grid_of_all_samplers_but_those_on_uniform_times():
    config = tiny_config("", evaluate__time_grid="karras", evaluate__sampler_steps=5)
    model, options = build.build_model(config), build.build_evaluation_options(config)
    sde, missing = model.sde, np.array([True, False, False, False])
    trained = types.SimpleNamespace(model=model, posterior_scale=lambda pattern: 0.2 + pattern[0])
    highest = noise_level_at(sde, 1)
    for name, sigma_max in (("dpmpp2m", highest), ("warm", options.warm_start_factor * 1.2)):
        times = sampler_time_grid(trained, name, options, missing)
        expected = karras_times(sde, 5, sigma_max, options.sigma_min)
        np.testing.assert_array_equal(times, expected)
    times = sampler_time_grid(trained, "euler_maruyama", options, missing)
    np.testing.assert_array_equal(times, uniform_times(options.algorithm1_steps))


def test_a_grid_that_does_not_exist_is_refused_by_its_key():
    config = tiny_config("", evaluate__time_grid="linear")
    with pytest.raises(InputError, match="config.evaluate.time_grid is 'linear'.*karras"):
        build.check_config(config, 1)
