"""A small segmentation network, built from the mm-CSN's blocks."""

import flax.linen as nn
import jax.numpy as jnp

from ummcsgm.models.mm_csn import (
    NormFiLMAct,
    UNet,
    from_patches,
    silu_film,
    split_patches,
    to_patches,
)
from ummcsgm.types import Array, Images


class Segmenter(UNet):
    """images [B, H, W, M] -> logits [B, H, W, classes] float32, 0 at initialisation.

    A U-Net over patches, and two convolutions at full resolution for what is smaller
    than a patch. H and W must be multiples of `patch` 2^(levels - 1).
    """

    classes: int
    scale: float  # the images are divided by it
    patch: int
    pixel_width: int
    context: int  # channels of context that the U-Net hands to the pixels

    @nn.compact
    def __call__(self, images: Images) -> Array:
        images = (images / self.scale).astype(self.dtype)
        stem = self.conv(self.widths[0], "stem")
        features, skips = self.down(stem(to_patches(images, self.patch)), None)
        features = self.up(features, skips, None)[0]
        features = NormFiLMAct(self.dtype, name="norm")(features, None)
        context = self.dense(self.context * self.patch**2, "context_out")(features)
        context = from_patches(context, self.patch)
        hidden = self.conv(self.pixel_width, "enter")(jnp.concatenate([images, context], axis=-1))
        film = self.dense(2 * self.pixel_width, "film")(features)
        pixels = silu_film(split_patches(hidden, features), film[:, :, None, :, None])
        hidden = self.conv(self.pixel_width, "pixels")(pixels.reshape(hidden.shape))
        hidden = nn.silu(hidden).astype(jnp.float32)
        zeros = nn.initializers.zeros
        return nn.Dense(self.classes, kernel_init=zeros, name="logits")(hidden)

    @nn.nowrap
    def dense(self, width: int, name: str) -> nn.Dense:
        """A linear layer on each position."""
        return nn.Dense(width, dtype=self.dtype, name=name)

    @nn.nowrap
    def conv(self, width: int, name: str) -> nn.Conv:
        """A 3 x 3 convolution."""
        return nn.Conv(width, (3, 3), dtype=self.dtype, name=name)
