"""Algorithm 1 to the letter; its closed-form posterior for every SDE and pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import (
    PATTERNS,
    SDES,
    all_patterns,
    each_sde,
    each_sde_slowly,
    make_gaussian_denoise,
    posterior,
)
from solver_checks import (
    SEEN,
    assert_exact_moments,
    defects,
    drawn_moments,
    keys_of,
    true_covariance,
)

from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.samplers import address_keys, algorithm1, draw_prior, make_noise, sample
from ummcsgm.diffusion.solvers import euler_maruyama
from ummcsgm.diffusion.time_grids import uniform_times

pytestmark = pytest.mark.usefixtures("quick_compile")


def drawn(sde, steps):
    """The exact `defects` of Algorithm 1."""
    moments = drawn_moments("euler_maruyama", sde, uniform_times(steps))
    return defects(moments, true_covariance("euler_maruyama", sde))


@each_sde_slowly
def test_algorithm_1_draws_the_posterior_for_all_15_patterns(sde):
    """To 0.2 % of a standard deviation at 1000 steps: what Euler's bias, 1 / T, is."""
    assert_exact_moments("euler_maruyama", sde, 1000, 2e-3)


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_the_bias_of_algorithm_1_falls_as_1_over_its_steps(name):
    coarse, fine = (drawn(SDES[name], steps) for steps in (200, 400))
    for one, other in zip(coarse, fine, strict=True):
        assert 1.7 < one / other < 2.5


def test_the_last_mean_is_the_draw_without_its_last_noise():
    sde = SDES["vp"]
    images, condition, mean, variance = all_patterns(0, (4, 4))
    denoise = make_gaussian_denoise(sde, mean, variance)
    start = draw_prior(make_noise(keys_of(15)), sde, condition.seen)
    noisy, clean = jax.jit(
        lambda keys: sample(
            make_noise(keys), sde, denoise, start, uniform_times(20), euler_maruyama
        )
    )(keys_of(15))
    last = jax.vmap(lambda key: jax.random.fold_in(key, 20))(keys_of(15))
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(last)
    amount = sde.diffusion(jnp.float32(1 / 20)) * np.sqrt(1 / 20)
    np.testing.assert_allclose(noisy - clean, amount * noise, atol=1e-5)


def test_the_posterior_check_turns_red_on_noise_in_the_seen():
    """A denoiser that reads b from the diffused x, and not from what was seen."""
    sde = SDES["vp"]

    def leaking(denoise):
        def planted(x, t):
            clean_scale = x / sde.mean(t)[:, None, None, None]
            return denoise(x, t) + 0.1 * jnp.roll(clean_scale, 1, axis=-1)

        return planted

    assert_exact_moments("euler_maruyama", sde, 200, 1e-2)
    with pytest.raises(AssertionError):
        assert_exact_moments("euler_maruyama", sde, 200, 1e-2, change=leaking)


def test_the_times_of_algorithm_1_are_1_to_1_over_t_and_then_0():
    for steps in (1, 7, 1000):
        times = uniform_times(steps)
        assert times.dtype == np.float32
        assert len(times) == steps + 1
        np.testing.assert_allclose(times, 1 - np.arange(steps + 1) / steps, atol=1e-7)
        assert times[0] == 1
        assert times[-1] == 0


def literal_algorithm_1(key_seed, sde, condition, denoise, steps):
    """The paper's loop in numpy: NN = (a_t, b) + (score, 0), noises drawn by hand."""
    b, missing = np.asarray(condition.seen, np.float64), np.asarray(condition.missing)
    asked, dt = missing[:, None, None, :], 1 / steps

    @jax.jit
    def noise_of(row, step):
        key = jax.random.key(key_seed)
        for address in (row, 0, step):
            key = jax.random.fold_in(key, address)
        return jax.random.normal(key, b.shape[1:])

    def noise(step):
        rows = [noise_of(row, step) for row in range(len(b))]
        return np.asarray(rows, np.float64)

    def now(function, t):
        return float(function(jnp.float32(t)))

    a = sde.prior_std() * noise(0)
    for step in range(1, steps + 1):
        t = 1 - (step - 1) * dt
        state = np.where(asked, a, b)
        denoised = np.asarray(denoise(state, jnp.full(len(b), t, jnp.float32)))
        score = (now(sde.mean, t) * denoised - state) / now(sde.std, t) ** 2
        network = state + np.where(asked, score, 0)
        drift, diffusion = now(sde.drift, t), now(sde.diffusion, t)
        a = a - drift * a * dt + diffusion**2 * (network - state) * dt
        a = a + diffusion * np.sqrt(dt) * noise(step)
    return np.where(asked, a, b)


@each_sde
def test_algorithm_1_is_the_papers_loop_to_the_letter(sde):
    images, condition, mean, variance = all_patterns(1, (3, 2))
    denoise = make_gaussian_denoise(sde, mean, variance)
    ours = jax.jit(lambda keys: condition.fill(algorithm1(keys, sde, denoise, condition.seen, 40)))(
        keys_of(15)
    )
    literal = literal_algorithm_1(7, sde, condition, jax.jit(denoise), 40)
    np.testing.assert_allclose(ours, literal, rtol=1e-4, atol=1e-4 * np.std(literal))
    seen = np.broadcast_to(~PATTERNS[:, None, None], images.shape)
    np.testing.assert_array_equal(
        np.asarray(ours)[seen].view(np.int32), images[seen].astype(np.float32).view(np.int32)
    )


def test_the_denoiser_is_asked_once_a_step_and_never_at_time_0():
    asked = []

    def spy(x, t):
        jax.debug.callback(lambda t: asked.append(np.array(t)), t, ordered=True)
        return 0.5 * x

    like = jnp.zeros((2, 3, 3, 4))
    jax.block_until_ready(algorithm1(keys_of(2), SDES["vp"], spy, like, 12))
    jax.effects_barrier()
    truth = np.repeat(np.arange(12, 0, -1)[:, None] / 12, 2, axis=1)
    np.testing.assert_allclose(np.array(asked), truth, atol=1e-6)


def draw_rows(sde, rows, patterns=None):
    """Algorithm 1 on some of the fifteen missing patterns, each under its own address."""
    images, _, mean, variance = patterns or all_patterns(2, (4, 4))
    addresses = np.stack([np.arange(15), np.zeros(15, int)], axis=1)[rows]
    denoise = make_gaussian_denoise(sde, mean[rows], variance[rows])
    like = jnp.asarray(images[rows], jnp.float32)
    run = jax.jit(lambda keys: algorithm1(keys, sde, denoise, like, 20))
    return np.asarray(run(address_keys(7, addresses)))


def test_a_draw_depends_on_its_address_not_on_its_batch_mates_or_place():
    together = draw_rows(SDES["vp"], np.arange(15))
    order = np.random.default_rng(0).permutation(15)
    np.testing.assert_allclose(draw_rows(SDES["vp"], order), together[order], atol=2e-6)
    alone = draw_rows(SDES["vp"], np.array([4]))
    np.testing.assert_allclose(alone[0], together[4], atol=2e-6)
    assert np.std(together, axis=(1, 2, 3)).min() > 0.1


def test_the_noises_of_all_steps_and_examples_are_independent():
    """dx = g dw from 0: what `sample` has added up is the sum of independent noises."""
    steps, like = 25, jnp.zeros((6, 32, 32, 4))
    noises = []

    def recording(sde, denoise, noise, state, times):
        drawn = noise(state.x)
        jax.debug.callback(lambda n: noises.append(np.array(n)), drawn, ordered=True)
        return state._replace(x=state.x + drawn)

    drawn, _ = sample(
        make_noise(keys_of(6)), SDES["ve"], None, like, uniform_times(steps), recording
    )
    jax.effects_barrier()
    rows = np.array(noises).reshape(steps * 6, -1)
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.max(np.abs(correlation)) < 5.5 / np.sqrt(rows.shape[1])
    np.testing.assert_allclose(drawn, np.sum(noises, axis=0), atol=1e-4)


def test_the_prior_is_not_the_noise_of_any_step():
    like = jnp.zeros((3, 16, 16, 4))
    still = algorithm1(keys_of(3), SDES["ve"], lambda x, t: x, like, 1)
    start = draw_prior(make_noise(keys_of(3)), SDES["ve"], like)
    step = np.asarray(still - start).ravel()
    assert abs(np.corrcoef(step, np.asarray(start).ravel())[0, 1]) < 4 / np.sqrt(step.size)
    assert np.std(start) == pytest.approx(50, rel=4 / np.sqrt(2 * step.size))


def test_draws_of_the_real_noise_have_the_posterior_moments():
    """Monte Carlo, so loose: 1024 voxels of each pattern at 100 steps."""
    sde = SDES["vp"]
    images = np.broadcast_to(SEEN, (15, 32, 32, 4)).astype(np.float32)
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS))
    mean, variance = posterior(images, PATTERNS)
    denoise = make_gaussian_denoise(sde, mean, variance)
    drawn = jax.jit(
        lambda keys: condition.fill(algorithm1(keys, sde, denoise, condition.seen, 100))
    )(keys_of(15))
    drawn = np.asarray(drawn, np.float64).reshape(15, -1, 4)
    count, asked = drawn.shape[1], PATTERNS
    sd = np.sqrt(np.einsum("bii->bi", variance))
    off_mean = np.abs(drawn.mean(axis=1) - mean[:, 0, 0])[asked] / sd[asked]
    assert off_mean.max() < 4.5 / np.sqrt(count) + 0.015
    off_sd = np.abs(drawn.std(axis=1)[asked] / sd[asked] - 1)
    assert off_sd.max() < 4.5 / np.sqrt(2 * count) + 0.01


def test_keys_of_addresses_are_distinct_and_those_of_fold_in():
    addresses = np.stack(np.meshgrid(*[np.arange(7)] * 3), axis=-1).reshape(-1, 3)
    data = np.asarray(jax.random.key_data(address_keys(3, addresses)))
    assert len(np.unique(data, axis=0)) == len(addresses)
    key = jax.random.key(3)
    for number in addresses[100]:
        key = jax.random.fold_in(key, number)
    np.testing.assert_array_equal(jax.random.key_data(key), data[100])
    other = np.asarray(jax.random.key_data(address_keys(4, addresses)))
    assert not np.any(np.all(other == data, axis=1))
