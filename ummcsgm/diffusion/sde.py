"""The forward process, and nothing else: an SDE is functions of time.

    dx = drift(t) x dt + diffusion(t) dw,        t in [0, 1]              (paper, eq. 1)
    x_t | x_0  ~  N(mean(t) x_0, std(t)^2 I)

so that, for every process here, drift = d ln mean / dt and
diffusion^2 = d std^2 / dt - 2 drift std^2. The noise level std / mean is the standard
deviation of the noise on the clean scale; it grows with t, and `time` is its inverse.
A process never sees an image, a key, a network or a number of steps.

Everything is written with expm1, log1p, asinh and atan so that float32 is enough down
to a noise level of 0.003; sqrt(1 - exp(-B)) would be wrong by 2 % at t = 1e-5.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from ummcsgm.types import Images, Keys, Times


class SDE(Protocol):
    """A linear SDE with a scalar diffusion; every method maps times to times' shape."""

    def drift(self, t: Times) -> Times: ...
    def diffusion(self, t: Times) -> Times: ...
    def mean(self, t: Times) -> Times: ...
    def std(self, t: Times) -> Times: ...
    def noise_level(self, t: Times) -> Times: ...
    def time(self, noise_level: Times) -> Times: ...
    def prior_std(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min), shared by VP and sub-VP."""

    beta_min: float
    beta_max: float

    def beta(self, t: Times) -> Times:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Times) -> Times:
        """B(t), the integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse_integral(self, integral: Times) -> Times:
        """The t with B(t) = integral, by the root that does not cancel near 0."""
        slope = 2 * (self.beta_max - self.beta_min)
        root = jnp.sqrt(self.beta_min**2 + slope * integral)
        return 2 * integral / (self.beta_min + root)

    def drift(self, t: Times) -> Times:
        return -0.5 * self.beta(t)

    def mean(self, t: Times) -> Times:
        return jnp.exp(-0.5 * self.integral(t))

    def prior_std(self) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving (Song et al. 2021, eq. 32): a clean unit variance stays 1."""

    def diffusion(self, t: Times) -> Times:
        return jnp.sqrt(self.beta(t))

    def std(self, t: Times) -> Times:
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def noise_level(self, t: Times) -> Times:
        return jnp.sqrt(jnp.expm1(self.integral(t)))

    def time(self, noise_level: Times) -> Times:
        return self.inverse_integral(jnp.log1p(jnp.square(noise_level)))


@dataclasses.dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP (Song et al. 2021, eq. 29): the mean of VP, a variance below it."""

    def diffusion(self, t: Times) -> Times:
        return jnp.sqrt(self.beta(t) * -jnp.expm1(-2 * self.integral(t)))

    def std(self, t: Times) -> Times:
        return -jnp.expm1(-self.integral(t))

    def noise_level(self, t: Times) -> Times:
        return 2 * jnp.sinh(0.5 * self.integral(t))

    def time(self, noise_level: Times) -> Times:
        return self.inverse_integral(2 * jnp.arcsinh(0.5 * noise_level))


@dataclasses.dataclass(frozen=True)
class VE:
    """Variance exploding (Song et al. 2021, eq. 31): the mean stands still.

    Its noise level is geometric in t and is sigma_min, not 0, at t = 0: the process
    starts from images that already carry that much noise.
    """

    sigma_min: float
    sigma_max: float

    def drift(self, t: Times) -> Times:
        return jnp.zeros_like(t)

    def diffusion(self, t: Times) -> Times:
        return self.std(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def mean(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def std(self, t: Times) -> Times:
        ratio = self.sigma_max / self.sigma_min
        return self.sigma_min * jnp.exp(t * math.log(ratio))

    def noise_level(self, t: Times) -> Times:
        return self.std(t)

    def time(self, noise_level: Times) -> Times:
        ratio = self.sigma_max / self.sigma_min
        return jnp.log(noise_level / self.sigma_min) / math.log(ratio)

    def prior_std(self) -> float:
        return self.sigma_max


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Cosine VP (Nichol and Dhariwal 2021): mean and std are a cosine and a sine.

    The angle stops short of pi / 2 at the noise level `noise_level_max`, since at
    pi / 2 the noise level and the drift are infinite.
    """

    noise_level_max: float

    def speed(self) -> float:
        """The angle at t = 1, in radians."""
        return math.atan(self.noise_level_max)

    def drift(self, t: Times) -> Times:
        return -self.speed() * jnp.tan(self.speed() * t)

    def diffusion(self, t: Times) -> Times:
        return jnp.sqrt(2 * self.speed() * jnp.tan(self.speed() * t))

    def mean(self, t: Times) -> Times:
        return jnp.cos(self.speed() * t)

    def std(self, t: Times) -> Times:
        return jnp.sin(self.speed() * t)

    def noise_level(self, t: Times) -> Times:
        return jnp.tan(self.speed() * t)

    def time(self, noise_level: Times) -> Times:
        return jnp.arctan(noise_level) / self.speed()

    def prior_std(self) -> float:
        return 1.0


def per_example(values: Times, images: Images) -> Images:
    """[B] values shaped [B, 1, ..., 1] so that they broadcast over [B, ...] images."""
    return jnp.reshape(values, values.shape + (1,) * (images.ndim - values.ndim))


def draw_noise(keys: Keys, like: Images) -> Images:
    """Standard normal noise shaped like `like`, each example by a key of its own.

    So an example's noise does not depend on its batch-mates.
    """
    shape, dtype = like.shape[1:], like.dtype
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def perturb(sde: SDE, images: Images, t: Times, noise: Images) -> Images:
    """A draw of x_t | x_0 = images, given standard normal noise (paper, sec. 2.1)."""
    mean, std = per_example(sde.mean(t), images), per_example(sde.std(t), images)
    return mean * images + std * noise


def score_from_denoised(sde: SDE, x: Images, denoised: Images, t: Times) -> Images:
    """grad log p_t(x), by Tweedie: (mean denoised - x) / std^2. Never at t = 0."""
    mean, std = per_example(sde.mean(t), x), per_example(sde.std(t), x)
    return (mean * denoised - x) / jnp.square(std)


def denoised_from_score(sde: SDE, x: Images, score: Images, t: Times) -> Images:
    """E[x_0 | x_t = x], the inverse of `score_from_denoised`."""
    mean, std = per_example(sde.mean(t), x), per_example(sde.std(t), x)
    return (x + jnp.square(std) * score) / mean


def noise_from_denoised(sde: SDE, x: Images, denoised: Images, t: Times) -> Images:
    """E[noise | x_t = x], the noise prediction: (x - mean denoised) / std."""
    mean, std = per_example(sde.mean(t), x), per_example(sde.std(t), x)
    return (x - mean * denoised) / std


def velocity_from_denoised(sde: SDE, x: Images, denoised: Images, t: Times) -> Images:
    """mean noise - std denoised, the v prediction (Salimans and Ho 2022)."""
    mean, std = per_example(sde.mean(t), x), per_example(sde.std(t), x)
    return mean * noise_from_denoised(sde, x, denoised, t) - std * denoised
