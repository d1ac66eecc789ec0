"""Time grids: the decreasing times that a sampler steps through.

The last time of a grid for drawing is 0, which is clean: the step to it ends in the
denoised images of the time before, and no network is ever evaluated at it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.sde import SDE
from ummcsgm.types import InputError


def uniform_times(steps: int) -> np.ndarray:
    """1, 1 - 1/T, ..., 1/T, 0 for T steps: the grid of Algorithm 1, [T + 1].

    The denoiser is called at every time but the last, so never at 0.
    """
    return (np.arange(steps, -1, -1) / steps).astype(np.float32)


def log_uniform_times(
    sde: SDE, steps: int, highest: float, lowest: float
) -> np.ndarray:
    """The times of `steps` noise levels in geometric progression, then 0: [steps + 1].

    From `highest` to `lowest`; a step multiplies the noise by the same factor.

    Raises:
        InputError: the SDE does not reach a level at a time above 0.
    """
    return _times_at(sde, np.geomspace(highest, lowest, steps))


def karras_times(
    sde: SDE, steps: int, highest: float, lowest: float, rho: float = 7.0
) -> np.ndarray:
    """The times of `steps` noise levels even in level^(1 / rho), then 0: [steps + 1].

    Karras et al. 2022, eq. 5.

    Raises:
        InputError: the SDE does not reach a level at a time above 0.
    """
    roots = np.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps)
    return _times_at(sde, roots**rho)


def _times_at(sde: SDE, levels: np.ndarray) -> np.ndarray:
    """The times of decreasing noise levels, then 0."""
    with jax.ensure_compile_time_eval():  # numbers also where a caller is being traced
        least, most = (float(sde.noise_level(jnp.float32(t))) for t in (0, 1))
        times = np.asarray(sde.time(jnp.asarray(levels, jnp.float32)))
    if not (levels[-1] > least and levels[0] <= most * (1 + 1e-5)):
        raise InputError(
            f"Noise levels from {levels[0]:.6g} to {levels[-1]:.6g} are asked for; "
            f"wanted at most {most:.6g}, that of t = 1, and above {least:.6g}, that of "
            "t = 0, where no network is ever evaluated."
        )
    times = np.where(levels >= most * (1 - 1e-5), 1, np.minimum(times, 1))
    return np.append(times, 0).astype(np.float32)


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


def _uniform(sde: SDE, steps: int, highest: float, lowest: float) -> np.ndarray:
    return _times_at(sde, np.array([highest]))[0] * uniform_times(steps)


# What a user may name; each takes (sde, steps, highest, lowest), and the uniform grid
# has no lowest level: it is even from the time of the highest to 0.
GRIDS = {
    "uniform": _uniform,
    "log_uniform": log_uniform_times,
    "karras": karras_times,
}
