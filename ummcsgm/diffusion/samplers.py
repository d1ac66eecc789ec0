"""Drawing the missing modalities: one `lax.scan`, and the table of samplers.

A sampler knows an SDE and `denoise(x, t)`, but no network and no missing pattern. It
moves all M channels; the caller's `Condition.fill` puts the seen ones back, bit for bit.
It scans a step of `solvers` over the times of `time_grids`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.diffusion.sde import SDE, draw_noise, per_example
from ummcsgm.diffusion.solvers import (
    SolverState,
    Step,
    StepTimes,
    ddim,
    dpmpp2m,
    euler_maruyama,
    heun,
    initial_state,
    predictor_corrector,
    sde_dpmpp2m,
    unipc2,
)
from ummcsgm.diffusion.time_grids import GRIDS, check_times, noise_level_at, uniform_times
from ummcsgm.types import Array, Denoiser, Images, InputError, Keys, Missing, Noise, Times

DrawNoise = Callable[[Keys, Images], Images]  # standard normal, a key a row


def make_noise(keys: Keys, draw: DrawNoise = draw_noise) -> Noise:
    """noise(like, *address): `draw(keys, like)` with the numbers of the address folded
    into the keys. (0,) is the address of the start, (i, ...) of step i."""

    def noise(like: Images, *address: int | Array) -> Images:
        folded = keys
        for number in address:
            folded = jax.vmap(jax.random.fold_in, (0, None))(folded, number)
        return draw(folded, like)

    return noise


def draw_prior(noise: Noise, sde: SDE, like: Images) -> Images:
    """x ~ p_1, the first line of Algorithm 1, shaped like `like`."""
    return sde.prior_std() * noise(like, 0)


def draw_around_mean(
    noise: Noise, sde: SDE, t: Times | float, mean: Images, variance: Images
) -> Images:
    """x at time t, a number or [B], of the posterior N(mean, variance): y ~ N(mean, variance +
    tau^2).

    Exact for a Gaussian whose voxels are independent. Of a mode whose variance is v more than
    `variance`, v / (v + tau^2) is lost: 4 % at 5 standard deviations. A mode of n voxels that vary
    as one has n times a voxel's variance: see `bands.largest_deviation`.
    """
    times = jnp.broadcast_to(jnp.asarray(t, mean.dtype), mean.shape[:1])
    level = per_example(sde.noise_level(times), mean)
    y = mean + jnp.sqrt(jnp.square(level) + variance) * noise(mean, 0)
    return per_example(sde.mean(times), mean) * y


def sample(
    noise: Noise, sde: SDE, denoise: Denoiser, x: Images, times: np.ndarray, step: Step
) -> tuple[Images, Images]:
    """Moves x from the first of the decreasing `times` to the last: one `lax.scan`.

    `times` are [T + 1], or [T + 1, B] where examples have different grids. Returns (x, mean)
    of the last step: for `euler_maruyama`, x is that of Algorithm 1 and the mean is x without its
    last noise. Step i draws noise(like, i, ...).

    Raises:
        InputError: `times` is not a grid (`check_times`).
    """
    if _is_given(times):
        check_times(times)
    times = jnp.asarray(times, x.dtype)

    def advance(state: SolverState, now: tuple[Array, StepTimes]) -> tuple[SolverState, None]:
        index, step_times = now
        step_times = StepTimes(*(jnp.broadcast_to(t, x.shape[:1]) for t in step_times))

        def step_noise(like: Images, *address: int) -> Images:
            return noise(like, index, *address)

        return step(sde, denoise, step_noise, state, step_times), None

    padded = jnp.concatenate([times[:1], times[:1], times])
    step_times = StepTimes(padded[:-3], padded[1:-2], padded[2:-1], padded[3:])
    grid = (jnp.arange(1, len(times)), step_times)
    return jax.lax.scan(advance, initial_state(x), grid)[0][:2]


def sample_from_prior(
    noise: Noise, sde: SDE, denoise: Denoiser, like: Images, times: np.ndarray, step: Step
) -> Images:
    """A draw of all M channels that starts at the prior; `like` gives its shape."""
    x = draw_prior(noise, sde, like)
    return sample(noise, sde, denoise, x, times, step)[0]


def algorithm1(
    keys: Keys,
    sde: SDE,
    denoise: Denoiser,
    like: Images,
    steps: int,
    *,
    noise: DrawNoise = draw_noise,
) -> Images:
    """A draw of all M channels by the paper's Algorithm 1, in `steps` steps (1000).

    Its noises are drawn by `noise(keys, like)`, which must be N(0, I) in each example.
    """
    noise_at = make_noise(keys, noise)
    return sample_from_prior(noise_at, sde, denoise, like, uniform_times(steps), euler_maruyama)


def sample_from_mean(
    noise: Noise,
    sde: SDE,
    denoise: Denoiser,
    mean: Images,
    times: np.ndarray,
    *,
    variance: Images | float = 0.0,
) -> Images:
    """A draw that starts at the posterior mean: `dpmpp2m` from times[0] down.

    `mean` is one network evaluation, shared by all draws of a condition; `variance` the
    posterior's, if it is predicted. Noise levels above that of times[0] are skipped: there the
    denoised images are nearly the mean, if it is several times the posterior's largest deviation
    over a block.
    """
    x = draw_around_mean(noise, sde, times[0], mean, variance)
    return sample(noise, sde, denoise, x, times, dpmpp2m)[0]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler that a user may name: its step, its cost, and where it steps.

    A sampler on the uniform grid takes many small steps (Algorithm 1: 1000); the others
    take few, on the time grid that the caller names.
    """

    step: Callable[[Missing], Step]
    evaluations: Callable[[int], int]  # of the network, for a number of steps
    uniform_grid: bool = False
    from_mean: bool = False  # starts at the posterior mean: `sample_from_mean`


def _any_missing(step: Step) -> Callable[[Missing], Step]:
    return lambda missing: step


SAMPLERS = {
    "euler_maruyama": Sampler(_any_missing(euler_maruyama), lambda n: n, uniform_grid=True),
    "ddim": Sampler(_any_missing(ddim), lambda n: n),
    "ancestral": Sampler(_any_missing(functools.partial(ddim, eta=1.0)), lambda n: n),
    "heun": Sampler(_any_missing(heun), lambda n: 2 * n - 1),
    "dpmpp2m": Sampler(_any_missing(dpmpp2m), lambda n: n),
    "sde_dpmpp2m": Sampler(_any_missing(sde_dpmpp2m), lambda n: n),
    "unipc2": Sampler(_any_missing(unipc2), lambda n: n),
    "predictor_corrector": Sampler(
        lambda missing: functools.partial(predictor_corrector, missing=missing),
        lambda n: 2 * n,
        uniform_grid=True,
    ),
    "warm": Sampler(_any_missing(dpmpp2m), lambda n: 1 + n, from_mean=True),
}


def find_sampler(name: str) -> Sampler:
    """The sampler of this name. Raises InputError if there is none."""
    if name not in SAMPLERS:
        raise InputError(f"The sampler is {name!r}; wanted one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


def count_evaluations(name: str, steps: int) -> int:
    """The network evaluations of one draw by a sampler in `steps` steps, including that
    of the posterior mean where it starts there."""
    return find_sampler(name).evaluations(steps)


def sampler_times(
    name: str,
    sde: SDE,
    steps: int,
    *,
    sigma_min: float,
    warm_start_sigma: float,
    grid: str = "log_uniform",
) -> np.ndarray:
    """The times of a sampler's steps: from t = 1, or from the noise level
    `warm_start_sigma` where it starts at the posterior mean, by way of `sigma_min` to 0.

    `grid` names one of GRIDS. A sampler on the uniform grid ignores it, and `sigma_min`.

    Raises:
        InputError: no such sampler, no steps, or a level that the SDE does not reach.
    """
    sampler = find_sampler(name)
    sigma_max = warm_start_sigma if sampler.from_mean else noise_level_at(sde, 1)
    grid = "uniform" if sampler.uniform_grid else grid
    return GRIDS[grid](sde, steps, sigma_max, sigma_min)


def make_draw(name: str, sde: SDE, times: np.ndarray) -> Callable[..., Images]:
    """draw(keys, denoise, missing, mean, variance=0, *, noise=draw_noise): all M channels,
    one draw for each key, every noise of it drawn by `noise(keys, like)`.

    `times` are those of `sample`. `mean` [B, H, W, M] is the posterior mean of each example and
    `variance` its variance if it is predicted; a sampler that starts at the prior reads only the
    mean's shape.

    Raises:
        InputError: no such sampler; `times` is not a grid, does not end at 0, or does
            not begin at 1 although the sampler starts at the prior.
    """
    sampler = find_sampler(name)
    if _is_given(times):
        _check_ends(name, check_times(times))

    def draw(
        keys: Keys,
        denoise: Denoiser,
        missing: Missing,
        mean: Images,
        variance: Images | float = 0.0,
        *,
        noise: DrawNoise = draw_noise,
    ) -> Images:
        noise_at = make_noise(keys, noise)
        if sampler.from_mean:
            return sample_from_mean(noise_at, sde, denoise, mean, times, variance=variance)
        return sample_from_prior(noise_at, sde, denoise, mean, times, sampler.step(missing))

    return draw


def _is_given(times: Array) -> bool:
    """Whether one grid of all examples is known before the program runs."""
    return not isinstance(times, jax.core.Tracer) and np.ndim(times) == 1


def _check_ends(name: str, times: np.ndarray) -> None:
    sampler = find_sampler(name)
    if times[-1] != 0 or not (sampler.from_mean or times[0] > 1 - 1e-5):
        raise InputError(
            f"The grid of sampler {name} goes from {times[0]:g} to {times[-1]:g}; "
            f"wanted {'any time' if sampler.from_mean else '1'} to 0."
        )


def address_keys(seed: int, addresses: Array) -> Keys:
    """[B] keys of (seed, address), for addresses [B, n] of small non-negative integers.

    In sampling the address is (subject, draw): a draw depends on its address alone, not
    on the batch, the order or the number of devices.
    """

    def key_of(address: Array) -> jax.Array:
        return jax.lax.fori_loop(
            0,
            len(address),
            lambda i, key: jax.random.fold_in(key, address[i]),
            jax.random.key(seed),
        )

    return jax.vmap(key_of)(jnp.asarray(addresses, jnp.uint32))
