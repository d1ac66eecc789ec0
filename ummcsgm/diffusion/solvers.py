"""The solvers: one step each, from one time of a grid to the next.

On the clean scale y = x / mean(t), at the noise level tau = std / mean, every SDE is the same one,
y = images + tau n, and with D = denoise(x, t) its probability flow is (Karras et al. 2022, eq. 3)

    dy / d tau = (y - D) / tau.

So a solver is written once, in y and in ratios of noise levels, for any SDE and any
grid; the step to time 0, which is clean, returns D. `euler_maruyama` and
`predictor_corrector` are the paper's, in x and t instead. Nothing is evaluated at time 0.
Noise is drawn by calling the step's argument `noise(like)`; the caller decides where it
comes from and how it correlates with that of other examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ummcsgm.diffusion.missingness import per_modality
from ummcsgm.diffusion.sde import SDE, per_example, score_from_denoised
from ummcsgm.types import Array, Denoiser, Images, Missing, Noise, Times

SIGNAL_TO_NOISE = 0.16  # r of the corrector (Song et al. 2021, appendix G)


class StepTimes(NamedTuple):
    """A step goes from `now` to `next`, [B] each; `earlier` and `before` are the two times
    before it, which repeat the first time at the start of a grid."""

    earlier: Times
    before: Times
    now: Times
    next: Times


class SolverHistory(NamedTuple):
    """What multistep solvers remember; a one-step solver returns it unchanged."""

    clean_scale: Images  # y at `before`
    denoised: Images  # D at `before`
    earlier_denoised: Images  # D at `earlier`


class SolverState(NamedTuple):
    """The result of a step: `mean` is x without the noise that the step drew."""

    x: Images
    mean: Images
    history: SolverHistory


Step = Callable[[SDE, Denoiser, Noise, SolverState, StepTimes], SolverState]


def initial_state(x: Images) -> SolverState:
    """The state before the first step: x, and an empty history."""
    zeros = jnp.zeros_like(x)
    return SolverState(x, x, SolverHistory(zeros, zeros, zeros))


def euler_maruyama(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes
) -> SolverState:
    """One step of the reverse SDE, eq. 4: on `uniform_times` it is Algorithm 1.

        mean <- x - f(t) x dt + g(t)^2 score dt,    x <- mean + g(t) sqrt(dt) n

    with dt = t - t_next. One evaluation.
    """
    x, t = state.x, times.now
    drift = per_example(sde.drift(t), x)
    diffusion = per_example(sde.diffusion(t), x)
    dt = per_example(t - times.next, x)
    score = score_from_denoised(sde, x, denoise(x, t), t)
    mean = x - drift * x * dt + jnp.square(diffusion) * score * dt
    x = mean + diffusion * jnp.sqrt(dt) * noise(x)
    return SolverState(x, mean, state.history)


def ddim(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes, *, eta=0.0
) -> SolverState:
    """DDIM (Song, Meng and Ermon 2021, eqs. 12 and 16); eta = 1 is ancestral sampling.

        y' = D + r sqrt(1 - s^2) (y - D) + tau' s n,   r = tau' / tau,
        s = eta sqrt(1 - r^2)

    eta = 0 is Euler's step in tau of the probability flow. One evaluation.
    """
    denoised = denoise(state.x, times.now)
    y = _clean_scale(sde, state.x, times.now)
    if eta == 0:
        x = mean = _flow(sde, y, denoised, times)
    else:
        x, mean = _diffuse(sde, noise, y, denoised, times, eta)
    return SolverState(x, mean, state.history)


def heun(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes
) -> SolverState:
    """Heun's step of the probability flow (Karras et al. 2022, algorithm 2).

        d = (y - D) / tau,   y_e = y + (tau' - tau) d,
        y' = y + (tau' - tau) (d + (y_e - D_e) / tau') / 2

    Two evaluations; one where t_next = 0, since the last step is Euler's.
    """
    x, now = state.x, times.now
    level, level_next = _level(sde, now, x), _level(sde, times.next, x)
    y, denoised = _clean_scale(sde, x, now), denoise(x, now)
    euler = _flow(sde, y, denoised, times)

    def average(euler: Images) -> Images:
        again = denoise(euler, times.next)
        end = _clean_scale(sde, euler, times.next)
        slopes = (y - denoised) / level + (end - again) / level_next
        return _noisy_scale(sde, y + 0.5 * (level_next - level) * slopes, times.next)

    # All examples share their times; a branch not taken costs no evaluation.
    x = jax.lax.cond(jnp.any(times.next > 0), average, lambda euler: euler, euler)
    return SolverState(x, x, state.history)


def dpmpp2m(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes
) -> SolverState:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

        y' = r y - expm1(-h) D_h,   h = ln(tau / tau'),   r = exp(-h),
        D_h = D + h / (2 h_before) (D - D_before)

    It is exact for a constant D, at any step. One evaluation.
    """
    y, target, history = _second_order(sde, denoise, state, times)
    x = _flow(sde, y, target, times)
    return SolverState(x, x, history)


def sde_dpmpp2m(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes
) -> SolverState:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): ancestral sampling towards D_h of 2M.

        y' = r^2 y - expm1(-2 h) D_h + tau' sqrt(-expm1(-2 h)) n

    One evaluation.
    """
    y, target, history = _second_order(sde, denoise, state, times)
    x, mean = _diffuse(sde, noise, y, target, times, 1.0)
    return SolverState(x, mean, history)


def unipc2(
    sde: SDE, denoise: Denoiser, noise: Noise, state: SolverState, times: StepTimes
) -> SolverState:
    """UniPC-2 (Zhao et al. 2023): the prediction of 2M, corrected by the next D.

    The evaluation at a predicted y also corrects that y (UniC-2): the flow from y at `before` is
    solved anew, for the parabola in ln tau through the last three D. One evaluation.
    """
    denoised = denoise(state.x, times.now)
    predicted = _clean_scale(sde, state.x, times.now)
    y = _corrected(sde, predicted, denoised, state.history, times)
    target = _extrapolated(sde, denoised, state.history, times)
    x = _flow(sde, y, target, times)
    return SolverState(x, x, SolverHistory(y, denoised, state.history.denoised))


def predictor_corrector(
    sde: SDE,
    denoise: Denoiser,
    noise: Noise,
    state: SolverState,
    times: StepTimes,
    *,
    missing: Missing,
) -> SolverState:
    """Langevin's step at t, then `euler_maruyama` (Song et al. 2021, appendix G).

        x <- x + e score + sqrt(2 e) n,   e = 2 (0.16 |n| / |score|)^2

    The norms are those of an example's missing modalities, and only these move: a draw depends
    neither on the other examples of the batch nor on the scores of b. Two evaluations.
    """
    x, t, mask = state.x, times.now, per_modality(missing)
    score, drawn = score_from_denoised(sde, x, denoise(x, t), t), noise(x, 0)
    ratio = _norm(drawn, mask) / _norm(score, mask)
    size = 2 * jnp.square(SIGNAL_TO_NOISE * ratio)
    x = jnp.where(mask, x + size * score + jnp.sqrt(2 * size) * drawn, x)
    state = state._replace(x=x)
    return euler_maruyama(sde, denoise, lambda like: noise(like, 1), state, times)


def _norm(images: Images, mask: Array) -> Array:
    """[B, 1, 1, 1] Euclidean norms over the modalities in the mask."""
    squares = jnp.where(mask, jnp.square(images), 0)
    return jnp.sqrt(jnp.sum(squares, axis=(1, 2, 3), keepdims=True))


def _clean_scale(sde: SDE, x: Images, t: Times) -> Images:
    return x / per_example(sde.mean(t), x)


def _noisy_scale(sde: SDE, y: Images, t: Times) -> Images:
    return per_example(sde.mean(t), y) * y


def _level(sde: SDE, t: Times, images: Images) -> Array:
    """tau, [B, 1, 1, 1]; 0 at t = 0, also for VE, whose level there is sigma_min."""
    return per_example(jnp.where(t > 0, sde.noise_level(t), 0), images)


def _flow(sde: SDE, y: Images, target: Images, times: StepTimes) -> Images:
    """The x at `next` of the probability flow from y where D is constant: exact."""
    ratio = _level(sde, times.next, y) / _level(sde, times.now, y)
    return _noisy_scale(sde, target + ratio * (y - target), times.next)


def _diffuse(
    sde: SDE, noise: Noise, y: Images, target: Images, times: StepTimes, eta: float
) -> tuple[Images, Images]:
    """(x, mean) at `next` of `ddim`'s step where D is constant."""
    level_next = _level(sde, times.next, y)
    ratio = level_next / _level(sde, times.now, y)
    fresh = eta * jnp.sqrt(1 - jnp.square(ratio))
    y = target + ratio * jnp.sqrt(1 - jnp.square(fresh)) * (y - target)
    mean = _noisy_scale(sde, y, times.next)
    added = level_next * fresh * noise(y)
    return mean + _noisy_scale(sde, added, times.next), mean


def _second_order(
    sde: SDE, denoise: Denoiser, state: SolverState, times: StepTimes
) -> tuple[Images, Images, SolverHistory]:
    """(y, D_h, the new history) of 2M."""
    denoised = denoise(state.x, times.now)
    y = _clean_scale(sde, state.x, times.now)
    target = _extrapolated(sde, denoised, state.history, times)
    return y, target, SolverHistory(y, denoised, state.history.denoised)


def _extrapolated(sde: SDE, denoised: Images, history: SolverHistory, times: StepTimes) -> Images:
    """D halfway to `next` in ln tau, on the line through the last two; else D.

    There is no line at the first step, and no halfway to a noise level of 0.
    """
    before, now, after = (_level(sde, t, denoised) for t in times[1:])
    behind = jnp.log(before / now)
    known = (behind > 0) & (after > 0)
    steps = jnp.log(now / after) / (2 * jnp.where(known, behind, 1))
    return denoised + jnp.where(known, steps, 0) * (denoised - history.denoised)


def _corrected(
    sde: SDE, predicted: Images, denoised: Images, history: SolverHistory, times: StepTimes
) -> Images:
    """y now, of the flow from y at `before` for D = D_b + s slope + s (s - h) bend.

    s = ln(tau_before / tau) and h is its value now; slope and bend are the divided
    differences of the last two and three D, so this needs one D more than 2M does.
    """
    earlier, before, now = (_level(sde, t, denoised) for t in times[:3])
    h, behind = jnp.log(before / now), jnp.log(earlier / before)
    started, known = h > 0, behind > 0
    slope = (denoised - history.denoised) / jnp.where(started, h, 1)
    older = (history.denoised - history.earlier_denoised) / jnp.where(known, behind, 1)
    bend = jnp.where(known, slope - older, 0) / jnp.where(started, h + behind, 1)
    # The integrals over s from 0 to h of exp(s - h), exp(s - h) s, exp(s - h) s^2.
    zeroth = -jnp.expm1(-h)
    first = h - zeroth
    second = jnp.square(h) - 2 * first
    y = now / before * history.clean_scale + zeroth * history.denoised
    y = y + first * (slope - h * bend) + second * bend
    return jnp.where(started, y, predicted)
