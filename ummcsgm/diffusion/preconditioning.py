"""Network, parameters, SDE and condition -> denoise(x, t); and eq. 5.

With tau = std / mean the noise level and y = x / mean the images on the clean scale, the network
F gives on the missing modalities, by the model's preconditioning, either

    edm     denoise = c_skip y + c_out F(c_in y | b / s, A|B, ln(tau) / 4)
            c_skip = s^2 / (tau^2 + s^2), c_out = tau s / sqrt(tau^2 + s^2),
            c_in = 1 / sqrt(tau^2 + s^2),  s = data_std             (Karras et al. 2022, table 1)
    mean    denoise = m + the same of r = y - m, in each Haar band with the band's own s

where m is the network's mean, computed from b and A|B alone, once for all x and t. For VP and
s = 1 `edm` is v-prediction, F = -v. `mean` has the posterior in place of the prior: s is the
standard deviation of a residual's band, measured in training by how many modalities are missing,
and F has to find what is not fixed by b, instead of removing what is. On the seen modalities
denoise is b. The SDE, the score and eq. 5 are the same for both.

With a variance head u, the log variance of F, the variance of denoise is c_out^2 exp(u).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ummcsgm.diffusion.bands import band_factors, map_bands
from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.diffusion.sde import SDE, per_example, score_from_denoised
from ummcsgm.types import Array, Denoiser, Estimate, Images, Missing, Params, Stacks, Times
from ummcsgm.utils.haar import haar, inverse_haar

PRECONDITIONINGS = ("edm", "mean")
SMALLEST_POWER = 1e-8  # of a band: that of a modality that never was missing is 0


class Network(Protocol):
    """What this file needs of a network for `edm`, such as `models.mm_csn.MMCSN`."""

    def conditioning_cache(
        self, params: Params, seen: Images, neighbours: Array, missing: Missing
    ) -> Any: ...
    def apply(
        self, params: Params, images: Stacks, missing: Missing, log_level: Times, cache: Any
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """What does not change in training: network, forward process, scale of the data.

    `data_std` is the standard deviation of clean images, background included. The network of
    `mean` has the methods `encode` and `denoise` (`models.residual_mm_csn`).
    """

    network: Network
    sde: SDE
    data_std: float
    preconditioning: str = "edm"


class Encoding(NamedTuple):
    """What `mean` computes of a condition, once for all noise levels, steps and draws.

    The estimate of the clean images given b alone, and the features of b for the network.
    """

    moments: Estimate
    features: tuple[Array, ...]


class Posterior(NamedTuple):
    """p(a | b) as the network has it.

    `estimate(x, t)` is the denoised images, with the variance of their error where the network
    predicts it; `moments()` the mean and variance given b alone.
    """

    estimate: Callable[[Images, Times], Estimate]
    moments: Callable[[], Estimate]


def init_params(model: ScoreModel, key: jax.Array, grid: tuple[int, int]) -> Params:
    """The parameters before the first step, for images of `grid` pixels."""
    network = model.network
    images = jnp.zeros((1, *grid, network.channels()))
    missing = jnp.zeros((1, network.modalities), bool)
    params = network.init(key, images, missing, jnp.zeros(1))
    if model.preconditioning == "edm":
        return params
    sizes = modalities = network.modalities  # sizes of the missing set, from 1
    shape = (sizes, band_levels(network) + 1, modalities)
    power = jnp.full(shape, model.data_std**2, jnp.float32)
    deviation = jnp.ones((sizes, modalities), jnp.float32)
    return params | {"statistics": {"band_power": power, "deviation": deviation}}


def band_levels(network: Network) -> int:
    """The Haar levels of `mean`: down to the coarsest grid of the network."""
    return network.multiple().bit_length() - 1


def band_power(params: Params, missing: Missing) -> Array:
    """[B, bands, M] the mean square of a residual's coefficients where as many modalities are
    missing, as training measured it. No gradient moves it."""
    power = jax.lax.stop_gradient(params["statistics"]["band_power"])
    return jnp.maximum(power[missing_index(missing)], SMALLEST_POWER)


def missing_index(missing: Missing) -> Array:
    """[B] the index of each example's statistics: the number of missing modalities, less 1."""
    return jnp.maximum(missing.sum(axis=-1) - 1, 0)


def make_denoise(model: ScoreModel, params: Params, condition: Condition) -> Denoiser:
    """`denoise(x, t)`: E[clean images | x, b], [B, H, W, M]; b itself where seen.

    What `x` holds on the seen modalities is ignored. Any t in (0, 1]; never 0.
    """
    estimate = make_posterior(model, params, condition).estimate
    return lambda x, t: estimate(x, t).mean


def make_posterior(
    model: ScoreModel, params: Params, condition: Condition, encoding: Encoding | None = None
) -> Posterior:
    """The posterior of a condition; `encoding` is that of `encode`, where it is known.

    With `mean`, x may have K rows for each row of the condition, K at a time.
    """
    if model.preconditioning == "edm":
        estimate = _edm_estimate(model, params, condition)
        return Posterior(estimate, lambda: estimate(*_mean_query(condition)))
    encoding = encode(model, params, condition) if encoding is None else encoding
    return Posterior(
        _estimate_about_mean(model, params, condition, encoding), lambda: encoding.moments
    )


def _edm_estimate(
    model: ScoreModel, params: Params, condition: Condition
) -> Callable[[Images, Times], Estimate]:
    sde, data_variance = model.sde, model.data_std**2
    seen, neighbours = condition.seen / model.data_std, condition.neighbours / model.data_std
    # Here and not in `estimate`, which a sampler calls many times.
    cache = model.network.conditioning_cache(params, seen, neighbours, condition.missing)

    def estimate(x: Images, t: Times) -> Estimate:
        level = sde.noise_level(t)
        noise = per_example(level, x)
        total = jnp.sqrt(jnp.square(noise) + data_variance)
        clean_scale = x / per_example(sde.mean(t), x)
        inputs = jnp.where(per_modality(condition.missing), clean_scale / total, seen)
        inputs = jnp.concatenate([inputs, neighbours], axis=-1)
        output = model.network.apply(
            params, inputs, condition.missing, 0.25 * jnp.log(level), cache
        )
        skip, out = data_variance / jnp.square(total), noise * model.data_std / total
        modalities = x.shape[-1]
        mean = condition.fill(skip * clean_scale + out * output[..., :modalities])
        return _with_variance(condition, mean, out, output[..., modalities:])

    return estimate


def _with_variance(condition: Condition, mean: Images, out: Array, log_variance: Array) -> Estimate:
    if not log_variance.shape[-1]:
        return Estimate(mean, None)
    variance = jnp.square(out) * jnp.exp(log_variance)
    return Estimate(mean, jnp.where(per_modality(condition.missing), variance, 0))


def encode(model: ScoreModel, params: Params, condition: Condition) -> Encoding:
    """The `mean` preconditioning's encoding of a condition.

    Its moments are those of the mean network at t = 1 with a_t = 0, as `edm` has them.
    """
    seen = jnp.concatenate([condition.seen, condition.neighbours], axis=-1) / model.data_std
    level = model.sde.noise_level(jnp.ones(len(seen)))
    output, features = model.network.apply(
        params, seen, condition.missing, 0.25 * jnp.log(level), method="encode"
    )
    modalities = condition.missing.shape[-1]
    noise = per_example(level, output)
    out = noise * model.data_std / jnp.sqrt(jnp.square(noise) + model.data_std**2)
    mean = condition.fill(out * output[..., :modalities])
    return Encoding(_with_variance(condition, mean, out, output[..., modalities:]), features)


def _estimate_about_mean(
    model: ScoreModel, params: Params, condition: Condition, encoding: Encoding
) -> Callable[[Images, Times], Estimate]:
    sde, levels = model.sde, band_levels(model.network)
    mean = jax.lax.stop_gradient(encoding.moments.mean)
    powers = band_power(params, condition.missing)
    missing = per_modality(condition.missing)

    def estimate(x: Images, t: Times) -> Estimate:
        def rows(array: Array) -> Array:
            return jnp.repeat(array, len(x) // len(array), axis=0)

        level, centre = sde.noise_level(t), rows(mean)
        variance = jnp.square(level)
        residual = x / per_example(sde.mean(t), x) - centre
        coefficients = haar(jnp.where(rows(missing), residual, 0), levels)
        power = band_factors(rows(powers))

        def whiten(c: Array, p: Array) -> Array:
            return c * jax.lax.rsqrt(p + per_example(variance, c))

        output = model.network.apply(
            params,
            map_bands(whiten, coefficients, power),
            condition.missing,
            0.25 * jnp.log(level),
            encoding.features,
            method="denoise",
        )

        def combine(c: Array, f: Array, p: Array) -> Array:
            noise = per_example(variance, c)
            return p / (p + noise) * c + jnp.sqrt(p * noise / (p + noise)) * f

        shift = inverse_haar(map_bands(combine, coefficients, output, power))
        return Estimate(centre + jnp.where(rows(missing), shift, 0), None)

    return estimate


def mm_csn_output(sde: SDE, denoise: Denoiser, condition: Condition, x: Images, t: Times) -> Images:
    """NN((a_t, b), t, A|B) = (a_t, b) + (score of a_t given b, 0): the paper's eq. 5.

    Bitwise b on the seen modalities. Any t in (0, 1]; the score does not exist at 0.
    """
    score = score_from_denoised(sde, x, denoise(x, t), t)
    return condition.fill(x + score)


def _mean_query(condition: Condition) -> tuple[Images, Times]:
    zeros = jnp.zeros_like(condition.seen)
    return zeros, jnp.ones(zeros.shape[:1], zeros.dtype)
