"""The full-resolution path of mm-CSN, its second head, and what is computed once.

Without a path for single pixels a patch stem loses the voxel-to-voxel relation between
contrasts.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.diffusion.missingness import per_modality
from ummcsgm.models.patches import split_patches, to_patches
from ummcsgm.types import Array, Images, Missing, Params

VARIANCE = "variance"  # the head's name among the parameters
LOG_VARIANCE = (-11.0, 1.0)  # of the output, whose own is 1 if nothing were known


def pairwise_products(images: Array) -> Array:
    """[B, H, W, M] -> [B, H, W, M (M + 1) / 2]: each two modalities multiplied, over 4.

    With them, one linear map a patch is a quadratic one: where gadolinium was taken up,
    no linear map from T1c finds T1.
    """
    one, other = np.triu_indices(images.shape[-1])
    return images[..., one] * images[..., other] / 4


@jax.checkpoint
def silu_film(hidden: Array, film: Array) -> Array:
    """silu(hidden (1 + scale) + shift), film being scale and shift (FiLM).

    Its gradient remembers what goes in and nothing between.
    """
    scale, shift = jnp.split(film, 2, axis=-1)
    return nn.silu(hidden * (1 + scale) + shift)


def partial_conv(own: int, total: int, width: int, dtype: Any, *, bias: bool, name: str) -> nn.Conv:
    """The part of a 3 x 3 convolution of `total` channels that reads `own` of them.

    Parts are summed; each has the initial scale that it would have in the whole.
    """
    scaled = nn.initializers.variance_scaling(own / total, "fan_in", "truncated_normal")
    return nn.Conv(width, (3, 3), dtype=dtype, use_bias=bias, kernel_init=scaled, name=name)


class ConditioningCache(NamedTuple):
    """What does not change while a_t and t do, of one question.

    `stem` and `enter` are what the first convolutions of U-Net and pixels make of it,
    `given` [B, H, W, M + M (M + 1) / 2] the seen images and their products.
    """

    stem: Array | None  # None where the encoder is not told which is which
    enter: Array
    given: Array


class ConditioningStem(nn.Module):
    """The part of the first layers that reads what is seen alone: a `ConditioningCache`.

    In a sampler it is computed before the first step. `seen` [B, H, W, M] is 0 where
    missing, `near` the neighbouring slices.
    """

    width: int
    patch: int
    stem: str
    told: bool
    pixel_width: int
    context: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Images, near: Array, missing: Missing) -> ConditioningCache:
        # Of what is seen alone: there is no telling noise in a product.
        given = jnp.concatenate([seen, pairwise_products(seen)], axis=-1)
        modalities, known = seen.shape[-1], given.shape[-1]
        whole = known + modalities + self.context
        conv = partial_conv(known, whole, self.pixel_width, self.dtype, bias=False, name="enter")
        enter = conv(given)
        if not self.told:
            return ConditioningCache(None, enter, given)
        inputs = jnp.concatenate([seen, near], axis=-1)
        features = to_patches(inputs.astype(self.dtype), self.patch, self.stem)
        flags = per_modality(missing).astype(self.dtype)
        flags = jnp.broadcast_to(flags, features.shape[:3] + flags.shape[-1:])
        features = jnp.concatenate([features, flags], axis=-1)
        own = features.shape[-1]
        whole = own + modalities * self.patch**2
        conv = partial_conv(own, whole, self.width, self.dtype, bias=False, name="stem")
        return ConditioningCache(conv(features), enter, given)


class PixelPath(nn.Module):
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
        self, noisy: Images, around: Array, patches: Array, once: ConditioningCache
    ) -> tuple[Images, Array]:
        """The image, and the last hidden features [B, h, p, w, q, width] of pixels."""
        inputs = jnp.concatenate([noisy, around], axis=-1)
        given = jnp.concatenate([noisy, once.given], axis=-1)
        own = inputs.shape[-1]
        conv = partial_conv(
            own, own + once.given.shape[-1], self.width, self.dtype, bias=True, name="enter"
        )
        hidden = split_patches(conv(inputs) + once.enter, patches)
        for layer in range(self.layers):
            film = nn.Dense(2 * self.width, dtype=self.dtype, name=f"film{layer}")
            hidden = silu_film(hidden, film(patches)[:, :, None, :, None])
            hidden = nn.Dense(self.width, dtype=self.dtype, name=f"{layer}")(hidden)
        hidden = jax.checkpoint(nn.silu)(hidden).astype(jnp.float32)
        zeros = nn.initializers.zeros
        image = nn.Dense(self.modalities, kernel_init=zeros, name="image")(hidden)
        maps = nn.Dense(self.modalities * given.shape[-1], kernel_init=zeros, name="map")
        maps = maps(patches.astype(jnp.float32))
        maps = maps.reshape(*patches.shape[:3], self.modalities, given.shape[-1])
        image += jnp.einsum("bhpwqi,bhwoi->bhpwqo", split_patches(given, patches), maps)
        return image.reshape(*given.shape[:3], self.modalities), hidden


class VarianceHead(nn.Module):
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
        hidden = nn.Dense(width, dtype=self.dtype, name="hidden")(hidden)
        own = nn.Dense(width, use_bias=False, dtype=self.dtype, name="given")(given)
        hidden += split_patches(own, patches)
        hidden = silu_film(hidden, film[:, :, None, :, None]).astype(jnp.float32)
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
