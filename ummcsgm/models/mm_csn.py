"""mm-CSN: a multi-in multi-out U-Net over the complete modality space (fig. 1).

M channels in, M channels out, whatever is missing. Plain fields in, an image out: the
network knows no SDE and no config. Its parts:

    stem      H x W x M -> H/p x W/p: space-to-depth, or the orthonormal Haar transform
    U-Net     residual blocks, average pooling, attention only on small grids
    pixels    a full-resolution path of pointwise layers, fed by the input itself and by
              a few upsampled channels of context (`pixels.py`)

`conditioning="decoder"` is the paper: the encoder sees (a_t, b) alone, time and the
code A|B join its latent features in the decoder. `"both"` tells the encoder too.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.diffusion.missingness import per_modality
from ummcsgm.models.patches import from_patches, to_patches
from ummcsgm.models.pixels import (
    VARIANCE,
    ConditioningCache,
    ConditioningStem,
    PixelPath,
    VarianceHead,
    partial_conv,
)
from ummcsgm.types import Array, Images, Missing, Params, Stacks, Times

CONDITIONINGS = ("both", "decoder")


def fourier_features(level: Times) -> Array:
    """[B] -> [B, 17]: the level itself, and sines and cosines of 8 octaves of it."""
    angles = level[:, None] * 2.0 ** jnp.arange(-1, 7)
    return jnp.concatenate([level[:, None], jnp.sin(angles), jnp.cos(angles)], axis=1)


class ConditionEmbedding(nn.Module):
    """The noise level and the code A|B as one vector, [B, width]."""

    width: int

    @nn.compact
    def __call__(self, level: Times, missing: Missing) -> Array:
        code = 2.0 * missing.astype(jnp.float32) - 1.0
        facts = jnp.concatenate([fourier_features(level), code], axis=1)
        hidden = nn.silu(nn.Dense(self.width, name="first")(facts))
        return nn.silu(nn.Dense(self.width, name="second")(hidden))


class NormFiLMAct(nn.Module):
    """silu(norm(x)) or, with a condition, silu(norm(x) (1 + scale) + shift) (FiLM).

    The norm is that of each position: a slice's background must not dilute its brain.
    """

    dtype: Any

    @nn.compact
    def __call__(self, features: Array, condition: Array | None) -> Array:
        width = features.shape[-1]
        gain = self.param("scale", nn.initializers.ones, (width,))
        film = None
        if condition is not None:
            film = nn.Dense(2 * width, name="film")(condition)[:, None, None]
        return _activated(features, gain, film).astype(self.dtype)


@jax.checkpoint
def _activated(features: Array, gain: Array, film: Array | None) -> Array:
    """What `NormFiLMAct` is; its gradient remembers `features` alone."""
    exact = features.astype(jnp.float32)
    square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
    hidden = exact * (jax.lax.rsqrt(square + 1e-6) * gain)
    if film is not None:
        scale, shift = jnp.split(film, 2, axis=-1)
        hidden = hidden * (1 + scale) + shift
    return nn.silu(hidden)


class Block(nn.Module):
    """x + conv(activate(conv(activate(x)))), the identity at first."""

    dtype: Any

    @nn.compact
    def __call__(self, features: Array, condition: Array | None) -> Array:
        width = features.shape[-1]
        hidden = NormFiLMAct(self.dtype, name="enter")(features, condition)
        hidden = nn.Conv(width, (3, 3), dtype=self.dtype, name="first")(hidden)
        hidden = NormFiLMAct(self.dtype, name="norm")(hidden, None)
        zeros = nn.initializers.zeros
        return features + nn.Conv(
            width, (3, 3), dtype=self.dtype, kernel_init=zeros, name="second"
        )(hidden)


class Attention(nn.Module):
    """Self-attention over the positions of a small grid, in heads of 32 channels."""

    dtype: Any

    @nn.compact
    def __call__(self, features: Array) -> Array:
        b, h, w, c = features.shape
        tokens = nn.RMSNorm(dtype=self.dtype, name="norm")(features)
        attend = nn.MultiHeadDotProductAttention(
            num_heads=c // 32,
            dtype=self.dtype,
            out_kernel_init=nn.initializers.zeros,
            name="attend",
        )
        return features + attend(tokens.reshape(b, h * w, c)).reshape(b, h, w, c)


class MMCSN(nn.Module):
    """mm-CSN: (images, missing, level) -> [B, H, W, M] float32, zero at initialisation.

    `images` [B, H, W, channels()] holds the scaled a_t where missing and the scaled b
    elsewhere, then the scaled b of the neighbouring slices, 0 where missing; `level`
    [B] names the noise level. H and W must be multiples of `multiple()`. With
    `variance` the answer is [B, H, W, 2M]: after the image the log variance of its
    error.
    """

    modalities: int
    widths: tuple[int, ...]  # channels of each level, the finest first
    blocks: tuple[int, ...]  # residual blocks of each level, on either side
    stem: str
    patch: int
    attention_max_grid: int  # attention on grids of at most this many positions a side
    pixel_width: int
    pixel_layers: int
    context_channels: int  # channels of context that the U-Net hands to the pixels
    conditioning: str
    predict_variance: bool  # a second head, which predicts it
    neighbour_slices: int  # slices on either side that the encoder is shown
    remat: tuple[bool, ...]  # of each level: blocks are computed again for gradients
    dtype: Any

    def multiple(self) -> int:
        """What the sides of the network's grid must be multiples of."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def channels(self) -> int:
        """How many the images have, neighbours and all."""
        return self.modalities * (1 + 2 * self.neighbour_slices)

    @nn.nowrap
    def once(
        self, params: Params, seen: Images, near: Array, missing: Missing
    ) -> ConditioningCache:
        """What is the same for every a_t and time of a question: to be handed to all
        evaluations of it. `seen` and `near` are 0 where missing."""
        own = {"params": params["params"]["still"]}
        return ConditioningStem(*self._still(), parent=None).apply(own, seen, near, missing)

    @nn.nowrap
    def _still(self) -> tuple:
        told = self.conditioning == "both"
        first = (self.widths[0], self.patch, self.stem, told)
        return (*first, self.pixel_width, self.context_channels, self.dtype)

    @nn.compact
    def __call__(
        self, images: Stacks, missing: Missing, level: Times, once: ConditioningCache | None = None
    ) -> Images:
        images, near = images[..., : self.modalities], images[..., self.modalities :]
        condition = ConditionEmbedding(4 * self.widths[0], name="condition")(level, missing)
        told = condition if self.conditioning == "both" else None
        asked = per_modality(missing)
        if once is None:
            once = ConditioningStem(*self._still(), name="still")(
                jnp.where(asked, 0, images), near, missing
            )
        # Noise and tissue in channels of their own: each has weights of its own.
        noisy = jnp.where(asked, images, 0)
        moving = jnp.concatenate([images, near], axis=-1) if told is None else noisy
        features, skips = self.encode(moving, told, once)
        features = self.decode(features, skips, condition)
        features = NormFiLMAct(self.dtype, name="norm")(features, None)
        around = nn.Dense(
            self.context_channels * self.patch**2, dtype=self.dtype, name="context_out"
        )(features)
        around = from_patches(around, self.patch, self.stem)
        own = (self.modalities, self.pixel_width, self.pixel_layers, self.dtype)
        image, hidden = PixelPath(*own, name="pixels")(noisy, around, features, once)
        if not self.predict_variance:
            return image
        given = jnp.concatenate([noisy, once.given], axis=-1)
        head = VarianceHead(self.modalities, self.dtype, name=VARIANCE)
        return jnp.concatenate([image, head(given, hidden, features)], axis=-1)

    def encode(
        self, moving: Array, told: Array | None, once: ConditioningCache
    ) -> tuple[Array, list[Array]]:
        """The features of the coarsest level, and each finer level's for the skip."""
        inputs = to_patches(moving.astype(self.dtype), self.patch, self.stem)
        own, still = inputs.shape[-1], 0
        if told is not None:
            still = self.channels() * self.patch**2 + self.modalities
        conv = partial_conv(own, own + still, self.widths[0], self.dtype, bias=True, name="stem")
        features, skips = conv(inputs), []
        if once.stem is not None:
            features += once.stem
        for depth in range(len(self.widths)):
            if depth:
                features = nn.avg_pool(features, (2, 2), (2, 2))
            features = self.level("down", depth, features, told)
            skips.append(features)
        return features, skips[:-1]

    def decode(self, features: Array, skips: list[Array], condition: Array) -> Array:
        """The features of the finest level, conditioned on time and the code."""
        features = self.level("up", len(self.widths) - 1, features, condition)
        for depth in reversed(range(len(self.widths) - 1)):
            b, h, w, c = features.shape
            features = jax.image.resize(features, (b, 2 * h, 2 * w, c), "nearest")
            features = jnp.concatenate([features, skips[depth]], axis=-1)
            features = self.level("up", depth, features, condition)
        return features

    def level(self, side: str, depth: int, features: Array, condition: Array | None) -> Array:
        """The blocks of one level, then attention if its grid is small enough."""
        width = self.widths[depth]
        if features.shape[-1] != width:
            enter = nn.Dense(width, dtype=self.dtype, name=f"{side}{depth}_enter")
            features = enter(features)
        kind = nn.remat(Block) if self.remat[depth] else Block
        for index in range(self.blocks[depth]):
            block = kind(self.dtype, name=f"{side}{depth}_{index}")
            features = block(features, condition)
        if max(features.shape[1:3]) <= self.attention_max_grid:
            name = f"{side}{depth}_attention"
            features = Attention(self.dtype, name=name)(features)
        return features
