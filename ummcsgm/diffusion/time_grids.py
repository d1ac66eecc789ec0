"""Time grids: the decreasing times that a sampler steps through.

The last time of a grid is 0, the clean images: the step to it returns the denoised images
of the time before, and no network is evaluated at it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.diffusion.sde import SDE
from ummcsgm.types import InputError


def uniform_times(steps: int) -> np.ndarray:
    """1, 1 - 1/T, ..., 1/T, 0 for T steps: the grid of Algorithm 1, [T + 1].

    The denoiser is called at every time but the last, so never at 0.

    Raises:
        InputError: no steps.
    """
    _check_steps(steps)
    return (np.arange(steps, -1, -1) / steps).astype(np.float32)


def log_uniform_times(sde: SDE, steps: int, sigma_max: float, sigma_min: float) -> np.ndarray:
    """The times of `steps` noise levels in geometric progression, then 0: [steps + 1].

    From `sigma_max` to `sigma_min`; each step multiplies the noise by the same factor.

    Raises:
        InputError: no steps, or levels that the SDE does not reach at times above 0.
    """
    _check_levels(sde, steps, sigma_max, sigma_min)
    return _times_at(sde, np.geomspace(sigma_max, sigma_min, steps))


def karras_times(
    sde: SDE, steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0
) -> np.ndarray:
    """The times of `steps` noise levels even in level^(1 / rho), then 0: [steps + 1].

    Karras et al. 2022, eq. 5.

    Raises:
        InputError: no steps, or levels that the SDE does not reach at times above 0.
    """
    _check_levels(sde, steps, sigma_max, sigma_min)
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return _times_at(sde, roots**rho)


def _times_at(sde: SDE, levels: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # concrete numbers while the caller is traced
        times = np.asarray(sde.time(jnp.asarray(levels, jnp.float32)))
    times = np.where(levels >= noise_level_at(sde, 1) * (1 - 1e-5), 1, np.minimum(times, 1))
    return np.append(times, 0).astype(np.float32)


def noise_level_at(sde: SDE, t: float) -> float:
    """The noise level of time t as a float, also while the caller is traced."""
    with jax.ensure_compile_time_eval():
        return float(sde.noise_level(jnp.float32(t)))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"A time grid has {steps} steps; wanted 1 or more.")


def _check_levels(sde: SDE, steps: int, sigma_max: float, sigma_min: float) -> None:
    _check_steps(steps)
    low, high = noise_level_at(sde, 0), noise_level_at(sde, 1)
    if not low * (1 + 1e-5) < sigma_min <= sigma_max <= high * (1 + 1e-5):
        raise InputError(
            f"A time grid has noise levels from {sigma_max:g} to {sigma_min:g}; wanted at "
            f"most {high:g}, that of t = 1, down to a level above {low:g}, that of "
            "t = 0, where no network is ever evaluated."
        )


def check_times(times: np.ndarray) -> np.ndarray:
    """`times` [T + 1], if they decrease within [0, 1] and none but the last is 0.

    Raises:
        InputError: they do not; a network has no answer at t = 0.
    """
    times = np.asarray(times)
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"A time grid has {times.size} times; wanted two or more.")
    if not times[:-1].min() > 0:
        raise InputError(
            f"A time grid reaches {times[:-1].min():g} before its end; the network "
            "would be evaluated there, and only the last time may be 0."
        )
    if not (times[0] <= 1 and times[-1] >= 0 and np.all(np.diff(times) < 0)):
        raise InputError(
            f"A time grid goes from {times[0]:g} to {times[-1]:g}; wanted times that "
            "decrease at every step, within [0, 1]."
        )
    return times


def _uniform(sde: SDE, steps: int, sigma_max: float, sigma_min: float) -> np.ndarray:
    _check_levels(sde, steps, sigma_max, sigma_max)
    return _times_at(sde, np.array([sigma_max]))[0] * uniform_times(steps)


# The grids that a user may name, functions of (sde, steps, sigma_max, sigma_min). The
# uniform grid goes from the time of sigma_max to 0 in equal steps, without a sigma_min.
LEVEL_GRIDS = {"log_uniform": log_uniform_times, "karras": karras_times}
GRIDS = {"uniform": _uniform, **LEVEL_GRIDS}
