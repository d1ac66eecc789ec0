"""The interface of a published method, and the losses that the methods share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.types import Array, Images, Keys, Losses, Missing, Params


class GANBatch(NamedTuple):
    """The examples of one device in one training step.

    `images` [B, H, W, M] are the truth, 0 in the background. `missing` [B, M] modalities are hidden
    from the generator: the sampled pattern, and those never scanned. `scored` [B, M] is the sampled
    pattern alone, whose truth is known. `lesion` [B, H, W] bool is the segmented tumour, False
    without a segmentation. An example with nothing `scored` is padding.
    """

    images: Images
    missing: Missing
    scored: Missing
    lesion: Array

    @property
    def seen(self) -> Array:
        """[B, M] bool: the generator's inputs."""
        return ~self.missing

    @property
    def has_truth(self) -> Array:
        """[B, M] bool: seen or scored; False where never scanned."""
        return self.scored | ~self.missing

    @property
    def valid(self) -> Array:
        """[B] bool: False on padding."""
        return self.scored.any(axis=1)


class MethodLosses(NamedTuple):
    """The losses [B] to minimise of `generator` and `discriminator` (0 without one).

    `statistics` are the new running statistics of batch norms ({} without any). `metrics`
    are the parts of the losses, for the log.
    """

    generator: Losses
    discriminator: Losses
    statistics: Params
    metrics: dict[str, Losses]


class Method:
    """A published method of Table 1: its networks, its losses and its learning rates.

    `learning_rates` are Adam's for (generator, discriminator), `betas` its momenta.
    `curriculum(progress, modalities)` gives the probabilities [N] of `missing_patterns(modalities,
    proper=True)` at a progress of 0 to 1 through training; with None those of the study are used.
    `training_only` names the parts of the generator's parameters that `complete` does not read.
    """

    name: str
    title: str
    note: str  # what is adapted or reconstructed, for the report
    learning_rates: tuple[float, float]
    betas: tuple[float, float] = (0.5, 0.999)
    curriculum: Callable[[Array, int], Array] | None = None
    training_only: tuple[str, ...] = ()

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        """{"generator", "discriminator", "statistics"}: the last two may be {}."""
        raise NotImplementedError

    def complete(self, params: Params, condition: Condition) -> Images:
        """Images [B, H, W, M] with the missing modalities predicted and the seen modalities
        unchanged, bit for bit. Examples do not depend on each other."""
        raise NotImplementedError

    def losses(self, keys: Keys, params: Params, batch: GANBatch) -> MethodLosses:
        """The losses of each example, whose random numbers come from its key in `keys` [B].

        The generator's loss has no gradient on the discriminator's parameters and vice
        versa, so that one gradient of their sum trains both.
        """
        raise NotImplementedError


def select(flags: Array, images: Images) -> Images:
    """The channels of images [B, H, W, M] that `flags` [B, M] select, 0 elsewhere."""
    return jnp.where(per_modality(flags), images, 0.0)


def masked_mean(values: Images, flags: Array) -> Losses:
    """[B] the mean over the channels of [B, H, W, M] that `flags` [B, M] select; 0 without any."""
    count = flags.sum(axis=1) * values[0, ..., 0].size
    return select(flags, values).sum(axis=(1, 2, 3)) / jnp.maximum(count, 1)


def least_squares(scores: Images, target: float) -> Losses:
    """[B] the least-squares GAN loss of a discriminator's patch scores [B, h, w, C]."""
    return jnp.mean(jnp.square(scores - target), axis=(1, 2, 3))


def real_and_fake(batch: GANBatch, images: Images, generated: Images) -> tuple[Images, Images]:
    """The discriminator's two inputs: the truth (0 where never scanned), and the same
    with the scored modalities generated."""
    real = select(batch.has_truth, images)
    return real, jnp.where(per_modality(batch.scored), generated, real)


def adversarial_losses(
    loss: Callable[[Params, Images, Array | float], Losses],
    params: Params,
    real: Images,
    fake: Images,
    fake_target: Array | float = 0.0,
) -> tuple[Losses, Losses]:
    """(the generator's loss, twice the discriminator's) of loss(params, images, target).

    The generator's target for `fake` is 1. The discriminator's targets are 1 for `real`
    and `fake_target` for `fake`. Neither has a gradient on the other's parameters.
    """
    frozen = jax.lax.stop_gradient
    generator = loss(frozen(params), fake, 1.0)
    return generator, loss(params, real, 1.0) + loss(params, frozen(fake), fake_target)


def combine_losses(
    batch: GANBatch,
    generator: dict[str, tuple[float, Losses]],
    discriminator: Losses | None = None,
    statistics: Params | None = None,
) -> MethodLosses:
    """The losses of a generator's {name: (weight, loss)}; on padding exactly 0, with a
    gradient of exactly 0."""

    def mask(loss: Losses) -> Losses:
        return jnp.where(batch.valid, loss, 0.0)

    metrics = {name: mask(loss) for name, (_, loss) in generator.items()}
    total = sum(weight * metrics[name] for name, (weight, _) in generator.items())
    if discriminator is None:
        discriminator = jnp.zeros_like(total)
    else:
        metrics["discriminator"] = discriminator = mask(discriminator)
    return MethodLosses(total, discriminator, statistics or {}, metrics)
