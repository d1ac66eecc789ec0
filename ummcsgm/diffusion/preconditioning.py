"""network + params + SDE + Completion -> denoise(x, t); and eq. 5, exactly.

With tau = std / mean the noise level and y = x / mean the images on the clean scale,
the network F answers on the missing modalities (Karras et al. 2022, table 1)

    denoise = c_skip y + c_out F(c_in y | b / data_std, A|B, ln(tau) / 4)
    c_skip = s^2 / (tau^2 + s^2),  c_out = tau s / sqrt(tau^2 + s^2),
    c_in = 1 / sqrt(tau^2 + s^2),  s = data_std

which for VP and s = 1 is v-prediction, F = -v. On the seen modalities the answer is b.
Where the network has a second head u, the log variance of F, c_out^2 exp(u) is that of
the answer.
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
    """What stands still while parameters change: network, process, scale of the data.

    `data_std` is the standard deviation of clean images, background included.
    """

    network: Network
    sde: SDE
    data_std: float


def make_denoise(model: ScoreModel, params: Params, completion: Condition) -> Denoiser:
    """`denoise(x, t)`: E[clean images | x, b], [B, H, W, M]; b itself where seen.

    What `x` holds on the seen modalities is ignored. Any t in (0, 1]; never 0.
    """
    estimate = make_estimate(model, params, completion)
    return lambda x, t: estimate(x, t).mean


def make_estimate(
    model: ScoreModel, params: Params, completion: Condition
) -> Callable[[Images, Times], Estimate]:
    """`estimate(x, t)`: what `denoise` answers, and the variance of its error.

    The variance is c_out^2 exp(u), of the network's second head u; None without one.
    """
    sde, own = model.sde, model.data_std**2
    seen, neighbours = completion.seen / model.data_std, completion.neighbours / model.data_std
    # Here and not in `estimate`: a sampler evaluates that many times.
    once = model.network.conditioning_cache(params, seen, neighbours, completion.missing)

    def estimate(x: Images, t: Times) -> Estimate:
        level = sde.noise_level(t)
        noise = per_example(level, x)
        total = jnp.sqrt(jnp.square(noise) + own)
        clean_scale = x / per_example(sde.mean(t), x)
        inputs = jnp.where(per_modality(completion.missing), clean_scale / total, seen)
        inputs = jnp.concatenate([inputs, neighbours], axis=-1)
        answer = model.network.apply(
            params, inputs, completion.missing, 0.25 * jnp.log(level), once
        )
        skip, out = own / jnp.square(total), noise * model.data_std / total
        modalities = x.shape[-1]
        image, logs = answer[..., :modalities], answer[..., modalities:]
        mean = completion.fill(skip * clean_scale + out * image)
        if not logs.shape[-1]:
            return Estimate(mean, None)
        variance = jnp.square(out) * jnp.exp(logs)
        variance = jnp.where(per_modality(completion.missing), variance, 0)
        return Estimate(mean, variance)

    return estimate


def mm_csn_output(
    sde: SDE, denoise: Denoiser, completion: Condition, x: Images, t: Times
) -> Images:
    """NN((a_t, b), t, A|B) = (a_t, b) + (score of a_t given b, 0): the paper's eq. 5.

    Bitwise b on the seen modalities. Any t in (0, 1]; the score does not exist at 0.
    """
    score = score_from_denoised(sde, x, denoise(x, t), t)
    return completion.fill(x + score)


def posterior_mean(sde: SDE, denoise: Denoiser, completion: Condition) -> Images:
    """E[a | b] in ONE network evaluation, and b: the answer to the MMSE token.

    At t = 1 with a_t = 0 nothing is known of a but b. The token is one of the rows that
    `loss.draw_questions` trains on, so the answer needs no noise and is no draw.
    """
    return completion.fill(denoise(*_token(completion)))


def posterior_moments(
    estimate: Callable[[Images, Times], Estimate], completion: Condition
) -> Estimate:
    """Mean and variance of p(a | b) in ONE network evaluation; b, and 0 where seen.

    The answer of `make_estimate`'s function to the token of `posterior_mean`.
    """
    return estimate(*_token(completion))


def _token(completion: Condition) -> tuple[Images, Times]:
    zeros = jnp.zeros_like(completion.seen)
    return zeros, jnp.ones(zeros.shape[:1], zeros.dtype)
