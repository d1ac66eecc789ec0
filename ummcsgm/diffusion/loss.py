"""Eqs. 6-7: conditional denoising score matching, per example, on the missing only.

A weighting is one number w(t) for each example, on the squared error of the denoised
image; the score's error is a multiple of it (`score_from_denoised`):

    score error = (mean / std^2) denoised error

`weigh_paper` is eq. 6, except that voxels of a slice are averaged where the paper sums
(`Objective.sum_over_missing` sums over modalities, as it does). All weightings have the
same minimiser for every t and A|B; they differ in where a finite network is accurate.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from ummcsgm.diffusion.missingness import (
    mask_inputs,
    per_modality,
    sample_missing_patterns,
    stratified_uniforms,
)
from ummcsgm.diffusion.preconditioning import ScoreModel, make_estimate
from ummcsgm.diffusion.sde import SDE, draw_noise, perturb
from ummcsgm.types import (
    Array,
    Batch,
    Denoiser,
    Estimate,
    Images,
    Losses,
    Missing,
    Params,
    Stacks,
    Times,
)

Weighting = Callable[[SDE, Times, float], Times]


def weigh_paper(sde: SDE, t: Times, data_std: float) -> Times:
    """Eq. 6: 1/2 on the squared error of the score."""
    return 0.5 * jnp.square(sde.mean(t)) / sde.std(t) ** 4


def weigh_std2(sde: SDE, t: Times, data_std: float) -> Times:
    """std^2 on the squared error of the score: 1 on that of the predicted noise."""
    return jnp.square(sde.mean(t) / sde.std(t))


def weigh_likelihood(sde: SDE, t: Times, data_std: float) -> Times:
    """diffusion^2 on the squared error of the score: bounds the likelihood (Song et al. 2021b)."""
    return jnp.square(sde.diffusion(t) * sde.mean(t) / jnp.square(sde.std(t)))


def weigh_edm(sde: SDE, t: Times, data_std: float) -> Times:
    """1 on the network's own output, at every t (Karras et al. 2022, eq. 8)."""
    variance = jnp.square(sde.noise_level(t))
    return (variance + data_std**2) / (variance * data_std**2)


def make_weigh_conditional(posterior_std: float) -> Weighting:
    """`weigh_edm` for images known to within `posterior_std`, given what is seen.

    All noise levels far above it teach the same, the mean, and have equal weight. With
    data_std instead, levels between the two weigh less by up to the square of their
    ratio, and draws are not centred on the mean.
    """
    return lambda sde, t, data_std: weigh_edm(sde, t, posterior_std)


def weigh_min_snr(sde: SDE, t: Times, data_std: float) -> Times:
    """min(signal to noise, 5) on the denoised image (Hang et al. 2023)."""
    return jnp.minimum(sde.noise_level(t) ** -2.0, 5.0)


class NoiseProposal(NamedTuple):
    """A distribution of times: log-normal noise levels mixed with uniform times.

    The fraction `uniform_fraction` is t ~ U(eps, 1) (1 is the paper); the rest has ln(noise level)
    ~ N(log_sigma_mean, log_sigma_std^2). No level is below `sigma_min`, whose time is eps. The
    fraction `mean_fraction` of the examples asks for the mean instead: t = 1 and a_t = 0. Their
    loss is multiplied by `mean_weight`, because it is much smaller than that of examples with
    little noise, whose gradient variance would dominate in a short run.
    """

    uniform_fraction: float
    log_sigma_mean: float
    log_sigma_std: float
    sigma_min: float
    mean_fraction: float
    mean_weight: float


def times_from_uniform(sde: SDE, proposal: NoiseProposal, uniforms: Array) -> Times:
    """[B] times of the proposal, by inverse transform of [B] uniforms in [0, 1)."""
    fraction = proposal.uniform_fraction
    # VE's smallest level may be above the proposal's.
    level_min = jnp.maximum(proposal.sigma_min, sde.noise_level(jnp.float32(0.0)))
    eps = jnp.maximum(sde.time(level_min), 0.0)
    uniform_times = eps + (1 - eps) * jnp.clip(uniforms / max(fraction, 1e-6), 0, 1)
    quantile = jnp.clip((uniforms - fraction) / max(1 - fraction, 1e-6), 1e-6, 1 - 1e-6)
    level = jnp.exp(proposal.log_sigma_mean + proposal.log_sigma_std * ndtri(quantile))
    level_max = sde.noise_level(jnp.float32(1.0))
    normal_times = sde.time(jnp.clip(level, level_min, level_max))
    return jnp.clip(jnp.where(uniforms < fraction, uniform_times, normal_times), eps, 1.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Eq. 7: how patterns and times are drawn, and how errors are weighted."""

    patterns: np.ndarray  # [N, M] missing patterns
    probabilities: np.ndarray  # [N]
    proposal: NoiseProposal
    weighting: Weighting
    sum_over_missing: bool  # sum over the missing modalities, as in eq. 6; else average
    patterns_per_image: int = 1  # examples made of each image in a step


class DSMInputs(NamedTuple):
    """What is drawn for the examples of a batch."""

    scored: Missing  # A: the modalities that the loss counts
    missing: Missing  # A, and what the subject was never scanned with
    t: Times
    noise: Images
    mean_query: Array  # [B] bool: asks for the mean, with t = 1 and a_t = 0


def draw_dsm_inputs(
    key: jax.Array, objective: Objective, sde: SDE, batch: Batch, index: Array, total: int
) -> DSMInputs:
    """The inputs of the examples `index` [B] of a global batch of `total`.

    Patterns, times and mean queries come from stratified uniforms over the global batch,
    each shuffled with its own key: independent, evenly spread, and the same however the
    batch is divided over devices.
    """
    *keys, key_noise = jax.random.split(key, 4)
    uniforms = (stratified_uniforms(stratum_key, total)[index] for stratum_key in keys)
    pattern_uniforms, time_uniforms, mean_uniforms = uniforms
    mean_query = mean_uniforms < objective.proposal.mean_fraction
    t = times_from_uniform(sde, objective.proposal, time_uniforms)
    scored = sample_missing_patterns(
        pattern_uniforms, objective.patterns, objective.probabilities, batch.present
    )
    noise_keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, index)
    return DSMInputs(
        scored & batch.valid[:, None],
        scored | ~batch.present,
        jnp.where(mean_query, 1.0, t),
        draw_noise(noise_keys, batch.images[..., : batch.present.shape[-1]]),
        mean_query,
    )


def dsm_loss(
    denoise: Denoiser, images: Images, inputs: DSMInputs, sde: SDE, weight: Times
) -> Losses:
    """Eq. 6 for each example: the weighted squared error, mean over missing voxels.

    [B]; 0, with a gradient of exactly 0, where nothing is scored. The gradient on seen
    modalities is exactly 0. Modalities that a subject was never scanned with are missing
    and have no a_t: 0 at all times.
    """
    mean = denoise(_noisy_images(images, inputs, sde), inputs.t)
    return _weighted_squared_error(mean, images, inputs, weight)


def variance_nll(estimate: Estimate, images: Images, inputs: DSMInputs) -> Losses:
    """[B] the negative log-likelihood of the predicted variance v, up to a constant:

        (error^2 / v + ln v) / 2

    mean over missing voxels; 0 where nothing is scored. Its minimum is where v is the
    mean squared error; the error itself has no gradient from it.
    """
    mean, variance = estimate
    error = _zero_unscored(jax.lax.stop_gradient(mean) - images, inputs)
    variance = jnp.where(per_modality(inputs.scored), variance, 1.0)
    return _mean_over_scored(0.5 * (jnp.square(error) / variance + jnp.log(variance)), inputs)


def dsm_and_variance_losses(
    model: ScoreModel, params: Params, objective: Objective, images: Stacks, inputs: DSMInputs
) -> tuple[Losses, Losses | None]:
    """([B], [B]): `dsm_loss` of the network and `variance_nll` of its variance head, or None
    without one; from one evaluation, and neither has a gradient on what the other trains.

    A mean query is weighted by `weigh_edm` times `mean_weight`, whatever the weighting:
    at t = 1 the others almost vanish, and the mean would never be learned. The variance
    loss is unweighted: scaling the images changes it only by a constant.
    """
    condition = mask_inputs(images, inputs.missing)
    images = images[..., : inputs.missing.shape[-1]]
    estimate = make_estimate(model, params, condition)
    weight = objective.weighting(model.sde, inputs.t, model.data_std)
    mean_weight = weigh_edm(model.sde, inputs.t, model.data_std)
    if objective.sum_over_missing:
        weight = weight * inputs.scored.sum(axis=1)
    mean_weight = mean_weight * objective.proposal.mean_weight
    weight = jnp.where(inputs.mean_query, mean_weight, weight)
    predicted = estimate(_noisy_images(images, inputs, model.sde), inputs.t)
    loss = _weighted_squared_error(predicted.mean, images, inputs, weight)
    if predicted.variance is None:
        return loss, None
    return loss, variance_nll(predicted, images, inputs)


def _noisy_images(images: Images, inputs: DSMInputs, sde: SDE) -> Images:
    """a_t; 0 in a mean query and where a subject was never scanned."""
    x = perturb(sde, images, inputs.t, inputs.noise)
    noisy = inputs.scored & ~inputs.mean_query[:, None]
    return jnp.where(per_modality(noisy), x, 0.0)


def _weighted_squared_error(
    mean: Images, images: Images, inputs: DSMInputs, weight: Times
) -> Losses:
    return weight * _mean_over_scored(jnp.square(_zero_unscored(mean - images, inputs)), inputs)


def _zero_unscored(values: Images, inputs: DSMInputs) -> Images:
    return jnp.where(per_modality(inputs.scored), values, 0.0)


def _mean_over_scored(values: Images, inputs: DSMInputs) -> Losses:
    """[B] the mean over scored voxels of values that are 0 elsewhere."""
    count = inputs.scored.sum(axis=1) * values[0, ..., 0].size
    return values.sum(axis=(1, 2, 3)) / jnp.maximum(count, 1)
