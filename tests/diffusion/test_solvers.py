"""Every sampler against closed forms: exact moments, orders, mixtures, evaluations."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import PATTERNS, SDES, each_sde_slowly, make_gaussian_denoise, posterior
from solver_checks import (
    START,
    assert_coherent,
    assert_exact_moments,
    assert_independent,
    assert_langevin,
    assert_mixture,
    assert_order,
    assert_real_moments,
    assert_seen_untouched,
    assert_slices_alone,
    defects,
    drawn_moments,
    gaussian_posterior,
    grid,
    keys_of,
    make_mixture_denoise,
    measured_orders,
    moment,
    one_voxel_denoise,
    true_covariance,
)

from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.samplers import (
    SAMPLERS,
    algorithm1,
    count_evaluations,
    draw_around_mean,
    make_draw,
    make_noise,
    sample,
    sample_from_mean,
    sampler_times,
)
from ummcsgm.diffusion.sde import VE, VP, draw_noise
from ummcsgm.diffusion.solvers import (
    ddim,
    dpmpp2m,
    euler_maruyama,
    heun,
    initial_state,
    sde_dpmpp2m,
    unipc2,
)
from ummcsgm.diffusion.time_grids import check_times, karras_times, log_uniform_times, uniform_times
from ummcsgm.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

VP_SDE = SDES["vp"]
FLOWS = {"ddim": ddim, "heun": heun, "dpmpp2m": dpmpp2m, "unipc2": unipc2}
ancestral = functools.partial(ddim, eta=1.0)
each_sampler = pytest.mark.parametrize("name", SAMPLERS)
# The samplers of a table by default, the others among the slow tests.
DEFAULT = ("euler_maruyama", "dpmpp2m", "warm")
each_sampler_slowly = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in DEFAULT)) for n in SAMPLERS]
)
each_flow = pytest.mark.parametrize("step", FLOWS.values(), ids=FLOWS.keys())
DEEP = SDES | {"ve": VE(0.002, 50.0)}  # so that all reach the level 0.01


@pytest.mark.parametrize(
    "name, steps, most",
    [
        ("ddim", 100, 0.05),
        ("ancestral", 200, 0.05),
        ("heun", 40, 0.02),
        ("dpmpp2m", 40, 0.02),
        ("sde_dpmpp2m", 60, 0.01),
        ("unipc2", 40, 0.02),
        ("warm", 16, 0.01),
    ],
)
@each_sde_slowly
def test_a_sampler_draws_the_posterior_for_all_15_patterns(sde, name, steps, most):
    """In posterior sd. VE's prior, that knows no mean, leaves 0.017 to the flows."""
    assert_exact_moments(name, sde, steps, most)


@each_sde_slowly
def test_the_corrector_draws_the_posterior_for_all_15_patterns(sde):
    assert_real_moments("predictor_corrector", sde, 100, 0.02)


@each_flow
def test_a_flow_is_the_exact_flow_of_a_gaussian(step):
    """y(t2) = m + U diag(sqrt((l + tau2^2) / (l + tau1^2))) U^T (y(t1) - m)."""
    sde, (_, mean, variance) = VP_SDE, gaussian_posterior((1, 4))
    times = log_uniform_times(sde, 201, 20.0, 0.05)[:-1]
    y = mean + 20 * np.random.default_rng(0).normal(size=mean.shape)
    x = jnp.asarray(y * float(sde.mean(times[0])), jnp.float32)
    denoise = make_gaussian_denoise(sde, mean, variance)
    run = jax.jit(lambda keys: sample(make_noise(keys), sde, denoise, x, times, step)[0])
    ours = np.asarray(run(keys_of(15)), np.float64) / float(sde.mean(times[-1]))
    values, axes = np.linalg.eigh(variance)
    shrink = np.sqrt((values + 0.05**2) / (values + 20.0**2))
    flow = np.einsum("bij,bj,bkj->bik", axes, shrink, axes)
    exact = mean + np.einsum("bhwi,bij->bhwj", y - mean, flow)
    off = np.abs(ours - exact)[:, 0].max(axis=1)[PATTERNS]
    assert off.max() < (3e-2 if step is ddim else 1e-3)


def test_the_measured_orders():
    """Of the sd of one Gaussian voxel, between 80 and 160 steps."""
    for step, order in ((ddim, 1), (heun, 2), (dpmpp2m, 2)):
        assert_order(step, VP_SDE, order - 0.15, order + 0.15)
    assert_order(unipc2, VP_SDE, 2.4)
    assert_order(ancestral, VP_SDE, 0.85, 1.15, noisy=True)
    assert_order(sde_dpmpp2m, VP_SDE, 1.85, 2.15, noisy=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["subvp", "ve", "cosine"])
def test_an_order_is_that_of_the_solver_for_any_sde(name):
    assert_order(dpmpp2m, DEEP[name], 1.85, 2.15)


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])
def test_algorithm_1_has_weak_order_1(name):
    """VE is left out: its mean is exact at once, and on this grid its order is 2."""
    for order in measured_orders(euler_maruyama, SDES[name], noisy=True):
        assert 0.85 < order < 1.15


@pytest.mark.parametrize(
    "name, steps, most", [("dpmpp2m", 20, 0.02), ("warm", 12, 0.02), ("unipc2", 20, 0.02)]
)
def test_draws_of_a_three_mode_posterior_lie_close_to_it(name, steps, most):
    """Sliced Wasserstein distance over the posterior sd, of 25 000 draws in 8-D."""
    assert_mixture(name, VP_SDE, steps, most)


@pytest.mark.slow
def test_algorithm_1_lies_close_to_a_three_mode_posterior_at_1000_steps():
    with compiled_well():  # more is computed here than compiled
        assert_mixture("euler_maruyama", VP_SDE, 1000, 0.015)


@contextlib.contextmanager
def compiled_well():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["subvp", "ve", "cosine"])
def test_a_warm_start_meets_the_mixture_for_every_sde(name):
    assert_mixture("warm", DEEP[name], 12, 0.02)


def counted(name, sde, times):
    """(evaluations of a draw, the times at which they were)."""
    asked = []

    def denoise(x, t):
        jax.debug.callback(lambda t: asked.append(np.array(t)), t, ordered=True)
        return 0.5 * x / sde.mean(t)[:, None, None, None]

    mean, missing = jnp.zeros((2, 3, 3, 4)), jnp.asarray(PATTERNS[[2, 9]])
    jax.block_until_ready(make_draw(name, sde, times)(keys_of(2), denoise, missing, mean))
    jax.effects_barrier()
    return len(asked), np.array(asked)


@pytest.mark.parametrize("name, steps", [("heun", 1), *((n, 7) for n in SAMPLERS)])
def test_the_evaluations_are_as_many_as_reported_and_never_at_0(name, steps):
    made, asked = counted(name, VP_SDE, grid(name, VP_SDE, steps))
    shared = 1 if name == "warm" else 0  # the mean, made by the caller
    assert made + shared == count_evaluations(name, steps)
    assert asked.min() > 0 and asked.max() <= 1


def test_the_reported_evaluations():
    made = {name: count_evaluations(name, 12) for name in SAMPLERS}
    assert made == {
        "euler_maruyama": 12,
        "ddim": 12,
        "ancestral": 12,
        "heun": 23,
        "dpmpp2m": 12,
        "sde_dpmpp2m": 12,
        "unipc2": 12,
        "predictor_corrector": 24,
        "warm": 13,
    }


@each_sampler_slowly
def test_every_sampler_runs_on_a_karras_grid(name):
    if name == "predictor_corrector":  # its noise is not affine: no exact moments
        return
    highest = START if SAMPLERS[name].from_mean else float(VP_SDE.noise_level(1.0))
    times = karras_times(VP_SDE, 150 if name in ("ddim", "ancestral") else 80, highest, 0.02)
    truth = true_covariance(name, VP_SDE)
    assert max(defects(drawn_moments(name, VP_SDE, times), truth)) < 0.1


@each_sampler
def test_a_draw_depends_on_its_address_and_not_on_its_batch_mates(name):
    assert_independent(name, VP_SDE)


@each_sampler
def test_the_seen_comes_back_bit_for_bit(name):
    assert_seen_untouched(name, VP_SDE)


@each_sampler_slowly
def test_slices_of_a_volume_go_together_and_each_is_drawn_as_ever(name):
    """A Gaussian posterior and coherent noise: its sd in each slice, along z rho."""
    many = {"euler_maruyama": 100, "predictor_corrector": 100, "ddim": 100, "ancestral": 200}
    assert_coherent(name, VP_SDE, many.get(name, 40))


def test_without_rho_the_slices_are_independent():
    assert_coherent("sde_dpmpp2m", VP_SDE, 40, rho=0.0)


@pytest.mark.parametrize("name", ["warm", "sde_dpmpp2m", "predictor_corrector"])
def test_a_slice_of_a_draw_does_not_depend_on_the_slices_beside_it(name):
    assert_slices_alone(name, VP_SDE)


@each_sampler
def test_two_keys_are_two_draws(name):
    images = np.repeat(gaussian_posterior((3, 3))[0].fill(0.5)[:1], 2, axis=0)
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS[[14, 14]]))
    mean, variance = posterior(images, PATTERNS[[14, 14]])
    draw = make_draw(name, VP_SDE, grid(name, VP_SDE, 6))
    denoise = make_gaussian_denoise(VP_SDE, mean, variance)
    first, second = draw(keys_of(2), denoise, condition.missing, jnp.asarray(mean, jnp.float32))
    assert np.abs(first - second).min() > 1e-6


@each_flow
def test_a_solver_without_noise_does_not_use_its_keys(step):
    x = 20 * draw_noise(keys_of(2), jnp.zeros((2, 3, 3, 1)))
    times = log_uniform_times(VP_SDE, 8, 20.0, 0.01)
    one, other = (
        sample(make_noise(keys), VP_SDE, one_voxel_denoise(VP_SDE), x, times, step)
        for keys in (keys_of(2), keys_of(4)[2:])
    )
    for image in (*one, *other):
        np.testing.assert_array_equal(image, one[0])


def voxel_draw(step, steps=40):
    x = draw_noise(keys_of(3), jnp.zeros((3, 4, 4, 1)))
    times = log_uniform_times(VP_SDE, steps, 100.0, 0.01)
    denoise = one_voxel_denoise(VP_SDE)
    return np.asarray(sample(make_noise(keys_of(3)), VP_SDE, denoise, x, times, step)[0])


def test_a_little_noise_is_close_to_none():
    still = voxel_draw(ddim)
    little = voxel_draw(functools.partial(ddim, eta=1e-7))
    much = voxel_draw(functools.partial(ddim, eta=0.3))
    np.testing.assert_allclose(little, still, atol=5e-3)
    assert np.abs(much - still).max() > 0.02


def test_ddim_with_eta_1_is_the_ancestral_step():
    """x' ~ q(x' | x, x_0 = D), the posterior of the forward process itself."""
    x = draw_noise(keys_of(2), jnp.zeros((2, 3, 3, 1)))
    t, later = jnp.float32(0.4), jnp.float32(0.6)
    denoise = one_voxel_denoise(VP_SDE)
    times, state = moment(later, later, later, t), initial_state(x)
    ours = ancestral(VP_SDE, denoise, make_noise(keys_of(4)[2:]), state, times)
    scale = VP_SDE.mean(later) / VP_SDE.mean(t)
    added = VP_SDE.std(later) ** 2 - scale**2 * VP_SDE.std(t) ** 2  # forward, t to later
    precision = 1 / VP_SDE.std(t) ** 2 + scale**2 / added
    clean = VP_SDE.mean(t) * denoise(x, times.now)
    mean = (clean / VP_SDE.std(t) ** 2 + scale * x / added) / precision
    np.testing.assert_allclose(ours.mean, mean, atol=2e-5)
    noise = draw_noise(keys_of(4)[2:], x) / np.sqrt(precision)
    np.testing.assert_allclose(ours.x, mean + noise, atol=2e-5)


def test_the_first_steps_of_multistep_solvers_are_those_of_one_step():
    x = draw_noise(keys_of(2), jnp.zeros((2, 3, 3, 1)))
    denoise, first = one_voxel_denoise(VP_SDE), moment(0.6, 0.6, 0.6, 0.4)
    for one, many in ((ddim, dpmpp2m), (ddim, unipc2), (ancestral, sde_dpmpp2m)):
        single, multi = (
            step(VP_SDE, denoise, make_noise(keys_of(2)), initial_state(x), first)
            for step in (one, many)
        )
        np.testing.assert_allclose(single.x, multi.x, atol=1e-6)
        np.testing.assert_allclose(single.mean, multi.mean, atol=1e-6)


def test_the_corrector_is_langevins_step_of_each_example_over_the_missing():
    assert_langevin(VP_SDE)


@each_flow
def test_a_network_of_vp_is_sampled_along_ve(step):
    """D(y, tau) = D_VP(mean(t) y, t) with t = t_VP(tau): the grid is what matters."""
    sde, condition = DEEP["ve"], mixture_condition()
    denoise_vp = make_mixture_denoise(VP_SDE, condition)

    def denoise(x, t):
        level = sde.noise_level(t)
        y = x / sde.mean(t)[:, None, None, None]
        time = VP_SDE.time(level)
        return denoise_vp(VP_SDE.mean(time)[:, None, None, None] * y, time)

    y = 40 * draw_noise(keys_of(2), condition.seen)
    drawn = []
    for process, answer in ((VP_SDE, denoise_vp), (sde, denoise)):
        times = log_uniform_times(process, 15, 40.0, 0.01)
        x = y * process.mean(jnp.asarray(times[0]))
        drawn.append(sample(make_noise(keys_of(2)), process, answer, x, times, step)[0])
    np.testing.assert_allclose(*drawn, atol=5e-4)


def mixture_condition():
    images = jnp.zeros((2, 8, 8, 10))
    return mask_inputs(images, jnp.broadcast_to(jnp.arange(10) < 8, (2, 10)))


def test_the_table_draws_algorithm_1_bit_for_bit():
    condition, mean, variance = gaussian_posterior((3, 3))
    denoise = make_gaussian_denoise(VP_SDE, mean, variance)
    draw = make_draw("euler_maruyama", VP_SDE, uniform_times(20))
    like = condition.seen
    ours = jax.jit(lambda keys: draw(keys, denoise, condition.missing, like))
    paper = jax.jit(lambda keys: algorithm1(keys, VP_SDE, denoise, like, 20))
    np.testing.assert_array_equal(ours(keys_of(15)), paper(keys_of(15)))


def test_a_warm_start_with_its_variance_has_the_exact_marginal():
    """Of single missing modalities, whose posterior variance is one number."""
    condition, mean, variance = gaussian_posterior((40, 40))
    single = PATTERNS.sum(axis=1) == 1
    spread = np.einsum("bii->bi", variance)[:, None, None]
    x = draw_around_mean(
        make_noise(keys_of(15)), VP_SDE, 0.3, jnp.asarray(mean, jnp.float32), jnp.asarray(spread)
    )
    t = jnp.float32(0.3)
    level = float(VP_SDE.noise_level(t))
    y = np.asarray(x, np.float64)[single] / float(VP_SDE.mean(t)) - mean[single]
    sd = np.sqrt(spread[single] + level**2)
    assert np.abs(y.std(axis=(1, 2)) / sd[:, 0, 0] - 1).max() < 4.5 / np.sqrt(3200)
    assert level < 2 and np.sqrt(spread[single].max()) > 0.3


def test_warm_draws_are_2m_from_the_mean_with_its_variance():
    condition, mean, variance = gaussian_posterior((3, 3))
    denoise = make_gaussian_denoise(VP_SDE, mean, variance)
    centre, spread = jnp.asarray(mean, jnp.float32), jnp.full(mean.shape, 0.3)
    times = grid("warm", VP_SDE, 5)
    draw = make_draw("warm", VP_SDE, times)
    ours = draw(keys_of(15), denoise, condition.missing, centre, spread)
    noise = make_noise(keys_of(15))
    public = sample_from_mean(noise, VP_SDE, denoise, centre, times, variance=spread)
    np.testing.assert_array_equal(ours, public)
    first = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys_of(15))
    level = VP_SDE.noise_level(jnp.float32(times[0]))
    y = centre + np.sqrt(np.square(level) + 0.3) * draw_noise(first, centre)
    x = VP_SDE.mean(jnp.float32(times[0])) * y
    by_hand = sample(noise, VP_SDE, denoise, x, times, dpmpp2m)[0]
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-5)


def never(x, t):
    raise AssertionError("the network was evaluated")


def test_a_sampler_that_does_not_exist_is_refused_with_the_list():
    for ask_for in (
        lambda: make_draw("dpm", VP_SDE, uniform_times(5)),
        lambda: count_evaluations("dpm", 5),
        lambda: sampler_times("dpm", VP_SDE, 5, sigma_min=0.01, warm_start_sigma=3.0),
    ):
        with pytest.raises(InputError, match="'dpm'.*euler_maruyama.*ddim.*warm"):
            ask_for()


@pytest.mark.parametrize("step", [euler_maruyama, dpmpp2m])
def test_a_grid_that_reaches_0_is_refused_before_any_evaluation(step):
    times = np.array([1.0, 0.5, 0.0, 0.0], np.float32)
    x = jnp.zeros((2, 3, 3, 4))
    with pytest.raises(InputError, match="reaches 0 before its end"):
        sample(make_noise(keys_of(2)), VP_SDE, never, x, times, step)
    with pytest.raises(InputError, match="reaches 0 before its end"):
        make_draw("dpmpp2m", VP_SDE, times)


@pytest.mark.parametrize(
    "name, times, said",
    [
        ("dpmpp2m", [1.0, 0.5, 0.1], "1 to 0.1; wanted 1 to 0"),
        ("dpmpp2m", [0.5, 0.1, 0.0], "0.5 to 0; wanted 1 to 0"),
        ("warm", [0.5, 0.1, 0.05], "0.5 to 0.05; wanted any time to 0"),
    ],
)
def test_a_grid_that_a_sampler_cannot_use_is_refused(name, times, said):
    check_times(np.array(times))
    with pytest.raises(InputError, match=said):
        make_draw(name, VP_SDE, np.array(times))


def test_steps_and_levels_are_checked():
    with pytest.raises(InputError, match="0 steps"):
        sampler_times("warm", VP_SDE, 0, sigma_min=0.01, warm_start_sigma=3.0)
    with pytest.raises(InputError, match="at most 152"):
        sampler_times("warm", VP(0.1, 20.0), 5, sigma_min=0.01, warm_start_sigma=500.0)
