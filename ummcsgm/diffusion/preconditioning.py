"""Network, parameters, SDE and condition -> denoise(x, t); and eq. 5.

With tau = std / mean the noise level and y = x / mean the images on the clean scale,
the network F gives on the missing modalities (Karras et al. 2022, table 1)

    denoise = c_skip y + c_out F(c_in y | b / data_std, A|B, ln(tau) / 4) c_skip = s^2 / (tau^2 +
    s^2),  c_out = tau s / sqrt(tau^2 + s^2), c_in = 1 / sqrt(tau^2 + s^2),  s = data_std

which for VP and s = 1 is v-prediction, F = -v. On the seen modalities denoise is b.
With a variance head u, the log variance of F, the variance of denoise is c_out^2 exp(u).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp

from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.diffusion.sde import SDE, per_example, score_from_denoised
from ummcsgm.types import Array, Denoiser, Estimate, Images, Missing, Params, Stacks, Times


class Network(Protocol):
    """What this file needs of a network, such as `models.mm_csn.MMCSN`."""

    def conditioning_cache(
        self, params: Params, seen: Images, neighbours: Array, missing: Missing
    ) -> Any: ...
    def apply(
        self, params: Params, images: Stacks, missing: Missing, log_level: Times, cache: Any
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """What does not change in training: network, forward process, scale of the data.

    `data_std` is the standard deviation of clean images, background included.
    """

    network: Network
    sde: SDE
    data_std: float


def make_denoise(model: ScoreModel, params: Params, condition: Condition) -> Denoiser:
    """`denoise(x, t)`: E[clean images | x, b], [B, H, W, M]; b itself where seen.

    What `x` holds on the seen modalities is ignored. Any t in (0, 1]; never 0.
    """
    estimate = make_estimate(model, params, condition)
    return lambda x, t: estimate(x, t).mean


def make_estimate(
    model: ScoreModel, params: Params, condition: Condition
) -> Callable[[Images, Times], Estimate]:
    """`estimate(x, t)`: the denoised images and the variance of their error, which is
    c_out^2 exp(u) of the network's variance head u, and None without one."""
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
        image, log_variance = output[..., :modalities], output[..., modalities:]
        mean = condition.fill(skip * clean_scale + out * image)
        if not log_variance.shape[-1]:
            return Estimate(mean, None)
        variance = jnp.square(out) * jnp.exp(log_variance)
        variance = jnp.where(per_modality(condition.missing), variance, 0)
        return Estimate(mean, variance)

    return estimate


def mm_csn_output(sde: SDE, denoise: Denoiser, condition: Condition, x: Images, t: Times) -> Images:
    """NN((a_t, b), t, A|B) = (a_t, b) + (score of a_t given b, 0): the paper's eq. 5.

    Bitwise b on the seen modalities. Any t in (0, 1]; the score does not exist at 0.
    """
    score = score_from_denoised(sde, x, denoise(x, t), t)
    return condition.fill(x + score)


def posterior_mean(denoise: Denoiser, condition: Condition) -> Images:
    """E[a | b] in ONE network evaluation, and b: the denoised images of a mean query.

    With t = 1 and a_t = 0, b is all that is known of a. `loss.draw_dsm_inputs` trains on
    such examples.
    """
    return condition.fill(denoise(*_mean_query(condition)))


def posterior_moments(
    estimate: Callable[[Images, Times], Estimate], condition: Condition
) -> Estimate:
    """Mean and variance of p(a | b) in ONE network evaluation; b and 0 where seen.

    `estimate` is that of `make_estimate`.
    """
    return estimate(*_mean_query(condition))


def _mean_query(condition: Condition) -> tuple[Images, Times]:
    zeros = jnp.zeros_like(condition.seen)
    return zeros, jnp.ones(zeros.shape[:1], zeros.dtype)
