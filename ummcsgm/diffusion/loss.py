"""Eqs. 6-7: conditional denoising score matching, per example, on the missing only.

Every weighting is one number an example, w(t), on the squared error of the denoised
image, since score and denoised image differ by a factor (`score_from_denoised`):

    score error = (mean / std^2) denoised error

so that eq. 6 is `paper` here, to rounding, but for a mean over the voxels of a slice
where the paper sums (`Objective.summed` sums over modalities, as it does). All
weightings have the same minimiser for every t and A|B; they differ in where a finite
network spends itself.
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
    """Eq. 6 to the letter: 1/2 on the squared error of the score."""
    return 0.5 * jnp.square(sde.mean(t)) / sde.std(t) ** 4


def weigh_std2(sde: SDE, t: Times, data_std: float) -> Times:
    """std^2 on the squared error of the score: that of the predicted noise."""
    return jnp.square(sde.mean(t) / sde.std(t))


def weigh_likelihood(sde: SDE, t: Times, data_std: float) -> Times:
    """diffusion^2 on that of the score: bounds the likelihood (Song et al. 2021b)."""
    return jnp.square(sde.diffusion(t) * sde.mean(t) / jnp.square(sde.std(t)))


def weigh_edm(sde: SDE, t: Times, data_std: float) -> Times:
    """1 on the network's own output, at every t (Karras et al. 2022, eq. 8)."""
    level = jnp.square(sde.noise_level(t))
    return (level + data_std**2) / (level * data_std**2)


def make_weigh_conditional(posterior_std: float) -> Weighting:
    """`weigh_edm` for images known to within `posterior_std`, given what is seen.

    Noise levels far above it teach one thing, the mean, and count alike. With data_std
    in its place, those that are between the two count less by up to the square of their
    ratio, and draws are not centred on the mean.
    """
    return lambda sde, t, data_std: weigh_edm(sde, t, posterior_std)


def weigh_min_snr(sde: SDE, t: Times, data_std: float) -> Times:
    """min(signal to noise, 5) on the denoised image (Hang et al. 2023)."""
    return jnp.minimum(sde.noise_level(t) ** -2.0, 5.0)


class NoiseProposal(NamedTuple):
    """A distribution of times: log-normal noise levels, and uniform times.

    `uniform` is the share of t ~ U(eps, 1) (1 is the paper); the rest draws
    ln(noise level) ~ N(centre, width^2). No level is below `noise_level_min`, whose
    time is eps. `token` is the share of rows that ask for the mean instead: t = 1 and
    a_t = 0. Their loss is multiplied by `token_weight`: it is much smaller than that of
    the rows with little noise, most of which no network can remove, and whose
    gradient's variance would drown theirs in a short run.
    """

    uniform_fraction: float
    log_sigma_mean: float
    log_sigma_std: float
    sigma_min: float
    mean_fraction: float
    mean_weight: float


def times_from_uniform(sde: SDE, proposal: NoiseProposal, uniforms: Array) -> Times:
    """[B] times of the proposal, by inverse transform of [B] uniforms in [0, 1)."""
    share = proposal.uniform_fraction
    # VE's own least level may be above the proposal's.
    least = jnp.maximum(proposal.sigma_min, sde.noise_level(jnp.float32(0.0)))
    earliest = jnp.maximum(sde.time(least), 0.0)
    spread = jnp.clip(uniforms / max(share, 1e-6), 0, 1)
    uniform_times = earliest + (1 - earliest) * spread
    rank = jnp.clip((uniforms - share) / max(1 - share, 1e-6), 1e-6, 1 - 1e-6)
    level = jnp.exp(proposal.log_sigma_mean + proposal.log_sigma_std * ndtri(rank))
    latest = sde.noise_level(jnp.float32(1.0))
    normal_times = sde.time(jnp.clip(level, least, latest))
    return jnp.clip(jnp.where(uniforms < share, uniform_times, normal_times), earliest, 1.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Eq. 7: which questions are drawn, and how their errors are weighed."""

    patterns: np.ndarray  # [N, M] configurations
    probabilities: np.ndarray  # [N] their probabilities
    proposal: NoiseProposal
    weighting: Weighting
    sum_over_missing: bool  # over the missing modalities, as eq. 6 has it; else averaged
    patterns_per_image: int = (
        1  # questions asked of an image in a step, each a row of the network's
    )


class DSMInputs(NamedTuple):
    """What the examples of a batch are asked, a row each."""

    scored: Missing  # what the loss counts: A
    missing: Missing  # what the network must do without: A, and what was never scanned
    t: Times
    noise: Images
    mean_query: Array  # [B] bool: asks for the mean, by t = 1 and a_t = 0


def draw_dsm_inputs(
    key: jax.Array, objective: Objective, sde: SDE, batch: Batch, place: Array, total: int
) -> DSMInputs:
    """The questions of the examples at `place` [B] of a global batch of `total`.

    Configurations, times and tokens come from three decks over the global batch, each
    shuffled by a key of its own: independent of one another, evenly spread, and the
    same however the batch is divided over devices.
    """
    *decks, key_noise = jax.random.split(key, 4)
    cards, uniforms, tokens = (stratified_uniforms(deck, total)[place] for deck in decks)
    token = tokens < objective.proposal.mean_fraction
    t = times_from_uniform(sde, objective.proposal, uniforms)
    scored = sample_missing_patterns(
        cards, objective.patterns, objective.probabilities, batch.present
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, place)
    return DSMInputs(
        scored & batch.valid[:, None],
        scored | ~batch.present,
        jnp.where(token, 1.0, t),
        draw_noise(keys, batch.images[..., : batch.present.shape[-1]]),
        token,
    )


def dsm_loss(
    denoise: Denoiser, images: Images, questions: DSMInputs, sde: SDE, weight: Times
) -> Losses:
    """Eq. 6 for each example: the weighted squared error, mean over missing voxels.

    [B]; exactly 0, with an exactly zero gradient, where nothing is scored. The gradient
    on seen modalities is exactly 0. Modalities that a subject was never scanned with
    are missing and have no a_t: 0 at all times.
    """
    mean = denoise(_shown(images, questions, sde), questions.t)
    return _squared_loss(mean, images, questions, weight)


def variance_nll(estimate: Estimate, images: Images, questions: DSMInputs) -> Losses:
    """[B] the negative log-likelihood of the predicted variance v, less a constant:

        (error^2 / v + ln v) / 2

    of the clean images' error, mean over missing voxels; 0 where nothing is scored. It
    is least where v is the mean squared error, which itself has no gradient from it.
    """
    mean, variance = estimate
    error = _scored(jax.lax.stop_gradient(mean) - images, questions)
    variance = jnp.where(per_modality(questions.scored), variance, 1.0)
    values = 0.5 * (jnp.square(error) / variance + jnp.log(variance))
    return _average(values, questions)


def _squared_loss(mean: Images, images: Images, questions: DSMInputs, weight: Times) -> Losses:
    error = _scored(mean - images, questions)
    return weight * _average(jnp.square(error), questions)


def _shown(images: Images, questions: DSMInputs, sde: SDE) -> Images:
    """What the network is shown on the missing modalities."""
    x = perturb(sde, images, questions.t, questions.noise)
    # What was never scanned is no noised image: it is nothing, as in a token.
    drawn = questions.scored & ~questions.mean_query[:, None]
    return jnp.where(per_modality(drawn), x, 0.0)


def _scored(values: Images, questions: DSMInputs) -> Images:
    return jnp.where(per_modality(questions.scored), values, 0.0)


def _average(values: Images, questions: DSMInputs) -> Losses:
    """[B] the mean over scored voxels of values that are 0 elsewhere."""
    count = questions.scored.sum(axis=1) * values[0, ..., 0].size
    return values.sum(axis=(1, 2, 3)) / jnp.maximum(count, 1)


def dsm_and_variance_losses(
    model: ScoreModel, params: Params, objective: Objective, images: Stacks, questions: DSMInputs
) -> tuple[Losses, Losses | None]:
    """([B], [B]): `dsm_loss` of the network with these parameters on these questions,
    and `variance_nll` of its variance head, or None if it has none.

    Of one evaluation, and neither has a gradient on what the other one trains. A token
    is weighed by `weigh_edm` times `token_weight`, whatever the weighting: at t = 1 the
    others all but vanish, and the mean would never be learned. The variance's loss has
    no weights: it is the same in every scale but for a constant.
    """
    completion = mask_inputs(images, questions.missing)
    images = images[..., : questions.missing.shape[-1]]
    estimate = make_estimate(model, params, completion)
    weight, token_weight = (
        weigh(model.sde, questions.t, model.data_std) for weigh in (objective.weighting, weigh_edm)
    )
    if objective.sum_over_missing:
        weight = weight * questions.scored.sum(axis=1)
    token_weight = token_weight * objective.proposal.mean_weight
    weight = jnp.where(questions.mean_query, token_weight, weight)
    answer = estimate(_shown(images, questions, model.sde), questions.t)
    loss = _squared_loss(answer.mean, images, questions, weight)
    if answer.variance is None:
        return loss, None
    return loss, variance_nll(answer, images, questions)
