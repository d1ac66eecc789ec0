"""Hi-Net (Zhou et al. 2020): features of each modality, fused at every level.

Each modality has an encoder and, in training, a decoder that reconstructs it from the
encoder's features. A fusion network runs beside them: each level takes the sum, the
product and the maximum over the modalities' features, and the output of the previous
level. Its result is decoded with the same fusions on the way up.

Adapted: Hi-Net is published with two inputs and one output, and needs a model for each combination.
Here a single model completes every missing pattern: fusions are over the available modalities of
each example, the generator has an output for each modality, and the discriminator sees all
modalities, of which the seen ones are real. A modality's batch statistics are over the examples
that have it. The learning rate is that of the published code.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines import layers, method
from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (32, 64, 128)
DISCRIMINATOR_WIDTHS = (32, 64, 128, 256)
L1_WEIGHT, RECONSTRUCTION_WEIGHT = 100.0, 20.0


class Layer(nn.Module):
    """activate(norm(conv(x))), 3 x 3."""

    width: int
    axis: str | None
    activate: Callable = nn.relu
    running: bool = True

    @nn.compact
    def __call__(self, features: Array, valid: Array | None) -> Array:
        hidden = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(features)
        norm = layers.BatchNorm(self.axis, running=self.running, name="norm")
        return self.activate(norm(hidden, valid))


class Encoder(nn.Module):
    """The features of one modality [B, H, W, 1] at 1/2, 1/4 and 1/8 of its size."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, image: Images, valid: Array | None) -> list[Array]:
        features, levels = image, []
        for width in self.widths:
            for _ in range(2):
                features = Layer(width, self.axis, layers.leaky)(features, valid)
            features = layers.downsample(features)
            levels.append(features)
        return levels


class Decoder(nn.Module):
    """One modality [B, H, W, 1], reconstructed from its encoder's features at 1/8 of its
    size. Used in training only."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, levels: list[Array], image: Images, valid: Array) -> Images:
        features = levels[-1]
        for width, finer in zip(self.widths[::-1], [*levels[-2::-1], image], strict=True):
            features = Layer(width, self.axis, running=False)(features, valid)
            features = layers.upsample(features, finer)
            features = Layer(width, self.axis, running=False)(features, valid)
        return nn.Conv(1, (3, 3), name="head")(features)


def fuse(features: list[Array], available: Array) -> Array:
    """[B, h, w, 3 C] the sum, product and maximum over the available [B, M] of M
    features [B, h, w, C]."""
    total = sum(layers.fill_unavailable(features, available, 0.0))
    product = math.prod(layers.fill_unavailable(features, available, 1.0))
    maximum = layers.max_over_available(features, available)
    return jnp.concatenate([total, product, maximum], axis=-1)


class Fusion(nn.Module):
    """The fused features of a level, joined with the output of the previous level."""

    inner: int
    width: int
    axis: str | None
    activate: Callable

    @nn.compact
    def __call__(self, fused: Array, previous: Array | None, valid: Array | None) -> Array:
        hidden = Layer(self.inner, self.axis, self.activate, name="fuse")(fused, valid)
        if previous is None:
            return hidden
        joined = jnp.concatenate([hidden, previous], axis=-1)
        return Layer(self.width, self.axis, self.activate, name="join")(joined, valid)


class Generator(nn.Module):
    """All modalities [B, H, W, M], generated from the available ones of images in
    [-1, 1], and the reconstruction of each modality by its decoder.

    `valid` [B] is False on padding. With None the running statistics are used, and
    nothing is reconstructed.
    """

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(
        self, images: Images, available: Array, valid: Array | None
    ) -> tuple[Images, Images | None]:
        levels, reconstructions = [], []
        for m in range(images.shape[-1]):
            image = images[..., m : m + 1]
            has_modality = None if valid is None else valid & available[:, m]
            levels.append(Encoder(self.widths, self.axis, name=f"encoder{m}")(image, has_modality))
            if valid is not None:
                decoder = Decoder(self.widths, self.axis, name=f"decoder{m}")
                reconstructions.append(decoder(levels[m], image, has_modality))
        fused = [fuse(list(level), available) for level in zip(*levels, strict=True)]
        features = self._encode_fused(fused, valid)
        generated = self._decode(features, fused, images, valid)
        return generated, jnp.concatenate(reconstructions, axis=-1) if reconstructions else None

    def _encode_fused(self, fused: list[Array], valid: Array | None) -> Array:
        _, middle, coarse = self.widths
        sizes = ((middle, middle), (middle, coarse), (coarse, coarse))
        features = None
        for level, (inner, width) in enumerate(sizes):
            previous = None if features is None else layers.downsample(features)
            fusion = Fusion(inner, width, self.axis, layers.leaky, name=f"down{level}")
            features = fusion(fused[level], previous, valid)
        return Layer(2 * coarse, self.axis, layers.leaky, name="deep")(features, valid)

    def _decode(
        self, features: Array, fused: list[Array], images: Images, valid: Array | None
    ) -> Images:
        fine, middle, coarse = self.widths
        features = Layer(coarse, self.axis, name="enter")(features, valid)
        finer = [images, *fused[:-1]]
        sizes = ((fine, fine), (middle, fine), (coarse, middle))
        for level, (inner, width) in reversed([*enumerate(sizes)]):
            fusion = Fusion(inner, width, self.axis, nn.relu, name=f"up{level}")
            features = layers.upsample(fusion(fused[level], features, valid), finer[level])
        features = Layer(fine, self.axis, name="leave")(features, valid)
        return nn.Conv(images.shape[-1], (3, 3), name="head")(features)


class Discriminator(nn.Module):
    """The scores [B, h, w, 1] of the patches of all modalities [B, H, W, M]."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, images: Images, valid: Array) -> Array:
        features = images
        # The last convolution needs three positions a side.
        depth = layers.count_halvings(images.shape[1:3], len(self.widths), 4)
        for level, width in enumerate(self.widths[:depth]):
            features = nn.Conv(width, (3, 3), (2, 2), name=f"down{level}")(features)
            if level:
                norm = layers.BatchNorm(self.axis, 0.8, running=False, name=f"norm{level}")
                features = norm(features, valid)
            features = layers.leaky(features)
        return nn.Conv(1, (3, 3), padding="VALID", name="verdict")(features)


@dataclasses.dataclass(frozen=True)
class HiNet(method.Method):
    """Hi-Net for `modalities` modalities, of images in [-1, 1]."""

    modalities: int
    generator: nn.Module
    discriminator: nn.Module

    name = "hi-net"
    title = "Hi-Net"
    note = (
        "Adapted: one model for all missing patterns, with fusions of whatever is"
        " available and an output for each modality, linear and not a tanh; the"
        " discriminator sees all modalities at once."
    )
    learning_rates = (1e-3, 1e-3)
    training_only = ("decoder",)

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        keys = jax.random.split(key)
        images, valid = jnp.zeros((1, *grid, self.modalities)), jnp.ones(1, bool)
        available = jnp.ones((1, self.modalities), bool)
        # Initialisation runs on a single device: the batch norms must not sum over `axis`.
        generator, discriminator = (
            network.clone(axis=None) for network in (self.generator, self.discriminator)
        )
        variables = generator.init(keys[0], images, available, valid)
        return {
            "generator": variables["params"],
            "discriminator": discriminator.init(keys[1], images, valid)["params"],
            "statistics": variables["statistics"],
        }

    def complete(self, params: Params, condition: Condition) -> Images:
        variables = {"params": params["generator"], "statistics": params["statistics"]}
        images = 2 * condition.seen - 1
        generated, _ = self.generator.apply(variables, images, ~condition.missing, None)
        return condition.fill((generated + 1) / 2)

    def losses(self, keys: Keys, params: Params, batch: method.GANBatch) -> method.MethodLosses:
        """The least-squares GAN loss, 100 times the mean absolute error of the scored
        modalities, and 20 times that of each reconstructed input. `keys` are not used."""
        images = 2 * batch.images - 1
        (generated, reconstructed), changed = self.generator.apply(
            {"params": params["generator"], "statistics": params["statistics"]},
            jnp.where(per_modality(batch.missing), -1.0, images),
            batch.seen,
            batch.valid,
            mutable=["statistics"],
        )
        real, fake = method.real_and_fake(batch, images, generated)

        def loss(params: Params, candidate: Images, target: float) -> Losses:
            scores = self.discriminator.apply({"params": params}, candidate, batch.valid)
            return method.least_squares(scores, target)

        adversarial, discriminator = method.adversarial_losses(
            loss, params["discriminator"], real, fake
        )
        error = method.masked_mean(jnp.abs(generated - images), batch.scored)
        reconstruction = method.masked_mean(jnp.abs(reconstructed - images), batch.seen)
        parts = {
            "adversarial": (1.0, adversarial),
            "l1": (L1_WEIGHT, error),
            # As published, a sum over the inputs of the example.
            "rebuilt": (RECONSTRUCTION_WEIGHT, reconstruction * batch.seen.sum(axis=1)),
        }
        statistics = jax.lax.stop_gradient(changed["statistics"])
        return method.combine_losses(batch, parts, 0.5 * discriminator, statistics)


def make_hi_net(modalities: int, *, width: float, scale: float, axis: str | None) -> HiNet:
    """Hi-Net with `width` times its published channels; batch statistics are over all
    devices of `axis`, and `scale` is not used."""
    generator = Generator(layers.scale_widths(WIDTHS, width), axis)
    discriminator = Discriminator(layers.scale_widths(DISCRIMINATOR_WIDTHS, width), axis)
    return HiNet(modalities, generator, discriminator)
