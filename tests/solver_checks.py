"""Checks of samplers against posteriors known in closed form: nothing is trained.

`test_solvers` asserts that they hold, `planted_bugs` that a mistake breaks one of them.

A sampler is affine in its noises when the denoiser is that of a Gaussian. So one run,
in which each voxel meets a single unit of noise at a step and a modality of its own,
gives the mean and the whole covariance of what the sampler draws, without Monte Carlo.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from closed_form import PATTERNS, make_gaussian_denoise, posterior
from scipy.special import ndtr

from ummcsgm.diffusion import samplers
from ummcsgm.diffusion.correlated_noise import ar1_noise
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.samplers import address_keys, make_draw, make_noise, sample, sampler_times
from ummcsgm.diffusion.sde import draw_noise, score_from_denoised
from ummcsgm.diffusion.solvers import StepTimes, euler_maruyama, initial_state, predictor_corrector
from ummcsgm.diffusion.time_grids import log_uniform_times
from ummcsgm.evaluation.through_plane import lag_one, neighbour_sums

SEEN = np.array([0.9, -0.6, 0.2, 0.7])  # the b of every pattern
START = 3.0  # the noise level of a warm start
NOISY = ("euler_maruyama", "ancestral", "sde_dpmpp2m")  # draw at every step, not only at the first


@functools.cache
def _key_data(count):
    addresses = np.stack([np.arange(count), np.zeros(count, int)], axis=1)
    return np.asarray(jax.random.key_data(address_keys(7, addresses)))


def keys_of(count):
    """The keys of rows 0, 1, ... at seed 7; a new array each time: none is reused."""
    return jax.random.wrap_key_data(_key_data(count))


def gaussian_posterior(shape):
    """(condition, posterior mean, variance): all 15 missing patterns about SEEN."""
    images = np.broadcast_to(SEEN, (15, *shape, 4)).astype(np.float32)
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS))
    return condition, *posterior(images, PATTERNS)


def numbered(step, times, unit, when):
    """The step, whose noise at its turn n is 1 in the voxels with `when` n, else 0."""

    def turn(sde, denoise, noise, state, moment):
        now = 1 + jnp.argmin(jnp.abs(jnp.asarray(times) - moment.now[0]))
        impulse = unit * (when == now)[:, None]
        return step(sde, denoise, lambda x: 0 * x + impulse, state, moment)

    return turn


def drawn_moments(name, sde, times, step=None, change=lambda denoise: denoise):
    """(mean [15, 4], covariance [15, 4, 4]) of what a sampler draws, exactly.

    Voxel 0 meets no noise; the others one unit, at one step (0 is the first draw) and
    in one modality: their responses are the columns of the sampler's affine map.
    """
    turns = len(times) if name in NOISY else 1
    when = np.concatenate([[-1], np.repeat(np.arange(turns), 4)])
    where = np.concatenate([[0], np.tile(np.arange(4), turns)])
    unit = jnp.asarray(where[:, None] == np.arange(4), jnp.float32)
    condition, mean, variance = gaussian_posterior((1, len(when)))
    denoise = change(make_gaussian_denoise(sde, mean, variance))
    first = unit * (when == 0)[:, None]

    def patched(missing):
        plain = step if step else sampler.step(missing)
        return numbered(plain, times, unit, when)

    sampler = samplers.SAMPLERS[name]
    table = {name: dataclasses.replace(sampler, step=patched)}
    with mock.patch.dict(samplers.SAMPLERS, table):
        draw = make_draw(name, sde, times)
        centre = jnp.asarray(mean, jnp.float32)

        def noise(keys, x):
            return 0 * x + first

        drawn = jax.jit(
            lambda keys: condition.fill(draw(keys, denoise, condition.missing, centre, noise=noise))
        )(keys_of(15))
    drawn = np.asarray(drawn, np.float64)[:, 0]
    response = drawn[:, 1:] - drawn[:, :1]
    return drawn[:, 0], np.einsum("bpi,bpj->bij", response, response)


def defects(moments, truth):
    """The largest errors of mean and covariance, in standard deviations of `truth`."""
    mean = gaussian_posterior((1, 1))[1]
    sd = np.sqrt(np.einsum("bii->bi", truth))
    scale = np.where(PATTERNS, sd, 1)
    drawn_mean, drawn_covariance = moments
    off_mean = np.abs(drawn_mean - mean[:, 0, 0]) / scale
    off = np.abs(drawn_covariance - truth) / (scale[:, :, None] * scale[:, None])
    return off_mean.max(), off.max()


def true_covariance(name, sde):
    """[15, 4, 4]: the posterior's, and what a sampler is known to leave out or on.

    Algorithm 1 ends at t = 0, where VE still has a noise level; the others end in
    images. A warm start without a variance has tau^2 for the V + tau^2 at its level,
    which the flow makes V tau^2 (V + tau^2)^-1.
    """
    variance = gaussian_posterior((1, 1))[2]
    if name in ("euler_maruyama", "predictor_corrector"):
        level = float(sde.noise_level(jnp.float32(0)))
        return variance + level**2 * PATTERNS[:, :, None] * np.eye(4)
    if name == "warm":
        return variance @ np.linalg.inv(np.eye(4) + variance / START**2)
    return variance


def grid(name, sde, steps):
    return sampler_times(name, sde, steps, sigma_min=0.02, warm_start_sigma=START)


def gaussian_defect(name, sde, steps, **planted):
    """The larger of `defects` of a sampler's own grid, all 15 missing patterns."""
    moments = drawn_moments(name, sde, grid(name, sde, steps), **planted)
    return max(defects(moments, true_covariance(name, sde)))


def assert_exact_moments(name, sde, steps, most, **planted):
    defect = gaussian_defect(name, sde, steps, **planted)
    assert defect < most, f"{name}: {defect:.4f} posterior sd from a Gaussian"


def monte_carlo_defects(name, sde, steps, shape=(30, 30)):
    """(mean, sd) errors of real draws, the largest over the patterns, in sd."""
    condition, mean, variance = gaussian_posterior(shape)
    draw = make_draw(name, sde, grid(name, sde, steps))
    denoise = make_gaussian_denoise(sde, mean, variance)
    centre = jnp.asarray(mean, jnp.float32)
    drawn = jax.jit(lambda keys: draw(keys, denoise, condition.missing, centre))(keys_of(15))
    drawn = np.asarray(drawn, np.float64).reshape(15, -1, 4)
    sd = np.sqrt(np.einsum("bii->bi", true_covariance(name, sde)))[PATTERNS]
    off_mean = np.abs(drawn.mean(axis=1) - mean[:, 0, 0])[PATTERNS] / sd
    return off_mean.max(), np.abs(drawn.std(axis=1)[PATTERNS] / sd - 1).max()


def assert_real_moments(name, sde, steps, most):
    """Of 900 voxels per pattern: Monte Carlo, so loose."""
    off_mean, off_sd = monte_carlo_defects(name, sde, steps)
    assert off_mean < 4.5 / 30 + most, f"{name}: mean off by {off_mean:.3f} sd"
    assert off_sd < 4.5 / np.sqrt(2 * 900) + most, f"{name}: sd off by {off_sd:.3f}"


def draw_patterns(name, sde, steps, rows, images=None):
    """Draws for some of the fifteen missing patterns, each under its own address."""
    images = gaussian_posterior((3, 3))[0].fill(0.5) if images is None else images
    missing = jnp.asarray(PATTERNS[rows])
    condition = mask_inputs(jnp.asarray(images, jnp.float32)[rows], missing)
    mean, variance = posterior(np.asarray(images, np.float64)[rows], PATTERNS[rows])
    denoise = make_gaussian_denoise(sde, mean, variance)
    draw = make_draw(name, sde, grid(name, sde, steps))
    centre = jnp.asarray(mean, jnp.float32)
    run = jax.jit(lambda keys: condition.fill(draw(keys, denoise, missing, centre)))
    return np.asarray(run(keys_of(15)[rows]))


def assert_seen_untouched(name, sde):
    """What is seen comes back bit for bit, and what is missing does not."""
    images = np.random.default_rng(5).normal(size=(15, 3, 3, 4)).astype(np.float32)
    drawn = draw_patterns(name, sde, 6, np.arange(15), images)
    seen = np.broadcast_to(~PATTERNS[:, None, None], images.shape)
    assert np.array_equal(drawn[seen].view(np.int32), images[seen].view(np.int32))
    assert np.abs(drawn - images)[~seen].min() > 0
    assert np.isfinite(drawn).all()


def assert_independent(name, sde):
    """A row is what it is alone, whatever else is in its batch."""
    images = np.random.default_rng(6).normal(size=(15, 3, 3, 4))
    images *= np.geomspace(0.1, 10, 15)[:, None, None, None]
    together = draw_patterns(name, sde, 6, np.arange(15), images)
    rows = np.array([12, 0])
    alone = draw_patterns(name, sde, 6, rows, images)
    np.testing.assert_allclose(alone, together[rows], rtol=1e-4, atol=1e-5)


def moment(*times):
    return StepTimes(*(jnp.full(2, t, jnp.float32) for t in times))


def assert_langevin(sde):
    """The corrector's step by hand, with norms in numpy; then Algorithm 1's."""
    t, after = 0.3, 0.25
    missing, keys = PATTERNS[[1, 8]], keys_of(2)
    x = np.asarray(draw_noise(keys_of(4)[2:], jnp.zeros((2, 3, 3, 4))))
    x = x * np.float32([1, 20])[:, None, None, None]
    times = moment(t, t, t, after)

    def denoise(x, t):
        return 0.3 * x + jnp.asarray([0.1, -5.0, 0.2, 3.0])

    ours = predictor_corrector(
        sde, denoise, make_noise(keys), initial_state(jnp.asarray(x)), times, missing=missing
    )
    first, second = (jax.vmap(jax.random.fold_in, (0, None))(keys, turn) for turn in (0, 1))
    noise = np.asarray(draw_noise(first, x))
    score = np.asarray(score_from_denoised(sde, x, denoise(x, times.now), times.now))
    moved = np.array(x)
    for row, asked in enumerate(missing):
        norms = [np.linalg.norm(part[row][..., asked]) for part in (noise, score)]
        size = 2 * (0.16 * norms[0] / norms[1]) ** 2
        step = size * score[row] + np.sqrt(2 * size) * noise[row]
        moved[row][..., asked] += step[..., asked]
    state = initial_state(jnp.asarray(moved))
    then = euler_maruyama(sde, denoise, make_noise(second), state, times)
    np.testing.assert_allclose(ours.x, then.x, rtol=1e-4, atol=1e-4)


# A posterior of three tissues: ten modalities of which two are seen.
def _mixture():
    """(weights [3], means [3, 8], covariances [3, 8, 8]) given b, by conditioning."""
    rng = np.random.default_rng(3)
    prior, means = np.array([0.5, 0.3, 0.2]), 0.15 * rng.normal(size=(3, 10))
    means[:, 8:] *= 0.5  # so that b leaves all three possible
    covariances = []
    for _ in range(3):
        axes = np.linalg.qr(rng.normal(size=(10, 10)))[0]
        covariances.append(axes * np.geomspace(0.02, 0.3, 10) ** 2 @ axes.T)
    b = prior @ means[:, 8:]
    weights, given, left = [], [], []
    for share, mean, covariance in zip(prior, means, covariances, strict=True):
        gain = covariance[:8, 8:] @ np.linalg.inv(covariance[8:, 8:])
        off = b - mean[8:]
        density = np.exp(-0.5 * off @ np.linalg.solve(covariance[8:, 8:], off))
        weights.append(share * density / np.sqrt(np.linalg.det(covariance[8:, 8:])))
        given.append(mean[:8] + gain @ off)
        left.append(covariance[:8, :8] - gain @ covariance[8:, :8])
    return np.array(weights) / sum(weights), np.array(given), np.array(left), b


WEIGHTS, MEANS, COVARIANCES, MIXTURE_SEEN = _mixture()
MIXTURE_MEAN = WEIGHTS @ MEANS
MIXTURE_VARIANCES = WEIGHTS @ (np.square(MEANS - MIXTURE_MEAN) + np.einsum("kii->ki", COVARIANCES))
MIXTURE_SD = np.sqrt(MIXTURE_VARIANCES.mean())


def make_mixture_denoise(sde, condition):
    """denoise = sum_k r_k (m_k + V_k (V_k + tau^2)^-1 (y - m_k)), and b where seen."""
    values, axes = np.linalg.eigh(COVARIANCES)
    onto = jnp.asarray(np.hstack(axes), jnp.float32)  # [8, 3 * 8]
    centres = jnp.asarray(np.einsum("ki,kij->kj", MEANS, axes), jnp.float32)
    values, means = jnp.asarray(values, jnp.float32), jnp.asarray(MEANS, jnp.float32)
    log_weights = jnp.asarray(np.log(WEIGHTS), jnp.float32)

    def denoise(x, t):
        y = (x / sde.mean(t)[:, None, None, None])[..., :8]
        total = values + jnp.square(sde.noise_level(t))[0]  # all times are one
        off = (y @ onto).reshape(*y.shape[:3], 3, 8) - centres
        density = -0.5 * jnp.sum(jnp.square(off) / total + jnp.log(total), axis=-1)
        shares = jax.nn.softmax(log_weights + density, axis=-1)
        moved = (shares[..., None] * values / total * off).reshape(*y.shape[:3], 24)
        answer = shares @ means + moved @ onto.T
        return condition.fill(jnp.concatenate([answer, 0 * x[..., 8:]], axis=-1))

    return denoise


def mixture_draws(name, sde, times, rows=10, side=50):
    """[rows side^2, 10] independent draws of the mixture, b included."""
    missing = np.broadcast_to(np.arange(10) < 8, (rows, 10))
    images = np.zeros((rows, side, side, 10), np.float32)
    images[..., 8:] = MIXTURE_SEEN
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(missing))
    centre = condition.fill(jnp.asarray(np.append(MIXTURE_MEAN, [0, 0]), jnp.float32))
    denoise = make_mixture_denoise(sde, condition)
    draw = make_draw(name, sde, times)
    drawn = jax.jit(lambda keys: condition.fill(draw(keys, denoise, condition.missing, centre)))(
        keys_of(rows)
    )
    return np.asarray(drawn, np.float64).reshape(-1, 10)


def exact_mixture_draws(count, seed=0):
    rng = np.random.default_rng(seed)
    which = rng.choice(3, count, p=WEIGHTS)
    roots = np.linalg.cholesky(COVARIANCES)
    noise = rng.normal(size=(count, 8))
    return MEANS[which] + np.einsum("nij,nj->ni", roots[which], noise)


def sliced_wasserstein(drawn, directions=64):
    """The 2-Wasserstein distance of draws [N, 8+] to the mixture, over its sd.

    The root of the mean square over directions, in each against the exact quantiles
    of the mixture there: no second sample, no noise of one.
    """
    along = np.random.default_rng(1).normal(size=(8, directions))
    along /= np.linalg.norm(along, axis=0)
    ranks = (np.arange(len(drawn)) + 0.5) / len(drawn)
    squares = []
    drawn_along = np.sort(drawn[:, :8] @ along, axis=0).T
    for line, values in zip(along.T, drawn_along, strict=True):
        means = MEANS @ line
        sds = np.sqrt(np.einsum("i,kij,j->k", line, COVARIANCES, line))
        places = np.linspace((means - 6 * sds).min(), (means + 6 * sds).max(), 8000)
        cumulative = WEIGHTS @ ndtr((places - means[:, None]) / sds[:, None])
        quantiles = np.interp(ranks, cumulative, places)
        squares.append(np.mean(np.square(values - quantiles)))
    return np.sqrt(np.mean(squares)) / MIXTURE_SD


def mixture_distance(name, sde, steps, **size):
    """`sliced_wasserstein` of a sampler's draws, on its own grid down to 0.01."""
    times = sampler_times(name, sde, steps, sigma_min=0.01, warm_start_sigma=START)
    return sliced_wasserstein(mixture_draws(name, sde, times, **size))


def assert_mixture(name, sde, steps, most, **size):
    distance = mixture_distance(name, sde, steps, **size)
    assert distance <= most, f"{name} is {distance:.4f} posterior sd from the mixture"


# The measured order, where the answer is one Gaussian voxel: mean 0.7, sd 0.3.
CENTRE, SD = 0.7, 0.3
HIGHEST, LOWEST = 20.0, 0.01


def one_voxel_denoise(sde):
    def denoise(x, t):
        square = jnp.square(sde.noise_level(t))[:, None, None, None]
        y = x / sde.mean(t)[:, None, None, None]
        return CENTRE + SD**2 / (SD**2 + square) * (y - CENTRE)

    return denoise


def one_voxel_errors(step, sde, steps, *, noisy=False):
    """Errors (of the mean, of the sd) at the lowest level, from the exact marginal."""
    times = log_uniform_times(sde, steps + 1, HIGHEST, LOWEST)[:-1]
    levels = np.asarray(sde.noise_level(jnp.asarray(times)), np.float64)
    spread = np.sqrt(SD**2 + levels**2)
    turns = steps + 2 if noisy else 2
    when = np.arange(turns) - 1  # -1: no noise at all; 0: the start's
    x = CENTRE + spread[0] * (when == 0)
    x = jnp.asarray(x, jnp.float32).reshape(1, 1, -1, 1) * sde.mean(times[0])
    turn = numbered(step, times, jnp.ones((turns, 1)), when)
    drawn = jax.jit(
        lambda keys: sample(make_noise(keys), sde, one_voxel_denoise(sde), x, times, turn)[0]
    )(keys_of(1))
    y = np.asarray(drawn, np.float64)[0, 0, :, 0] / float(sde.mean(times[-1]))
    sd = np.sqrt(np.sum(np.square(y[1:] - y[0])))
    return abs(y[0] - CENTRE), abs(sd - spread[-1])


def measured_orders(step, sde, *, noisy=False):
    """log2 of the ratios of errors at 80 and at 160 steps."""
    coarse, fine = (one_voxel_errors(step, sde, n, noisy=noisy) for n in (80, 160))
    ratios = np.divide(coarse, np.maximum(fine, 1e-12))
    return np.log2(np.maximum(ratios, 1e-12))


def assert_order(step, sde, least, most=9.0, **noisy):
    order = measured_orders(step, sde, **noisy)[1]
    assert least < order < most, f"the order of the sd is {order:.2f}"


# Slices of one draw: coherent noise through every sampler, by keys without the slice.
RHO, SLICES = 0.7, 24


def volume_keys(count):
    """The key of one (subject, draw), `count` times."""
    return jnp.broadcast_to(keys_of(1), (count,))


@functools.cache
def _slab_draw(name, sde, steps, rho, shape):
    draw = make_draw(name, sde, grid(name, sde, steps))
    mean, missing = jnp.full(shape, CENTRE), jnp.ones((shape[0], 1), bool)

    def run(keys, slices):
        noise = functools.partial(ar1_noise, slices=slices, rho=rho)
        return draw(keys, one_voxel_denoise(sde), missing, mean, noise=noise)

    return jax.jit(run)


def slab_draws(name, sde, steps, rho, slices, side=16):
    """[Z, side, side] of a draw at the z in `slices`, of one Gaussian voxel's law."""
    run = _slab_draw(name, sde, steps, rho, (len(slices), side, side, 1))
    drawn = run(volume_keys(len(slices)), jnp.asarray(slices))
    return np.asarray(drawn, np.float64)[..., 0]


def assert_coherent(name, sde, steps, rho=RHO):
    """Each slice has the posterior's mean and sd, and neighbours correlate by rho.

    Monte Carlo: 5 standard errors and 2 %. Of the corrector, whose step size is drawn
    too, rho is what its neighbours have but for a little.
    """
    drawn = slab_draws(name, sde, steps, rho, np.arange(SLICES) + 40)
    count = drawn[0].size
    off = (drawn - CENTRE) / SD
    in_slice = 5 / np.sqrt(count) + 0.02
    assert np.abs(off.mean(axis=(1, 2))).max() < in_slice, f"{name}: a mean is off"
    spread = np.sqrt(np.mean(np.square(off), axis=(1, 2)))
    assert np.abs(spread - 1).max() < in_slice, f"{name}: the sd of a slice is off"
    whole = np.sqrt(np.mean(np.square(off)))
    effective = off.size * (1 - rho**2) / (1 + rho**2)
    most = 4 / np.sqrt(2 * effective) + 0.02
    assert abs(whole - 1) < most, f"{name}: the sd is {whole:.3f} of the posterior's"
    lag = lag_one(neighbour_sums(off, np.ones(off.shape, bool)))
    assert abs(lag - rho) < 0.03, f"{name}: neighbours correlate by {lag:.3f}"


def assert_slices_alone(name, sde):
    """A slice of a draw is the same image whichever others are drawn beside it."""
    one, other = np.array([5, 9, 12]), np.array([12, 30, 9])
    images, again = (slab_draws(name, sde, 6, RHO, z, side=4) for z in (one, other))
    np.testing.assert_allclose(again[[2, 0]], images[1:], rtol=1e-4, atol=1e-5)
