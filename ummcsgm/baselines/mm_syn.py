"""MM-SYN (Chartsias et al. 2018): a latent image of each modality, fused by maximum.

An encoder for each modality gives a latent of 16 channels at full resolution; the
voxelwise maximum over the available modalities is the fused latent. A decoder for each
modality reads any latent. It is trained on the fused latent and on that of each modality,
and a loss makes the latents of a subject alike.

Adapted: trained on random missing patterns. Images are divided by a constant near their
mean, and the bias of the last layer starts at 1, which is then the mean: a ReLU that
starts below 0 would stay there.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines import layers, method
from ummcsgm.diffusion.missingness import Condition
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (32, 64, 128)
LATENT = 16
GLOROT = nn.initializers.glorot_uniform()


class Encoder(nn.Module):
    """The latent [B, H, W, latent] of one modality [B, H, W, 1], by a U-Net."""

    widths: tuple[int, ...]
    latent: int

    @nn.compact
    def __call__(self, image: Images) -> Array:
        def conv(width: int, features: Array) -> Array:
            return layers.leaky(nn.Conv(width, (3, 3), kernel_init=GLOROT)(features))

        features, skips = image, []
        for level, width in enumerate(self.widths):
            features = layers.downsample(features) if level else features
            features = conv(width, conv(width, features))
            skips.append(features)
        for width, skip in zip(self.widths[-2::-1], skips[-2::-1], strict=True):
            raised = conv(width, layers.upsample(features, skip))
            features = jnp.concatenate([raised, skip], axis=-1)
            features = conv(width, conv(width, features))
        return conv(self.latent, features)


class Decoder(nn.Module):
    """One modality [B, H, W, 1] >= 0 of any latent [B, H, W, latent]."""

    width: int

    @nn.compact
    def __call__(self, latent: Array) -> Images:
        inputs = latent
        for _ in range(2):
            features = inputs
            for _ in range(2):
                features = nn.relu(nn.Conv(self.width, (3, 3), kernel_init=GLOROT)(features))
            inputs = jnp.concatenate([features, latent], axis=-1)
        bias_init = nn.initializers.ones
        head = nn.Conv(1, (1, 1), kernel_init=GLOROT, bias_init=bias_init, name="head")
        return nn.relu(head(inputs))


class Generator(nn.Module):
    """All modalities decoded from each of K latents [K, B, H, W, M], and the latent
    [B, H, W, latent] of each modality.

    The first of the K latents is the fused one. With `single_latents` the latents of the
    M modalities follow.
    """

    widths: tuple[int, ...]
    latent: int

    @nn.compact
    def __call__(
        self, images: Images, available: Array, single_latents: bool
    ) -> tuple[Array, list[Array]]:
        modalities = images.shape[-1]
        latents = [
            Encoder(self.widths, self.latent, name=f"encoder{m}")(images[..., m : m + 1])
            for m in range(modalities)
        ]
        fused = layers.max_over_available(latents, available)
        decoded_latents = [fused, *latents] if single_latents else [fused]
        stacked = jnp.concatenate(decoded_latents)  # along the batch
        decoded = [Decoder(self.widths[0], name=f"decoder{m}")(stacked) for m in range(modalities)]
        decoded = jnp.concatenate(decoded, axis=-1)
        return decoded.reshape(len(decoded_latents), *images.shape), latents


def latent_variance(latents: list[Array], available: Array) -> Losses:
    """[B] the variance over the available [B, M] of M latents, averaged over voxels and
    channels; 0 with a single latent."""
    stacked = jnp.stack(latents)
    flags = available.T[:, :, None, None, None]
    count = jnp.maximum(flags.sum(axis=0), 1)
    mean = jnp.where(flags, stacked, 0.0).sum(axis=0) / count
    squares = jnp.where(flags, jnp.square(stacked - mean), 0.0).sum(axis=0) / count
    return squares.mean(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class MMSYN(method.Method):
    """MM-SYN for `modalities` modalities, of images divided by `scale`."""

    modalities: int
    scale: float
    generator: nn.Module

    name = "mm-syn"
    title = "MM-SYN"
    note = (
        "Adapted: trained on random sets of missing modalities; an available"
        " modality is encoded, and any that has a truth is a target."
    )
    learning_rates = (1e-4, 1e-4)
    betas = (0.9, 0.999)

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        images = jnp.zeros((1, *grid, self.modalities))
        available = jnp.ones((1, self.modalities), bool)
        variables = self.generator.init(key, images, available, True)
        return {"generator": variables["params"], "discriminator": {}, "statistics": {}}

    def complete(self, params: Params, condition: Condition) -> Images:
        variables = {"params": params["generator"]}
        seen = condition.seen / self.scale
        decoded, _ = self.generator.apply(variables, seen, ~condition.missing, False)
        return condition.fill(self.scale * decoded[0])

    def losses(self, keys: Keys, params: Params, batch: method.GANBatch) -> method.MethodLosses:
        """The mean absolute error of every output whose truth is known, and the variance of
        the latents. As published, the error is summed over the outputs and over the
        latents: the fused one and those of the available modalities. `keys` are not used."""
        images = batch.images / self.scale
        variables = {"params": params["generator"]}
        decoded, latents = self.generator.apply(
            variables, method.select(batch.seen, images), batch.seen, True
        )
        errors, known = jnp.abs(decoded - images), batch.has_truth
        by_latent = jax.vmap(method.masked_mean, (0, None))(errors, known) * known.sum(axis=1)
        single = jnp.where(batch.seen.T, by_latent[1:], 0.0).sum(axis=0)
        parts = {
            "fused": (1.0, by_latent[0]),
            "single": (1.0, single),
            "variance": (1.0, latent_variance(latents, batch.seen)),
            "l1": (0.0, method.masked_mean(errors[0], batch.scored)),  # logged only
        }
        return method.combine_losses(batch, parts)


def make_mm_syn(modalities: int, *, width: float, scale: float, axis: str | None) -> MMSYN:
    """MM-SYN with `width` times its published channels; `axis` is not used."""
    generator = Generator(
        layers.scale_widths(WIDTHS, width), *layers.scale_widths((LATENT,), width)
    )
    return MMSYN(modalities, scale, generator)
