"""A small network that says whether a patch of a scan is drawn or real."""

import flax.linen as nn
import jax.numpy as jnp

from ummcsgm.types import Array, Images


class PatchClassifier(nn.Module):
    """patches [B, H, W, C] -> logits [B] float32.

    Convolutions whose features are averaged over the patch: what it sees of a texture does not
    depend on where in the patch it lies.
    """

    widths: tuple[int, ...] = (16, 32, 32)

    @nn.compact
    def __call__(self, patches: Images) -> Array:
        features = patches
        for level, width in enumerate(self.widths):
            features = nn.silu(nn.Conv(width, (3, 3), strides=2 if level else 1)(features))
        features = nn.silu(nn.Conv(self.widths[-1], (3, 3))(features))
        return nn.Dense(1)(jnp.mean(features, axis=(1, 2)))[:, 0]
