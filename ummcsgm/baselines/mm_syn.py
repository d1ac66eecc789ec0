"""MM-SYN (Chartsias et al. 2018): each modality to one latent image, all fused by max.

An encoder for each modality maps it to a latent of 16 channels at full resolution; the
voxelwise maximum of those that are available is the fused latent. A decoder for each
modality reads any latent, so it is trained on the fused one and on each single one, and
the latents of a subject's modalities are to be alike.

Trained here on random sets of missing modalities. Images are divided by one constant,
about the mean of all, and the last bias starts at 1, that mean: a ReLU that starts
below 0 would stay there.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines.layers import doubled, greatest, halved, leaky, scaled
from ummcsgm.baselines.method import (
    GANBatch,
    Method,
    MethodLosses,
    average,
    has_truth,
    only,
    outcome,
)
from ummcsgm.diffusion.missingness import Condition
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (32, 64, 128)
LATENT = 16
GLOROT = nn.initializers.glorot_uniform()


class Encoder(nn.Module):
    """One modality [B, H, W, 1] -> its latent [B, H, W, latent], by a U-Net."""

    widths: tuple[int, ...]
    latent: int

    @nn.compact
    def __call__(self, image: Images) -> Array:
        def conv(width: int, features: Array) -> Array:
            return leaky(nn.Conv(width, (3, 3), kernel_init=GLOROT)(features))

        features, skips = image, []
        for level, width in enumerate(self.widths):
            features = halved(features) if level else features
            features = conv(width, conv(width, features))
            skips.append(features)
        for width, skip in zip(self.widths[-2::-1], skips[-2::-1], strict=True):
            raised = conv(width, doubled(features, skip))
            features = jnp.concatenate([raised, skip], axis=-1)
            features = conv(width, conv(width, features))
        return conv(self.latent, features)


class Decoder(nn.Module):
    """Any latent [B, H, W, latent] -> one modality [B, H, W, 1], none negative."""

    width: int

    @nn.compact
    def __call__(self, latent: Array) -> Images:
        features = latent
        for turn in range(2):
            if turn:
                features = jnp.concatenate([features, latent], axis=-1)
            for _ in range(2):
                conv = nn.Conv(self.width, (3, 3), kernel_init=GLOROT)
                features = nn.relu(conv(features))
        features = jnp.concatenate([features, latent], axis=-1)
        mean = nn.initializers.ones
        head = nn.Conv(1, (1, 1), kernel_init=GLOROT, bias_init=mean, name="head")
        return nn.relu(head(features))


class Generator(nn.Module):
    """(images, available) -> all modalities as decoded from some latents, and the
    latent [B, H, W, latent] of each modality."""

    widths: tuple[int, ...]
    latent: int

    @nn.compact
    def __call__(
        self, images: Images, available: Array, singles: bool
    ) -> tuple[Array, list[Array]]:
        """[K, B, H, W, M]: K is 1, the fused latent; with `singles`, after it each
        modality's own."""
        modalities = images.shape[-1]
        latents = [
            Encoder(self.widths, self.latent, name=f"encoder{m}")(images[..., m : m + 1])
            for m in range(modalities)
        ]
        read = [greatest(latents, available), *(latents if singles else [])]
        folded = jnp.concatenate(read)  # one after another along the rows
        decoded = [Decoder(self.widths[0], name=f"decoder{m}")(folded) for m in range(modalities)]
        decoded = jnp.concatenate(decoded, axis=-1)
        return decoded.reshape(len(read), *images.shape), latents


def variance(latents: list[Array], available: Array) -> Losses:
    """[B] the variance over the available [B, M] of M latents, mean over voxels and
    channels; 0 where there is but one."""
    stacked = jnp.stack(latents)
    flags = available.T[:, :, None, None, None]
    count = jnp.maximum(flags.sum(axis=0), 1)
    mean = jnp.where(flags, stacked, 0.0).sum(axis=0) / count
    squares = jnp.where(flags, jnp.square(stacked - mean), 0.0).sum(axis=0) / count
    return squares.mean(axis=(1, 2, 3))


def make_mm_syn(modalities: int, *, width: float, scale: float, axis: str | None) -> Method:
    """MM-SYN with a share `width` of its channels; images are divided by `scale`."""
    generator = Generator(scaled(WIDTHS, width), *scaled((LATENT,), width))
    return Method(
        name="mm-syn",
        title="MM-SYN",
        note="Adapted: trained on random sets of missing modalities; an available"
        " modality is encoded, and any that has a truth is a target.",
        init=functools.partial(_init, generator, modalities),
        complete=functools.partial(_complete, generator, scale),
        losses=functools.partial(_losses, generator, scale),
        deal=None,
        rates=(1e-4, 1e-4),
        betas=(0.9, 0.999),
    )


def _init(generator: Generator, modalities: int, key: Array, grid: tuple[int, int]) -> Params:
    images = jnp.zeros((1, *grid, modalities))
    drawn = generator.init(key, images, jnp.ones((1, modalities), bool), True)
    return {"generator": drawn["params"], "discriminator": {}, "statistics": {}}


def _complete(generator: Generator, scale: float, params: Params, question: Condition) -> Images:
    own = {"params": params["generator"]}
    drawn, _ = generator.apply(own, question.seen / scale, ~question.missing, False)
    return question.fill(scale * drawn[0])


def _losses(
    generator: Generator, scale: float, keys: Keys, params: Params, lesson: GANBatch
) -> MethodLosses:
    """The mean absolute error of every output that has a truth, from the fused latent
    and from each single one, summed as published, and the variance of the latents.

    Nothing here is random: `keys` are for those that need some.
    """
    images, available = lesson.images / scale, ~lesson.missing
    shown = only(available, images)
    own = {"params": params["generator"]}
    decoded, latents = generator.apply(own, shown, available, True)
    errors = jnp.abs(decoded - images)
    known = has_truth(lesson)
    each = jax.vmap(average, (0, None))(errors, known) * known.sum(axis=1)
    single = jnp.where(available.T, each[1:], 0.0).sum(axis=0)
    parts = {
        "fused": (1.0, each[0]),
        "single": (1.0, single),
        "variance": (1.0, variance(latents, available)),
        "l1": (0.0, average(errors[0], lesson.scored)),  # told, not taught
    }
    return outcome(lesson, parts)
