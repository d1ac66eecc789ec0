"""mm-CSN: a multi-in multi-out U-Net over the complete modality space (fig. 1).

M channels in, M channels out, whatever is missing. The network knows no SDE and no
config. Read from top to bottom:

    blocks             FiLM, residual blocks, attention
    UNet               the levels that mm-CSN and the segmenter share
    patches            space-to-depth: H x W x M -> H/p x W/p x M p^2, and back
    ConditioningStem   the part of the first layers that reads the seen images alone
    PixelPath          pointwise layers at full resolution, fed by the input itself and
                       by a few upsampled channels of context
    VarianceHead       a second head: the log variance of each voxel's error
    MMCSN              the network

With `conditioning="decoder"` (the paper) the encoder reads (a_t, b) alone; time and the
code A|B join its latent features in the decoder. With `"both"` they enter the encoder too.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images, Missing, Params, Stacks, Times

CONDITIONINGS = ("both", "decoder")
VARIANCE = "variance"  # the variance head's name among the parameters
LOG_VARIANCE = (-11.0, 1.0)  # the range of the head's output; 0 if nothing were known


def fourier_features(log_level: Times) -> Array:
    """[B] -> [B, 17]: the level itself, and sines and cosines of 8 octaves of it."""
    angles = log_level[:, None] * 2.0 ** jnp.arange(-1, 7)
    return jnp.concatenate([log_level[:, None], jnp.sin(angles), jnp.cos(angles)], axis=1)


class ConditionEmbedding(nn.Module):
    """The noise level and the code A|B as one vector, [B, width]."""

    width: int

    @nn.compact
    def __call__(self, log_level: Times, missing: Missing) -> Array:
        code = 2.0 * missing.astype(jnp.float32) - 1.0
        inputs = jnp.concatenate([fourier_features(log_level), code], axis=1)
        hidden = nn.silu(nn.Dense(self.width, name="first")(inputs))
        return nn.silu(nn.Dense(self.width, name="second")(hidden))


class NormFiLMAct(nn.Module):
    """silu(norm(x)) or, with a condition, silu(norm(x) (1 + scale) + shift) (FiLM).

    RMS norm over the channels of each position, so that the background of a slice does
    not change the scale of its brain.
    """

    dtype: Any

    @nn.compact
    def __call__(self, features: Array, condition: Array | None) -> Array:
        width = features.shape[-1]
        gain = self.param("scale", nn.initializers.ones, (width,))
        film = None
        if condition is not None:
            film = nn.Dense(2 * width, name="film")(condition)[:, None, None]
        return _norm_film_act(features, gain, film).astype(self.dtype)


@jax.checkpoint
def _norm_film_act(features: Array, gain: Array, film: Array | None) -> Array:
    """`NormFiLMAct`'s function; its gradient stores `features` alone."""
    exact = features.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
    hidden = exact * (jax.lax.rsqrt(mean_square + 1e-6) * gain)
    if film is not None:
        scale, shift = jnp.split(film, 2, axis=-1)
        hidden = hidden * (1 + scale) + shift
    return nn.silu(hidden)


class Block(nn.Module):
    """x + conv(act(conv(act(x)))), the identity at initialisation."""

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


class UNet(nn.Module):
    """The levels of a U-Net; a subclass adds what comes before, between and after."""

    widths: tuple[int, ...]  # channels of each level, the finest first
    blocks: tuple[int, ...]  # residual blocks of each level, on either side
    attention_max_grid: int  # attention on grids of at most this many positions a side
    remat: tuple[bool, ...]  # for each level: recompute its blocks for the gradient
    dtype: Any

    def down(self, features: Array, condition: Array | None) -> tuple[Array, list[Array]]:
        """The features of the coarsest level, and the skips of the finer ones."""
        skips = []
        for depth in range(len(self.widths)):
            if depth:
                features = nn.avg_pool(features, (2, 2), (2, 2))
            features = self.level("down", depth, features, condition)
            skips.append(features)
        return features, skips[:-1]

    def up(self, features: Array, skips: list[Array], condition: Array | None) -> list[Array]:
        """The decoder's features of each level, the finest first."""
        levels = [features]
        for depth in reversed(range(len(skips))):
            b, h, w, c = features.shape
            features = jax.image.resize(features, (b, 2 * h, 2 * w, c), "nearest")
            features = jnp.concatenate([features, skips[depth]], axis=-1)
            features = self.level("up", depth, features, condition)
            levels.insert(0, features)
        return levels

    def level(self, side: str, depth: int, features: Array, condition: Array | None) -> Array:
        """The blocks of one level, then attention if its grid is small enough."""
        width = self.widths[depth]
        if features.shape[-1] != width:
            features = nn.Dense(width, dtype=self.dtype, name=f"{side}{depth}_enter")(features)
        block_class = nn.remat(Block) if self.remat[depth] else Block
        for index in range(self.blocks[depth]):
            block = block_class(self.dtype, name=f"{side}{depth}_{index}")
            features = block(features, condition)
        if max(features.shape[1:3]) <= self.attention_max_grid:
            features = Attention(self.dtype, name=f"{side}{depth}_attention")(features)
        return features


def to_patches(images: Array, patch: int) -> Array:
    """[B, H, W, C] -> [B, H/p, W/p, C p^2]: space-to-depth."""
    b, h, w, c = images.shape
    grid = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return grid.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // patch, w // patch, -1)


def from_patches(features: Array, patch: int) -> Array:
    """[B, h, w, C p^2] -> [B, h p, w p, C], the inverse of `to_patches`."""
    b, h, w, _ = features.shape
    grid = features.reshape(b, h, w, -1, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return grid.reshape(b, h * patch, w * patch, -1)


def split_patches(images: Array, patches: Array) -> Array:
    """[B, H, W, C] as [B, h, p, w, q, C]: the pixels of each of [B, h, w] patches."""
    (b, h, w, _), (_, height, width, c) = patches.shape, images.shape
    return images.reshape(b, h, height // h, w, width // w, c)


def pairwise_products(images: Array) -> Array:
    """[B, H, W, M] -> [B, H, W, M (M + 1) / 2]: products of two modalities, over 4.

    With them one linear map per patch is quadratic in the images. Where gadolinium was
    taken up, no linear map from T1c finds T1.
    """
    first, second = np.triu_indices(images.shape[-1])
    return images[..., first] * images[..., second] / 4


@jax.checkpoint
def silu_film(hidden: Array, film: Array) -> Array:
    """silu(hidden (1 + scale) + shift), `film` being scale and shift (FiLM).

    Its gradient stores the inputs and no intermediate value.
    """
    scale, shift = jnp.split(film, 2, axis=-1)
    return nn.silu(hidden * (1 + scale) + shift)


def partial_conv(
    channels: int, total: int, width: int, dtype: Any, *, bias: bool, name: str
) -> nn.Conv:
    """The part of a 3 x 3 convolution of `total` channels that reads `channels` of them.

    The parts are summed; each has the initial scale that it would have in the whole.
    """
    init = nn.initializers.variance_scaling(channels / total, "fan_in", "truncated_normal")
    return nn.Conv(width, (3, 3), dtype=dtype, use_bias=bias, kernel_init=init, name=name)


class ConditioningCache(NamedTuple):
    """What depends on the seen images and A|B alone, and not on a_t or t.

    `stem` and `enter` are the seen images' part of the first convolutions of U-Net and
    pixel path; `given` [B, H, W, M + M (M + 1) / 2] the seen images and their products.
    """

    stem: Array | None  # None where the encoder does not see the code A|B
    enter: Array
    given: Array


class ConditioningStem(nn.Module):
    """The part of the first layers that reads the seen images: a `ConditioningCache`.

    A sampler computes it once, before its first step. `seen` [B, H, W, M] is 0 where
    missing, `neighbours` are the neighbouring slices.
    """

    width: int
    patch: int
    condition_encoder: bool
    pixel_width: int
    context: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Images, neighbours: Array, missing: Missing) -> ConditioningCache:
        # Products of seen images alone: noise cannot be removed from a product.
        given = jnp.concatenate([seen, pairwise_products(seen)], axis=-1)
        modalities, channels = seen.shape[-1], given.shape[-1]
        total = channels + modalities + self.context
        conv = partial_conv(channels, total, self.pixel_width, self.dtype, bias=False, name="enter")
        enter = conv(given)
        if not self.condition_encoder:
            return ConditioningCache(None, enter, given)
        inputs = jnp.concatenate([seen, neighbours], axis=-1)
        features = to_patches(inputs.astype(self.dtype), self.patch)
        code = missing[:, None, None].astype(self.dtype)
        code = jnp.broadcast_to(code, features.shape[:3] + code.shape[-1:])
        features = jnp.concatenate([features, code], axis=-1)
        channels = features.shape[-1]
        total = channels + modalities * self.patch**2
        conv = partial_conv(channels, total, self.width, self.dtype, bias=False, name="stem")
        return ConditioningCache(conv(features), enter, given)


class PixelPath(nn.Module):
    """The full-resolution path: pointwise layers modulated patch by patch.

    Without it a patch stem loses the voxel-to-voxel relation between contrasts. The
    U-Net's features of a patch (bias field, protocol, time, A|B) modulate the pointwise
    layers of its pixels, and give them a linear map from the given images to the output,
    a local change of contrast (the idea of bilateral grids: Gharbi et al. 2017).
    """

    modalities: int
    width: int
    layers: int
    dtype: Any

    @nn.compact
    def __call__(
        self, noisy: Images, context: Array, patches: Array, cache: ConditioningCache
    ) -> tuple[Images, Array]:
        """The image, and the last hidden features [B, h, p, w, q, width] of the pixels."""
        inputs = jnp.concatenate([noisy, context], axis=-1)
        given = jnp.concatenate([noisy, cache.given], axis=-1)
        channels = inputs.shape[-1]
        total = channels + cache.given.shape[-1]
        conv = partial_conv(channels, total, self.width, self.dtype, bias=True, name="enter")
        hidden = split_patches(conv(inputs) + cache.enter, patches)
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
    """The log variance of each voxel's error, from the given images, the pixels' last
    hidden features and those of their patches.

    Bounded by `LOG_VARIANCE`, near 0 at initialisation. Its loss has no gradient on
    anything outside the head.
    """

    modalities: int
    dtype: Any

    @nn.compact
    def __call__(self, given: Array, hidden: Array, patches: Array) -> Array:
        hidden, patches = jax.lax.stop_gradient((hidden, patches))
        width = hidden.shape[-1] // 4
        film = nn.Dense(2 * width, dtype=self.dtype, name="film")(patches)
        hidden = nn.Dense(width, dtype=self.dtype, name="hidden")(hidden)
        images = nn.Dense(width, use_bias=False, dtype=self.dtype, name="given")(given)
        hidden += split_patches(images, patches)
        hidden = silu_film(hidden, film[:, :, None, :, None]).astype(jnp.float32)
        zeros = nn.initializers.zeros
        raw = nn.Dense(self.modalities, kernel_init=zeros, name="log")(hidden)
        low, high = LOG_VARIANCE
        log_variance = low + nn.softplus(high - nn.softplus(high - raw) - low)
        return log_variance.reshape(*given.shape[:3], self.modalities)


def in_variance_head(params: Params) -> Any:
    """A tree of bools like `params`: True for the parameters of the variance head."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(part.key == VARIANCE for part in path), params
    )


class MMCSN(UNet):
    """mm-CSN: (images, missing, log_level) -> [B, H, W, M] float32, 0 at initialisation.

    `images` [B, H, W, channels()] has the scaled a_t where missing and the scaled b elsewhere, then
    the scaled b of the neighbouring slices, 0 where missing; `log_level` [B] is ln(noise level) /
    4. H and W must be multiples of `multiple()`. With `predict_variance` the output is [B, H, W,
    2M]: the image, then the log variance of its error. With `return_features` it is (output, the
    decoder's features of each level, the finest first).
    """

    modalities: int
    patch: int
    pixel_width: int
    pixel_layers: int
    context_channels: int  # channels of context that the U-Net hands to the pixels
    conditioning: str  # one of CONDITIONINGS
    predict_variance: bool
    neighbour_slices: int  # slices on either side that the encoder reads

    def multiple(self) -> int:
        """The sides of the network's grid must be multiples of it."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def channels(self) -> int:
        """The channels of the input images, neighbouring slices included."""
        return self.modalities * (1 + 2 * self.neighbour_slices)

    @nn.nowrap
    def without_remat(self) -> "MMCSN":
        """The network that computes nothing again for its gradient."""
        return self.clone(remat=(False,) * len(self.widths))

    @nn.nowrap
    def conditioning_cache(
        self, params: Params, seen: Images, neighbours: Array, missing: Missing
    ) -> ConditioningCache:
        """What is the same for every a_t and t; pass it to all evaluations of one
        condition. `seen` and `neighbours` are 0 where missing."""
        stem = ConditioningStem(**self._stem_fields(), parent=None)
        return stem.apply({"params": params["params"]["still"]}, seen, neighbours, missing)

    @nn.nowrap
    def _stem_fields(self) -> dict[str, Any]:
        return {
            "width": self.widths[0],
            "patch": self.patch,
            "condition_encoder": self.conditioning == "both",
            "pixel_width": self.pixel_width,
            "context": self.context_channels,
            "dtype": self.dtype,
        }

    @nn.compact
    def __call__(
        self,
        images: Stacks,
        missing: Missing,
        log_level: Times,
        cache: ConditioningCache | None = None,
        *,
        return_features: bool = False,
    ) -> Images:
        images, neighbours = images[..., : self.modalities], images[..., self.modalities :]
        condition = ConditionEmbedding(4 * self.widths[0], name="condition")(log_level, missing)
        encoder_condition = condition if self.conditioning == "both" else None
        mask = missing[:, None, None]
        if cache is None:
            stem = ConditioningStem(**self._stem_fields(), name="still")
            cache = stem(jnp.where(mask, 0, images), neighbours, missing)
        # Noisy and seen images have separate channels, so separate weights.
        noisy = jnp.where(mask, images, 0)
        inputs = noisy
        if encoder_condition is None:
            inputs = jnp.concatenate([images, neighbours], axis=-1)
        features, skips = self.down(self.enter(inputs, cache), encoder_condition)
        features = self.level("up", len(self.widths) - 1, features, condition)
        features, *coarser = self.up(features, skips, condition)
        features = NormFiLMAct(self.dtype, name="norm")(features, None)
        context = nn.Dense(
            self.context_channels * self.patch**2, dtype=self.dtype, name="context_out"
        )(features)
        context = from_patches(context, self.patch)
        pixels = PixelPath(
            self.modalities, self.pixel_width, self.pixel_layers, self.dtype, name="pixels"
        )
        output, hidden = pixels(noisy, context, features, cache)
        if self.predict_variance:
            given = jnp.concatenate([noisy, cache.given], axis=-1)
            head = VarianceHead(self.modalities, self.dtype, name=VARIANCE)
            output = jnp.concatenate([output, head(given, hidden, features)], axis=-1)
        return (output, [features, *coarser]) if return_features else output

    def enter(self, inputs: Array, cache: ConditioningCache) -> Array:
        """The first convolution over patches, the cached part of it added."""
        patches = to_patches(inputs.astype(self.dtype), self.patch)
        channels = total = patches.shape[-1]
        if cache.stem is not None:
            total += self.channels() * self.patch**2 + self.modalities
        conv = partial_conv(channels, total, self.widths[0], self.dtype, bias=True, name="stem")
        features = conv(patches)
        return features if cache.stem is None else features + cache.stem
