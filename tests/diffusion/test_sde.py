"""The forward process: its moment ODEs, its inverse, its conversions, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import SDES, each_sde

from ummcsgm.diffusion import sde as sdes

pytestmark = pytest.mark.usefixtures("quick_compile")


# ln(noise level) is steepest at 0, where autodiff would divide by nothing.
TIMES = np.concatenate([np.geomspace(1e-4, 1e-2, 20), np.linspace(0.02, 1, 50)])


def beta_integral(t):
    return t * (0.1 + 0.5 * t * 19.9)


# mean and noise level, written once more in float64 from science's table.
TRUTH = {
    "vp": lambda t: (np.exp(-beta_integral(t) / 2), np.sqrt(np.expm1(beta_integral(t)))),
    "subvp": lambda t: (np.exp(-beta_integral(t) / 2), 2 * np.sinh(beta_integral(t) / 2)),
    "ve": lambda t: (np.ones_like(t), 0.01 * 5000.0**t),
    "cosine": lambda t: (np.cos(np.arctan(318.0) * t), np.tan(np.arctan(318.0) * t)),
}


def derivative(function, t):
    return jax.vmap(jax.grad(function))(t)


def drift_defect(sde, t):
    """drift - d ln mean / dt, relative to the speed of ln(noise level)."""
    speed = derivative(lambda s: jnp.log(sde.noise_level(s)), t)
    truth = derivative(lambda s: jnp.log(sde.mean(s)), t)
    return np.max(np.abs((sde.drift(t) - truth) / speed))


def diffusion_defect(sde, t):
    """diffusion^2 - (d std^2 / dt - 2 drift std^2), relative to it."""
    growth = derivative(lambda s: jnp.square(sde.std(s)), t)
    truth = growth - 2 * sde.drift(t) * jnp.square(sde.std(t))
    return np.max(np.abs(jnp.square(sde.diffusion(t)) / truth - 1))


@each_sde
def test_drift_and_diffusion_are_those_of_the_moments(sde):
    with jax.enable_x64(True):
        t = jnp.asarray(TIMES, jnp.float64)
        assert drift_defect(sde, t) < 1e-10
        assert diffusion_defect(sde, t) < 1e-7


def planted(sde, bug):
    class Planted(type(sde)):
        def drift(self, t):
            return (-1 if bug == "wrong sign" else 1) * super().drift(t)

        def diffusion(self, t):
            return super().diffusion(t) * (np.sqrt(0.5) if bug == "half g^2" else 1)

    return Planted(**vars(sde))


@each_sde
def test_the_moment_check_turns_red_at_half_the_squared_diffusion(sde):
    with jax.enable_x64(True):
        t = jnp.asarray(TIMES, jnp.float64)
        assert diffusion_defect(planted(sde, "half g^2"), t) > 0.4


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])  # VE has no drift
def test_the_moment_check_turns_red_at_a_wrong_sign_of_the_drift(name):
    with jax.enable_x64(True):
        t = jnp.asarray(TIMES, jnp.float64)
        assert drift_defect(planted(SDES[name], "wrong sign"), t) > 0.4


@pytest.mark.parametrize("name", SDES)
def test_moments_are_those_of_the_published_table_in_float32(name):
    sde, t = SDES[name], np.concatenate([np.geomspace(1e-5, 1e-2, 40), TIMES])
    t = t.astype(np.float32)
    mean, level = TRUTH[name](t.astype(np.float64))
    # At t = 1 the cosine is 0.003 from pi / 2: one ulp of t moves tan by 4e-5.
    tolerance = 2e-5 if name != "cosine" else np.where(t < 0.9, 2e-5, 2e-4)
    assert np.all(np.abs(sde.mean(t) / mean - 1) < tolerance)
    assert np.all(np.abs(sde.noise_level(t) / level - 1) < tolerance)
    assert np.all(np.abs(sde.std(t) / (mean * level) - 1) < tolerance)


@pytest.mark.parametrize("name", SDES)
def test_small_times_lose_no_digits_in_float32(name):
    t = np.geomspace(1e-6, 1e-3, 100).astype(np.float32)
    mean, level = TRUTH[name](t.astype(np.float64))
    assert np.max(np.abs(SDES[name].std(t) / (mean * level) - 1)) < 1e-6
    assert np.max(np.abs(SDES[name].noise_level(t) / level - 1)) < 1e-6


def test_the_naive_formula_would_lose_digits_in_float32():
    t = np.float32(1e-5)
    naive = np.sqrt(np.float32(1) - np.exp(-beta_integral(t).astype(np.float32)))
    mean, level = TRUTH["vp"](np.float64(t))
    assert abs(naive / (mean * level) - 1) > 1e-3


@each_sde
def test_noise_level_is_std_over_mean_and_grows(sde):
    t = np.linspace(1e-4, 1, 500, dtype=np.float32)
    level = sde.noise_level(t)
    np.testing.assert_allclose(level, sde.std(t) / sde.mean(t), rtol=2e-4)
    assert np.all(np.diff(level) > 0)


@pytest.mark.parametrize("name", SDES)
def test_time_inverts_the_noise_level_down_to_0p003_in_float32(name):
    sde = SDES[name]
    lowest = 0.01 if name == "ve" else 0.003
    highest = float(sde.noise_level(np.float32(1))) * 0.999
    levels = np.geomspace(lowest, highest, 300).astype(np.float32)
    t = np.asarray(sde.time(levels))
    assert np.all((t >= 0) & (t <= 1))
    # Judged by the noise level that the returned time truly has, in float64: VE's ln
    # and the cosine's last times are what one ulp of t amounts to there.
    _, truth = TRUTH[name](t.astype(np.float64))
    tolerance = {"vp": 2e-6, "subvp": 2e-6, "ve": 2e-5, "cosine": 6e-5}[name]
    assert np.max(np.abs(truth / levels - 1)) < tolerance
    if name != "ve":
        low = levels < 0.1
        np.testing.assert_allclose(sde.time(sde.noise_level(t[low])), t[low], rtol=2e-6)


def test_constants_of_vp_and_subvp_are_the_known_ones():
    vp, subvp = SDES["vp"], SDES["subvp"]
    assert float(vp.mean(jnp.float32(1))) == pytest.approx(0.00657, rel=1e-3)
    known = {1: 152.2, 1e-5: 0.0010, 1e-4: 0.0032, 1e-3: 0.0105, 0.01: 0.0447}
    known |= {0.1: 0.34, 0.5: 3.41}
    for t, level in known.items():
        assert float(vp.noise_level(jnp.float32(t))) == pytest.approx(level, rel=1.5e-2)
    assert float(subvp.noise_level(jnp.float32(1e-5))) == pytest.approx(1e-6, rel=1e-2)
    assert float(vp.time(jnp.float32(0.003))) == pytest.approx(8.9e-5, rel=1e-2)
    assert float(subvp.time(jnp.float32(0.003))) == pytest.approx(1.3e-2, rel=3e-2)


@each_sde
def test_prior_std_is_that_of_noise_alone_at_time_1(sde):
    assert sde.prior_std() == pytest.approx(float(sde.std(jnp.float32(1))), rel=1e-4)


@each_sde
def test_perturb_has_the_moments_of_the_kernel(sde):
    t = jnp.asarray([1e-3, 0.3, 1.0])
    images = jnp.full((3, 64, 64, 4), 0.7)
    keys = jax.random.split(jax.random.key(0), 3)
    x = sdes.perturb(sde, images, t, sdes.draw_noise(keys, images))
    voxels = np.asarray(x, np.float64).reshape(3, -1)
    std = np.asarray(sde.std(t))
    error = (voxels.mean(axis=1) - 0.7 * np.asarray(sde.mean(t))) / std
    assert np.all(np.abs(error) < 4 / np.sqrt(voxels.shape[1]))
    spread = voxels.std(axis=1) / std - 1
    assert np.all(np.abs(spread) < 4 / np.sqrt(2 * voxels.shape[1]))
    zeros = sdes.perturb(sde, images, t, jnp.zeros_like(images))
    expected = 0.7 * np.asarray(sde.mean(t))[:, None, None, None]
    np.testing.assert_allclose(zeros, np.broadcast_to(expected, zeros.shape), rtol=1e-6)


@each_sde
def test_score_noise_velocity_and_denoised_are_views_of_one_another(sde):
    with jax.enable_x64(True):
        t = jnp.linspace(0.02, 0.98, 6)
        keys = jax.random.split(jax.random.key(1), 6)
        clean = sdes.draw_noise(keys, jnp.zeros((6, 4, 4, 2)))
        more = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        noise = sdes.draw_noise(more, clean)
        mean, std = (sdes.per_example(f(t), clean) for f in (sde.mean, sde.std))
        x = sdes.perturb(sde, clean, t, noise)

        # Of one clean image: the kernel's score, its noise, its velocity.
        score = sdes.score_from_denoised(sde, x, clean, t)
        np.testing.assert_allclose(score, -noise / std, rtol=1e-6, atol=1e-6)
        recovered = sdes.noise_from_denoised(sde, x, clean, t)
        np.testing.assert_allclose(recovered, noise, rtol=1e-6, atol=1e-6)
        velocity = sdes.velocity_from_denoised(sde, x, clean, t)
        np.testing.assert_allclose(
            velocity, mean * noise - std * clean, rtol=1e-6, atol=1e-6 * np.max(std)
        )
        # And back.
        back = sdes.denoised_from_score(sde, x, score, t)
        np.testing.assert_allclose(back, clean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mean * back + std * recovered, x, rtol=1e-8)
        scale = mean**2 + std**2
        np.testing.assert_allclose((mean * x - std * velocity) / scale, clean, rtol=1e-6, atol=1e-6)


@each_sde
def test_tweedie_holds_for_a_gaussian_by_autodiff(sde):
    """The score of E[x_0 | x] is the gradient of ln p_t; p_0 = N(0.3, 0.5^2)."""
    with jax.enable_x64(True):
        for t in (0.01, 0.2, 0.9):
            t = jnp.full((1,), t)
            x = jnp.full((1, 1, 1, 1), 0.8)
            mean, std = sde.mean(t)[0], sde.std(t)[0]
            variance = (0.5 * mean) ** 2 + std**2

            def log_density(value, mean=mean, variance=variance):
                return -0.5 * (value - 0.3 * mean) ** 2 / variance

            gain = 0.25 * mean / variance
            denoised = 0.3 + gain * (x - 0.3 * mean)
            score = sdes.score_from_denoised(sde, x, denoised, t)
            truth = jax.grad(log_density)(0.8)
            np.testing.assert_allclose(score[0, 0, 0, 0], truth, rtol=1e-9)


def test_noise_of_an_example_does_not_depend_on_its_batch_mates():
    def five_keys():
        return jax.random.split(jax.random.key(2), 5)

    noise = sdes.draw_noise(five_keys(), jnp.zeros((5, 8, 8, 4)))
    alone = sdes.draw_noise(five_keys()[3:4], jnp.zeros((1, 8, 8, 4)))
    np.testing.assert_array_equal(noise[3], alone[0])
    flat = np.asarray(noise).reshape(5, -1)
    assert np.max(np.abs(np.corrcoef(flat) - np.eye(5))) < 0.25


def test_noise_of_two_modalities_and_two_pixels_is_independent():
    noise = sdes.draw_noise(jax.random.split(jax.random.key(3)), jnp.zeros((2, 64, 64, 4)))
    channels = np.asarray(noise).reshape(-1, 4)
    assert np.max(np.abs(np.corrcoef(channels.T) - np.eye(4))) < 4 / np.sqrt(8192)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(noise[:, 1:].size)
