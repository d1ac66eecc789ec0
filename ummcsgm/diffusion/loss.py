"""Eqs. 6-7: conditional denoising score matching, per example, on the missing only.

A weighting is one number w(t) for each example, on the squared error of the denoised
image; the score's error is a multiple of it (`score_from_denoised`):

    score error = (mean / std^2) denoised error

`weigh_paper` is eq. 6, except that voxels of a slice are averaged where the paper sums
(`Objective.sum_over_missing` sums over modalities, as it does). All weightings have the
same minimiser for every t and A|B; they differ in where a finite network is accurate.
`weigh_bands` is one number for each Haar band instead, which has the same minimiser too.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from ummcsgm.diffusion.bands import (
    band_factors,
    band_means,
    band_sizes,
    largest_deviation,
    map_bands,
)
from ummcsgm.diffusion.missingness import (
    mask_inputs,
    per_modality,
    sample_missing_patterns,
    stratified_uniforms,
)
from ummcsgm.diffusion.preconditioning import (
    Posterior,
    ScoreModel,
    band_levels,
    band_power,
    make_posterior,
    missing_index,
)
from ummcsgm.diffusion.sde import SDE, draw_noise, per_example, perturb
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
from ummcsgm.utils.haar import haar

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
    """A distribution of times: uniform times mixed with noise levels.

    The fraction `uniform_fraction` is t ~ U(eps, 1) (1 is the paper). The rest has ln(noise level)
    ~ N(log_sigma_mean, log_sigma_std^2); or, with a `sigma_max_factor`, noise levels log-uniform
    from `sigma_min` to so many posterior scales, see `posterior_scale`. No level is below
    `sigma_min`, whose time is eps. The fraction `mean_fraction` of the examples asks for the mean
    instead: t = 1 and a_t = 0. Their loss is multiplied by `mean_weight`, because it is much
    smaller than that of examples with little noise, whose gradient variance would dominate in a
    short run.
    """

    uniform_fraction: float
    log_sigma_mean: float
    log_sigma_std: float
    sigma_min: float
    sigma_max_factor: float  # 0: log-normal
    mean_fraction: float
    mean_weight: float


def times_from_uniform(
    sde: SDE, proposal: NoiseProposal, uniforms: Array, scale: Array | float = 1.0
) -> Times:
    """[B] times of the proposal, by inverse transform of [B] uniforms in [0, 1); `scale` is the
    posterior's."""
    fraction = proposal.uniform_fraction
    # VE's smallest level may be above the proposal's.
    level_min = jnp.maximum(proposal.sigma_min, sde.noise_level(jnp.float32(0.0)))
    eps = jnp.maximum(sde.time(level_min), 0.0)
    uniform_times = eps + (1 - eps) * jnp.clip(uniforms / max(fraction, 1e-6), 0, 1)
    quantile = jnp.clip((uniforms - fraction) / max(1 - fraction, 1e-6), 1e-6, 1 - 1e-6)
    if proposal.sigma_max_factor:
        span = jnp.log(jnp.maximum(proposal.sigma_max_factor * scale / level_min, 1.0))
        level = level_min * jnp.exp(span * quantile)
    else:
        level = jnp.exp(proposal.log_sigma_mean + proposal.log_sigma_std * ndtri(quantile))
    level_max = sde.noise_level(jnp.float32(1.0))
    level_times = sde.time(jnp.clip(level, level_min, level_max))
    return jnp.clip(jnp.where(uniforms < fraction, uniform_times, level_times), eps, 1.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Eq. 7: how patterns and times are drawn, and how errors are weighted."""

    patterns: np.ndarray  # [N, M] missing patterns
    probabilities: np.ndarray  # [N]
    proposal: NoiseProposal
    weighting: Weighting | None  # None: `weigh_bands`
    sum_over_missing: bool  # sum over the missing modalities, as in eq. 6; else average
    patterns_per_image: int = 1  # examples made of each image in a step
    levels_per_question: int = 1  # noise levels of each example


class DSMInputs(NamedTuple):
    """What is drawn for the examples of a batch, with K noise levels each, one after another."""

    scored: Missing  # A: the modalities that the loss counts
    missing: Missing  # A, and what the subject was never scanned with
    t: Times  # [B K]
    noise: Images  # [B K, H, W, M]
    mean_query: Array  # [B] bool: asks for the mean, with t = 1 and a_t = 0


def draw_dsm_inputs(
    key: jax.Array,
    objective: Objective,
    sde: SDE,
    batch: Batch,
    index: Array,
    total: int,
    scale: Callable[[Missing], Array] = lambda missing: jnp.ones(len(missing)),
) -> DSMInputs:
    """The inputs of the examples `index` [B] of a global batch of `total`; `scale(missing)` [B] is
    the posterior's, of each example.

    Patterns, times and mean queries come from stratified uniforms over the global batch,
    each shuffled with its own key: independent, evenly spread, and the same however the
    batch is divided over devices.
    """
    pattern_key, time_key, mean_key, noise_key = jax.random.split(key, 4)
    count = objective.levels_per_question
    levels = (index[:, None] * count + jnp.arange(count)).reshape(-1)  # of all `total` K
    mean_query = stratified_uniforms(mean_key, total)[index] < objective.proposal.mean_fraction
    scored = sample_missing_patterns(
        stratified_uniforms(pattern_key, total)[index],
        objective.patterns,
        objective.probabilities,
        batch.present,
    )
    missing = scored | ~batch.present
    time_uniforms = stratified_uniforms(time_key, total * count)[levels]
    scales = jnp.repeat(scale(missing), count)
    t = times_from_uniform(sde, objective.proposal, time_uniforms, scales)
    noise_keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, levels)
    images = jnp.repeat(batch.images[..., : batch.present.shape[-1]], count, axis=0)
    return DSMInputs(
        scored & batch.valid[:, None],
        missing,
        jnp.where(jnp.repeat(mean_query, count), 1.0, t),
        draw_noise(noise_keys, images),
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


class TrainingLosses(NamedTuple):
    """[B] losses of the examples, and sums of their residuals' squares for `update_statistics`.

    `mean_loss` is apart with the preconditioning `mean` alone, where each example trains the
    mean and K noise levels; `residual` is None without it.
    """

    loss: Losses
    variance_loss: Losses | None
    mean_loss: Losses | None = None
    residual: dict[str, Array] | None = None


def training_losses(
    model: ScoreModel, params: Params, objective: Objective, images: Stacks, inputs: DSMInputs
) -> TrainingLosses:
    """`dsm_loss` of the network, and `variance_nll` of its variance head if it has one; neither has
    a gradient on what the other trains.

    A mean query is weighted by `weigh_edm` times `mean_weight`, whatever the weighting:
    at t = 1 the others almost vanish, and the mean would never be learned. The variance
    loss is unweighted: scaling the images changes it only by a constant.
    """
    condition = mask_inputs(images, inputs.missing)
    images = images[..., : inputs.missing.shape[-1]]
    posterior = make_posterior(model, params, condition)
    if model.preconditioning == "mean":
        return _losses_about_mean(model, params, objective, images, inputs, posterior)
    weight = _weights(model, objective, inputs)
    mean_weight = _mean_weights(model, objective, inputs.t)
    weight = jnp.where(inputs.mean_query, mean_weight, weight)
    predicted = posterior.estimate(_noisy_images(images, inputs, model.sde), inputs.t)
    loss = _weighted_squared_error(predicted.mean, images, inputs, weight)
    return TrainingLosses(loss, _variance_loss(predicted, images, inputs))


def _losses_about_mean(
    model: ScoreModel,
    params: Params,
    objective: Objective,
    images: Images,
    inputs: DSMInputs,
    posterior: Posterior,
) -> TrainingLosses:
    """Each example's mean, and K noise levels about it, from one encoding of what is seen."""
    moments, count = posterior.moments(), objective.levels_per_question
    mean_weight = _mean_weights(model, objective, jnp.ones(len(images)))
    mean_loss = _weighted_squared_error(moments.mean, images, inputs, mean_weight)
    mean = jax.lax.stop_gradient(moments.mean)
    repeated = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, count, axis=0),
        (images, mean, inputs.scored),
    )
    targets, centre, scored = repeated
    x = perturb(model.sde, targets, inputs.t, inputs.noise)
    # A modality that a subject was never scanned with has no a_t: its residual is 0.
    absent = per_example(model.sde.mean(inputs.t), x) * centre
    x = jnp.where(per_modality(scored), x, absent)
    denoised = posterior.estimate(x, inputs.t).mean
    rows = inputs._replace(scored=scored)
    if objective.weighting is None:
        power = jnp.repeat(band_power(params, inputs.missing), count, axis=0)
        loss = weigh_bands(model, power, _zero_unscored(denoised - targets, rows), inputs.t, scored)
    else:
        weight = _weights(model, objective, rows)
        loss = _weighted_squared_error(denoised, targets, rows, weight)
    residual = _zero_unscored(images - mean, inputs)
    bands = map_bands(jnp.square, haar(residual, band_levels(model.network)))
    # [B, M] by M sizes of the missing set, from 1.
    size = jax.nn.one_hot(missing_index(inputs.missing), inputs.missing.shape[1])
    sums = {
        "band_power": jnp.einsum("ns,nbm->sbm", size, band_means(bands)),
        "deviation": jnp.einsum("ns,nm->sm", size, largest_deviation(residual)),
        "examples": jnp.einsum("ns,nm->sm", size, inputs.scored.astype(jnp.float32)),
    }
    return TrainingLosses(
        loss.reshape(-1, count).mean(axis=1),
        _variance_loss(moments, images, inputs),
        mean_loss,
        sums,
    )


def weigh_bands(
    model: ScoreModel, power: Array, error: Images, t: Times, scored: Missing
) -> Losses:
    """[B] `weigh_edm` in each Haar band, with the band's own std in place of data_std, and the
    square root of a band's size in place of its size: few coefficients decide what is coarse.

    `power` [B, bands, M] is the mean square of the residual's coefficients; `error` is 0 where
    nothing is scored.
    """
    levels = band_levels(model.network)
    variance = jnp.square(model.sde.noise_level(t))

    def weigh(coefficients: Array, power: Array) -> Array:
        return jnp.square(coefficients) * (1 / power + 1 / per_example(variance, coefficients))

    weighed = band_means(map_bands(weigh, haar(error, levels), band_factors(power)))
    shares = np.sqrt(band_sizes(levels))
    loss = jnp.einsum("nbm,b->n", weighed, shares / shares.sum())
    return loss / jnp.maximum(scored.sum(axis=1), 1)


DECAY = 0.99  # a step, of the residual's statistics


def update_statistics(params: Params, sums: dict[str, Array], step: Array) -> Params:
    """The parameters with the running means of the residual's statistics after a step.

    `sums` are those of `TrainingLosses.residual` over the global batch. A modality that was not
    missing keeps its numbers.
    """
    decay = jnp.minimum(DECAY, (1.0 + step) / (10.0 + step))

    def follow(old: Array, total: Array, count: Array) -> Array:
        new = decay * old + (1 - decay) * total / jnp.maximum(count, 1)
        return jnp.where(count > 0, new, old)

    old, count = params["statistics"], sums["examples"]
    power = follow(old["band_power"], sums["band_power"], count[:, None])
    deviation = follow(old["deviation"], sums["deviation"], count)
    return params | {"statistics": {"band_power": power, "deviation": deviation}}


def posterior_scale(params: Params, missing: Missing) -> Array:
    """[B] the largest deviation of a residual over a block: the root of its mean square over
    training examples in which as many modalities were missing, of the missing modality where it is
    largest. 1 where it was not measured."""
    if "statistics" not in params:
        return jnp.ones(len(missing))
    deviation = params["statistics"]["deviation"][missing_index(missing)]
    return jnp.sqrt(jnp.where(missing, deviation, 0).max(axis=1))


def _weights(model: ScoreModel, objective: Objective, inputs: DSMInputs) -> Times:
    weight = objective.weighting(model.sde, inputs.t, model.data_std)
    return weight * inputs.scored.sum(axis=1) if objective.sum_over_missing else weight


def _mean_weights(model: ScoreModel, objective: Objective, t: Times) -> Times:
    return weigh_edm(model.sde, t, model.data_std) * objective.proposal.mean_weight


def _variance_loss(predicted: Estimate, images: Images, inputs: DSMInputs) -> Losses | None:
    return None if predicted.variance is None else variance_nll(predicted, images, inputs)


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
