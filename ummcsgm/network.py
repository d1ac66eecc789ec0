"""mm-CSN: a multi-in multi-out U-Net over the complete modality space (fig. 1).

M channels in, M channels out, whatever is missing. Plain fields in, an image out: the
network knows no SDE and no config. Its parts:

    stem      H x W x M -> H/p x W/p: space-to-depth, or the orthonormal Haar transform
    U-Net     residual blocks, average pooling, attention only on small grids
    pixels    a full-resolution path of pointwise layers, fed by the input itself and by
              a few upsampled channels of context, without which a patch stem loses the
              voxel-to-voxel relation between contrasts

`conditioning="decoder"` is the paper: the encoder sees (a_t, b) alone, time and the
code A|B join its latent features in the decoder. `"both"` tells the encoder too.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.completion import channels
from ummcsgm.patches import from_patches, in_patches, to_patches
from ummcsgm.types import Array, Images, Missing, Params, Stacks, Times

CONDITIONINGS = ("both", "decoder")
VARIANCE = "variance"  # the head's name among the parameters
LOG_VARIANCE = (-11.0, 1.0)  # of the output, whose own is 1 if nothing were known


def products(images: Array) -> Array:
    """[B, H, W, M] -> [B, H, W, M (M + 1) / 2]: each two modalities multiplied, over 4.

    With them, one linear map a patch is a quadratic one: where gadolinium was taken up,
    no linear map from T1c finds T1.
    """
    one, other = np.triu_indices(images.shape[-1])
    return images[..., one] * images[..., other] / 4


def fourier(level: Times) -> Array:
    """[B] -> [B, 17]: the level itself, and sines and cosines of 8 octaves of it."""
    angles = level[:, None] * 2.0 ** jnp.arange(-1, 7)
    return jnp.concatenate([level[:, None], jnp.sin(angles), jnp.cos(angles)], axis=1)


class Condition(nn.Module):
    """The noise level and the code A|B as one vector, [B, width]."""

    width: int

    @nn.compact
    def __call__(self, level: Times, missing: Missing) -> Array:
        code = 2.0 * missing.astype(jnp.float32) - 1.0
        facts = jnp.concatenate([fourier(level), code], axis=1)
        hidden = nn.silu(nn.Dense(self.width, name="first")(facts))
        return nn.silu(nn.Dense(self.width, name="second")(hidden))


class Modulate(nn.Module):
    """A scale and a shift of every channel, given by the condition (FiLM)."""

    dtype: Any

    @nn.compact
    def __call__(self, features: Array, condition: Array) -> Array:
        film = nn.Dense(2 * features.shape[-1], name="film")(condition)
        scale, shift = jnp.split(film.astype(self.dtype)[:, None, None], 2, axis=-1)
        return features * (1 + scale) + shift


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(modulate(norm(x))))))), the identity at first."""

    dtype: Any

    @nn.compact
    def __call__(self, features: Array, condition: Array | None) -> Array:
        width = features.shape[-1]
        # Norms are per position: a slice's background must not dilute its brain.
        hidden = nn.RMSNorm(dtype=self.dtype, name="enter")(features)
        if condition is not None:
            hidden = Modulate(self.dtype, name="modulate")(hidden, condition)
        hidden = nn.silu(hidden)
        hidden = nn.Conv(width, (3, 3), dtype=self.dtype, name="first")(hidden)
        hidden = nn.silu(nn.RMSNorm(dtype=self.dtype, name="norm")(hidden))
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


class Pixels(nn.Module):
    """The full-resolution path: what a pixel's own values say, read patch by patch.

    What the U-Net knows of a patch (bias field, protocol, time, A|B) modulates the
    pointwise layers of all its pixels, and gives them one linear map from the given
    images to the answer: a local change of contrast (Gharbi et al. 2017, bilateral
    grids, for the idea).
    """

    modalities: int
    width: int
    layers: int
    dtype: Any

    @nn.compact
    def __call__(
        self, given: Array, around: Array, patches: Array
    ) -> tuple[Images, Array]:
        """The image, and the last hidden features [B, h, p, w, q, width] of pixels."""
        inputs = jnp.concatenate([given, around], axis=-1)
        hidden = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="enter")(inputs)
        hidden = in_patches(hidden, patches)
        for layer in range(self.layers):
            film = nn.Dense(2 * self.width, dtype=self.dtype, name=f"film{layer}")
            scale, shift = jnp.split(film(patches)[:, :, None, :, None], 2, axis=-1)
            hidden = nn.silu(hidden * (1 + scale) + shift)
            hidden = nn.Dense(self.width, dtype=self.dtype, name=f"{layer}")(hidden)
        hidden = nn.silu(hidden).astype(jnp.float32)
        zeros = nn.initializers.zeros
        image = nn.Dense(self.modalities, kernel_init=zeros, name="image")(hidden)
        maps = nn.Dense(
            self.modalities * given.shape[-1], kernel_init=zeros, name="map"
        )
        maps = maps(patches.astype(jnp.float32))
        maps = maps.reshape(*patches.shape[:3], self.modalities, given.shape[-1])
        image += jnp.einsum("bhpwqi,bhwoi->bhpwqo", in_patches(given, patches), maps)
        return image.reshape(*given.shape[:3], self.modalities), hidden


class Variance(nn.Module):
    """The log variance of each voxel of the answer, from what the answer is made of:
    the given images, the pixels' last hidden features, and those of their patches.

    Bounded by `LOG_VARIANCE`, about 0 at initialisation. No gradient leaves it: what
    the answer is made of learns from the answer alone.
    """

    modalities: int
    dtype: Any

    @nn.compact
    def __call__(self, given: Array, hidden: Array, patches: Array) -> Array:
        hidden, patches = jax.lax.stop_gradient((hidden, patches))
        width = hidden.shape[-1] // 4
        film = nn.Dense(2 * width, dtype=self.dtype, name="film")(patches)
        scale, shift = jnp.split(film[:, :, None, :, None], 2, axis=-1)
        hidden = nn.Dense(width, dtype=self.dtype, name="hidden")(hidden)
        own = nn.Dense(width, use_bias=False, dtype=self.dtype, name="given")(given)
        hidden += in_patches(own, patches)
        hidden = nn.silu(hidden * (1 + scale) + shift).astype(jnp.float32)
        zeros = nn.initializers.zeros
        raw = nn.Dense(self.modalities, kernel_init=zeros, name="log")(hidden)
        least, most = LOG_VARIANCE
        logs = least + nn.softplus(most - nn.softplus(most - raw) - least)
        return logs.reshape(*given.shape[:3], self.modalities)


def in_variance_head(params: Params) -> Any:
    """A tree like `params` of bools: True for the parameters of the variance head."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(part.key == VARIANCE for part in path), params
    )


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
    attention_at: int  # attention on grids of at most this many positions a side
    pixel_width: int
    pixel_layers: int
    context: int  # channels of context that the U-Net hands to the pixels
    conditioning: str
    variance: bool  # a second head, which predicts it
    neighbours: int  # slices on either side that the encoder is shown
    remat: tuple[bool, ...]  # of each level: blocks are computed again for gradients
    dtype: Any

    def multiple(self) -> int:
        """What the sides of the network's grid must be multiples of."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def channels(self) -> int:
        """How many the images have, neighbours and all."""
        return self.modalities * (1 + 2 * self.neighbours)

    @nn.compact
    def __call__(self, images: Stacks, missing: Missing, level: Times) -> Images:
        images, near = images[..., : self.modalities], images[..., self.modalities :]
        condition = Condition(4 * self.widths[0], name="condition")(level, missing)
        told = condition if self.conditioning == "both" else None
        asked = channels(missing)
        # Noise and tissue in channels of their own: each has weights of its own.
        apart = jnp.concatenate(
            [jnp.where(asked, images, 0), jnp.where(asked, 0, images)], axis=-1
        )
        inputs = jnp.concatenate([images if told is None else apart, near], axis=-1)
        features, skips = self.encode(inputs, missing, told)
        features = self.decode(features, skips, condition)
        features = nn.silu(nn.RMSNorm(dtype=self.dtype, name="norm")(features))
        around = nn.Dense(
            self.context * self.patch**2, dtype=self.dtype, name="context_out"
        )(features)
        around = from_patches(around, self.patch, self.stem)
        # Of what is seen alone: there is no telling noise in a product.
        known = products(jnp.where(asked, 0, images))
        given = jnp.concatenate([apart, known], axis=-1)
        pixels = Pixels(
            self.modalities,
            self.pixel_width,
            self.pixel_layers,
            self.dtype,
            name="pixels",
        )
        image, hidden = pixels(given, around, features)
        if not self.variance:
            return image
        head = Variance(self.modalities, self.dtype, name=VARIANCE)
        logs = head(given, hidden, features)
        return jnp.concatenate([image, logs], axis=-1)

    def encode(
        self, inputs: Array, missing: Missing, told: Array | None
    ) -> tuple[Array, list[Array]]:
        """The features of the coarsest level, and each finer level's for the skip."""
        features = to_patches(inputs.astype(self.dtype), self.patch, self.stem)
        if told is not None:
            flags = channels(missing).astype(self.dtype)
            flags = jnp.broadcast_to(flags, features.shape[:3] + flags.shape[-1:])
            features = jnp.concatenate([features, flags], axis=-1)
        stem = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="stem")
        features, skips = stem(features), []
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

    def level(
        self, side: str, depth: int, features: Array, condition: Array | None
    ) -> Array:
        """The blocks of one level, then attention if its grid is small enough."""
        width = self.widths[depth]
        if features.shape[-1] != width:
            enter = nn.Dense(width, dtype=self.dtype, name=f"{side}{depth}_enter")
            features = enter(features)
        kind = nn.remat(Block) if self.remat[depth] else Block
        for index in range(self.blocks[depth]):
            block = kind(self.dtype, name=f"{side}{depth}_{index}")
            features = block(features, condition)
        if max(features.shape[1:3]) <= self.attention_at:
            name = f"{side}{depth}_attention"
            features = Attention(self.dtype, name=name)(features)
        return features
