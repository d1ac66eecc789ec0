"""Drawing the missing modalities: time grids, one step a function, one `lax.scan`.

A sampler is numerics and nothing else: it meets an SDE and `denoise(x, t)`, no network,
no configuration. It moves all M channels; the caller's `Completion.fill` puts the seen
ones back, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.sde import SDE, draw_noise, per_example, score_from_denoised
from ummcsgm.types import Array, Denoiser, Images, Keys, Times

Step = Callable[
    [SDE, Denoiser, Keys, Images, Times, Times], tuple[Images, Images]
]  # (sde, denoise, keys, x, t, t_next) -> (x, mean)


def uniform_times(steps: int) -> np.ndarray:
    """1, 1 - 1/T, ..., 1/T, 0 for T steps: the grid of Algorithm 1, [T + 1].

    The denoiser is called at every time but the last, so never at 0.
    """
    return (np.arange(steps, -1, -1) / steps).astype(np.float32)


def euler_maruyama(
    sde: SDE, denoise: Denoiser, keys: Keys, x: Images, t: Times, t_next: Times
) -> tuple[Images, Images]:
    """One step of the reverse SDE, eq. 4: on `uniform_times` it is Algorithm 1.

        mean <- x - f(t) x dt + g(t)^2 score dt,    x <- mean + g(t) sqrt(dt) n

    dt = t - t_next. Returns (x, mean).
    """
    drift = per_example(sde.drift(t), x)
    diffusion = per_example(sde.diffusion(t), x)
    dt = per_example(t - t_next, x)
    score = score_from_denoised(sde, x, denoise(x, t), t)
    mean = x - drift * x * dt + jnp.square(diffusion) * score * dt
    return mean + diffusion * jnp.sqrt(dt) * draw_noise(keys, x), mean


def draw_prior(keys: Keys, sde: SDE, like: Images) -> Images:
    """x ~ p_1, the first line of Algorithm 1, shaped like `like`."""
    return sde.prior_std() * draw_noise(keys, like)


def sample(
    keys: Keys, sde: SDE, denoise: Denoiser, x: Images, times: Array, step: Step
) -> tuple[Images, Images]:
    """x at the first of the decreasing `times` brought to the last: one `lax.scan`.

    Returns (x, mean) of the last step: for `euler_maruyama`, x is Algorithm 1 to the
    letter and the mean is it without its last noise. Step i of an example draws from
    fold_in(its key, i), whatever else is in the batch. One network evaluation a time
    but the last for a one-evaluation step.
    """
    times = jnp.asarray(times, x.dtype)

    def advance(carry: tuple[Images, Images], now: tuple) -> tuple[Any, None]:
        index, t, t_next = now
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        batch = x.shape[:1]
        t, t_next = jnp.broadcast_to(t, batch), jnp.broadcast_to(t_next, batch)
        return step(sde, denoise, step_keys, carry[0], t, t_next), None

    grid = (jnp.arange(1, len(times)), times[:-1], times[1:])
    return jax.lax.scan(advance, (x, x), grid)[0]


def algorithm1(
    keys: Keys, sde: SDE, denoise: Denoiser, like: Images, steps: int
) -> Images:
    """A draw of all M channels by the paper's Algorithm 1, in `steps` steps (1000)."""
    prior_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    x = draw_prior(prior_keys, sde, like)
    return sample(keys, sde, denoise, x, uniform_times(steps), euler_maruyama)[0]


def address_keys(seed: int, addresses: Array) -> Keys:
    """[B] keys of (seed, address), for [B, n] rows of small non-negative integers.

    (subject, slice, draw) in sampling: a row's draw depends on its address alone, not
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


def in_microbatches(answer: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """`answer(*arrays)` for any number of rows but 0, computed `size` rows at a time.

    Slices x questions x draws flattened into one leading axis go in; one array with
    that axis comes out, as numpy. The last microbatch is padded with copies of its last
    row, so `answer` is compiled once; memory does not grow with the number of rows.
    """
    total = len(arrays[0])
    answers = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        answers.append(np.asarray(answer(*(array[rows] for array in arrays))))
    return np.concatenate(answers)[:total]
