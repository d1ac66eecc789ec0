"""MM-GAN (Sharma and Hamarneh 2020): one U-Net for every missing pattern.

Missing channels are imputed with zeros. In the discriminator's input and in the loss the
seen channels of the output are replaced with the real ones ("implicit conditioning"). The
discriminator scores each modality, and learns to score the seen ones as real. Training
begins with one missing modality and ends with all patterns ("curriculum").

Adapted: the published U-Net halves 256 x 256 eight times, to one position. Here a grid is
halved until a side has one position, at most eight times. A pattern is sampled for each
example and not for each batch. Modalities that were never scanned are in neither loss.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines import layers, method
from ummcsgm.diffusion.missingness import Condition, missing_patterns, per_modality
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)
DISCRIMINATOR_WIDTHS = (64, 128, 256, 512)
DROPOUT_RATE = 0.2
DROPOUT_LEVEL = 3  # the first level with dropout, counted from 0
STAGES = (10 / 14, 7 / 14, 3 / 14, 0.0)  # the share of patterns left out in each stage


class Generator(nn.Module):
    """Images [B, H, W, M] >= 0 of images that are 0 where missing. Dropout needs `keys`."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Images, keys: Keys | None = None) -> Images:
        dropout_layers = itertools.count()

        def drop(features: Array, level: int) -> Array:
            if keys is None or level < DROPOUT_LEVEL:
                return features
            return layers.dropout(keys, features, next(dropout_layers), DROPOUT_RATE)

        depth = layers.count_halvings(images.shape[1:3], len(self.widths), 1)
        features, skips = images, []
        for level, width in enumerate(self.widths[:depth]):
            features = layers.conv4(features, width, 2, bias=False, name=f"down{level}")
            if 0 < level < depth - 1:
                features = layers.instance_norm(features)
            features = drop(layers.leaky(features), level)
            skips.append(features)
        for level in reversed(range(depth - 1)):
            features = layers.Up(self.widths[level], name=f"up{level}")(features)
            features = layers.crop_to(features, skips[level].shape[1:3])
            features = drop(nn.relu(layers.instance_norm(features)), level)
            features = jnp.concatenate([features, skips[level]], axis=-1)
        features = layers.upsample(features, images)
        return nn.relu(layers.conv4(features, images.shape[-1], 1, bias=True, name="head"))


def curriculum(progress: Array, modalities: int) -> Array:
    """[N] the probabilities of `missing_patterns(modalities, proper=True)`.

    At first the patterns with the most missing modalities are left out: 10 of 14, then 7,
    then 3, each for a sixth of training. In the second half of training none is left out.
    """
    count = len(missing_patterns(modalities, proper=True))
    stage = jnp.sum(progress >= jnp.arange(1, len(STAGES)) / 6)
    left_out = jnp.array([round(count * share) for share in STAGES])[stage]
    rank = jnp.arange(count)[::-1]  # the patterns are sorted by how many are missing
    return jnp.where(rank >= left_out, 1 / (count - left_out), 0.0)


@dataclasses.dataclass(frozen=True)
class MMGAN(method.Method):
    """MM-GAN for `modalities` modalities, of images divided by `scale`."""

    modalities: int
    scale: float
    generator: nn.Module
    discriminator: nn.Module

    name = "mm-gan"
    title = "MM-GAN"
    note = (
        "Adapted: a missing pattern is drawn for each slice instead of each batch, and the"
        " U-Net has as many levels as the grid allows. Its curriculum ends with all"
        " patterns equally likely, for half of the training."
    )
    learning_rates = (2e-4, 2e-4)
    curriculum = staticmethod(curriculum)

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        keys = jax.random.split(key)
        images = jnp.zeros((1, *grid, self.modalities))
        pair = jnp.zeros((1, *grid, 2 * self.modalities))
        return {
            "generator": self.generator.init(keys[0], images)["params"],
            "discriminator": self.discriminator.init(keys[1], pair)["params"],
            "statistics": {},
        }

    def complete(self, params: Params, condition: Condition) -> Images:
        variables = {"params": params["generator"]}
        generated = self.generator.apply(variables, condition.seen / self.scale)
        return condition.fill(self.scale * generated)

    def losses(self, keys: Keys, params: Params, batch: method.GANBatch) -> method.MethodLosses:
        """0.1 times the least-squares GAN loss and 0.9 times the mean absolute error."""
        images = batch.images / self.scale
        variables = {"params": params["generator"]}
        generated = self.generator.apply(variables, method.select(batch.seen, images), keys)
        real, fake = method.real_and_fake(batch, images, generated)

        def loss(params: Params, candidate: Images, target: Array | float) -> Losses:
            pair = jnp.concatenate([candidate, real], axis=-1)
            scores, _ = self.discriminator.apply({"params": params}, pair)
            target = per_modality(jnp.broadcast_to(target, batch.missing.shape))
            return method.masked_mean(jnp.square(scores - target), batch.has_truth)

        adversarial, discriminator = method.adversarial_losses(
            loss, params["discriminator"], real, fake, fake_target=batch.seen
        )
        error = method.masked_mean(jnp.abs(generated - real), batch.scored)
        parts = {"adversarial": (0.1, adversarial), "l1": (0.9, error)}
        return method.combine_losses(batch, parts, 0.5 * discriminator)


def make_mm_gan(modalities: int, *, width: float, scale: float, axis: str | None) -> MMGAN:
    """MM-GAN with `width` times its published channels; `axis` is not used."""
    generator = Generator(layers.scale_widths(WIDTHS, width))
    discriminator = layers.PatchDiscriminator(
        layers.scale_widths(DISCRIMINATOR_WIDTHS, width), modalities
    )
    return MMGAN(modalities, scale, generator, discriminator)
