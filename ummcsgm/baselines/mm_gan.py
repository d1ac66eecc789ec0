"""MM-GAN (Sharma and Hamarneh 2020): one U-Net for every scenario, told by zeros.

Missing channels are imputed with zeros. Before the discriminator and the loss, the seen
channels of the answer are overwritten with the real ones ("implicit conditioning"), and
the discriminator has a verdict for each modality, which is to be 1 on those. Training
begins with one missing and works its way to all scenarios ("curriculum").

The published U-Net halves 256 x 256 eight times, to one position; here a grid is halved
until a side has one position, at most eight times. A scenario is dealt to each example,
not to each batch. What was never scanned is in neither loss.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines.layers import (
    NORMAL,
    Patches,
    PatchMaps,
    Up,
    cropped,
    doubled,
    dropped,
    halvings,
    instance_norm,
    leaky,
    scaled,
)
from ummcsgm.baselines.method import (
    GANBatch,
    Method,
    MethodLosses,
    average,
    has_truth,
    only,
    outcome,
)
from ummcsgm.diffusion.missingness import Condition, missing_patterns, per_modality
from ummcsgm.types import Array, Images, Keys, Params

WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)
JUDGE = (64, 128, 256, 512)
DROPOUT = 0.2
DROPPED = 3  # the first level that has dropout, counted from 0
STAGES = (10 / 14, 7 / 14, 3 / 14, 0.0)  # the share of scenarios that is still left out


class Generator(nn.Module):
    """[B, H, W, M], 0 where missing -> [B, H, W, M], none negative."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Images, keys: Keys | None = None) -> Images:
        turns = itertools.count()

        def drop(features: Array) -> Array:
            turn = next(turns)
            return features if keys is None else dropped(keys, features, turn, DROPOUT)

        depth = halvings(images.shape[1:3], len(self.widths), 1)
        features, skips = images, []
        for level in range(depth):
            features = nn.Conv(
                self.widths[level],
                (4, 4),
                (2, 2),
                use_bias=False,
                kernel_init=NORMAL,
                name=f"down{level}",
            )(features)
            normed = 0 < level < depth - 1
            features = leaky(instance_norm(features) if normed else features)
            features = drop(features) if level >= DROPPED else features
            skips.append(features)
        for level in reversed(range(depth - 1)):
            features = Up(self.widths[level], name=f"up{level}")(features)
            features = nn.relu(instance_norm(cropped(features, skips[level])))
            features = drop(features) if level >= DROPPED else features
            features = jnp.concatenate([features, skips[level]], axis=-1)
        features = doubled(features, images)
        padded = jnp.pad(features, ((0, 0), (2, 1), (2, 1), (0, 0)))
        head = nn.Conv(images.shape[-1], (4, 4), padding="VALID", kernel_init=NORMAL, name="head")
        return nn.relu(head(padded))


class Judge(nn.Module):
    """(candidate, real), each [B, H, W, M] -> [B, h, w, M]: a map for each modality."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, candidate: Images, real: Images) -> Array:
        both = jnp.concatenate([candidate, real], axis=-1)
        features = Patches(self.widths, name="patches")(both)
        return PatchMaps(real.shape[-1], name="verdict")(features)


def curriculum(progress: Array, modalities: int) -> Array:
    """[N] the probabilities of `configurations(modalities, proper=True)`.

    Sorted by how many are available, scenarios are left out from the front: 10, 7, 3
    and none of 14, for a sixth of training each and the last for half of it.
    """
    count = len(missing_patterns(modalities, proper=True))
    stage = jnp.sum(progress >= jnp.arange(1, len(STAGES)) / 6)
    begin = jnp.array([round(count * share) for share in STAGES])[stage]
    place = jnp.arange(count)[::-1]  # the table is sorted by how many are missing
    return jnp.where(place >= begin, 1 / (count - begin), 0.0)


def judge_losses(maps: Array, lesson: GANBatch, wanted: Array) -> Array:
    """[B] the mean squared difference of a verdict's maps [B, h, w, M] from what is
    `wanted` [B, M] of each, over the modalities that have a truth."""
    return average(jnp.square(maps - per_modality(wanted)), has_truth(lesson))


def make_mm_gan(modalities: int, *, width: float, scale: float, axis: str | None) -> Method:
    """MM-GAN with a share `width` of its channels; images are divided by `scale`."""
    generator = Generator(scaled(WIDTHS, width))
    judge = Judge(scaled(JUDGE, width))
    return Method(
        name="mm-gan",
        title="MM-GAN",
        note="Adapted: a scenario is dealt to each slice instead of each batch, and the"
        " U-Net has as many levels as the grid allows. Its curriculum ends with all"
        " scenarios alike, for half of the training.",
        init=functools.partial(_init, generator, judge, modalities),
        complete=functools.partial(_complete, generator, scale),
        losses=functools.partial(_losses, generator, judge, scale),
        deal=curriculum,
        rates=(2e-4, 2e-4),
        betas=(0.5, 0.999),
    )


def _init(
    generator: Generator, judge: Judge, modalities: int, key: Array, grid: tuple[int, int]
) -> Params:
    key_generator, key_judge = jax.random.split(key)
    images = jnp.zeros((1, *grid, modalities))
    return {
        "generator": generator.init(key_generator, images)["params"],
        "discriminator": judge.init(key_judge, images, images)["params"],
        "statistics": {},
    }


def _complete(generator: Generator, scale: float, params: Params, question: Condition) -> Images:
    own = {"params": params["generator"]}
    return question.fill(scale * generator.apply(own, question.seen / scale))


def _losses(
    generator: Generator, judge: Judge, scale: float, keys: Keys, params: Params, lesson: GANBatch
) -> MethodLosses:
    """0.1 of the least-squares GAN's and 0.9 of the mean absolute error."""
    images = lesson.images / scale
    drawn = generator.apply({"params": params["generator"]}, only(~lesson.missing, images), keys)
    real = only(has_truth(lesson), images)
    fake = jnp.where(per_modality(lesson.scored), drawn, real)

    def judged(params: Params, candidate: Images, wanted: Array) -> Array:
        maps = judge.apply({"params": params}, candidate, real)
        return judge_losses(maps, lesson, wanted)

    still = jax.lax.stop_gradient
    own, all_real = params["discriminator"], jnp.ones_like(lesson.missing)
    fooled = judged(still(own), fake, all_real)
    told_real = judged(own, real, all_real)
    told_fake = judged(own, still(fake), ~lesson.missing)
    error = average(jnp.abs(drawn - real), lesson.scored)
    parts = {"adversarial": (0.1, fooled), "l1": (0.9, error)}
    return outcome(lesson, parts, 0.5 * (told_real + told_fake))
