"""The layers that the competitors share: channels last, any grid, any modalities.

Grids are halved to ceil(n / 2) and doubled back, cropped to what they were. Modalities
have networks of their own one after another: grouped convolutions, which would be one
operation, take forty times as long on a CPU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.types import Array, Keys

NORMAL = nn.initializers.normal(0.02)  # the usual start of a GAN's kernels


def scaled(published: tuple[int, ...], width: float) -> tuple[int, ...]:
    """A share `width` of published numbers of channels: multiples of 4, none below."""
    return tuple(max(4 * round(each * width / 4), 4) for each in published)


def halvings(grid: tuple[int, int], most: int, smallest: int) -> int:
    """How often a grid is halved: up to `most`, or until a side is `smallest`."""
    count, side = 0, min(grid)
    while count < most and side > smallest:
        count, side = count + 1, -(-side // 2)
    return count


def leaky(features: Array) -> Array:
    """The leaky ReLU of all of them, slope 0.2."""
    return nn.leaky_relu(features, 0.2)


def instance_norm(features: Array) -> Array:
    """Each channel of each image: mean 0, variance 1. No parameters."""
    mean = features.mean(axis=(1, 2), keepdims=True)
    centred = features - mean
    variance = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5)


def cropped(features: Array, like: Array) -> Array:
    """Without the last row or column where `like` has fewer."""
    return features[:, : like.shape[1], : like.shape[2]]


def doubled(features: Array, like: Array) -> Array:
    """Twice the size by repetition, cropped to the size of `like`."""
    tall = jnp.repeat(features, 2, axis=1)
    return cropped(jnp.repeat(tall, 2, axis=2), like)


def halved(features: Array) -> Array:
    """Half the size, the largest of each 2 x 2; ceil(n / 2) where n is odd."""
    return nn.max_pool(features, (2, 2), (2, 2), "SAME")


def greatest(features: list[Array], available: Array) -> Array:
    """The voxelwise maximum of the available [B, M] of M features [B, H, W, C]; 0 in a
    row without any."""
    least = jnp.finfo(jnp.float32).min
    largest = jnp.full_like(features[0], least)
    for each, flag in zip(features, available.T, strict=True):
        largest = jnp.maximum(largest, jnp.where(_rows(flag), each, least))
    return jnp.where(_rows(available.any(axis=1)), largest, 0.0)


def mean_of(features: list[Array], available: Array) -> Array:
    """The mean of the available [B, M] of M features [B, H, W, C]; 0 in a row without
    any."""
    shares = available / jnp.maximum(available.sum(axis=1, keepdims=True), 1)
    kept = (
        jnp.where(_rows(flag), each, 0.0) for each, flag in zip(features, available.T, strict=True)
    )
    return sum(_rows(share) * each for share, each in zip(shares.T, kept, strict=True))


def _rows(values: Array) -> Array:
    return values[:, None, None, None]


class BatchNorm(nn.Module):
    """Each channel: mean 0 and variance 1 over the counted rows of all devices.

    `counted` [B] says which rows there are statistics of, or is None: then running
    averages are used, of which a training step keeps nine tenths. Without `running`
    there are none: a network that is only trained needs none.
    """

    axis: str | None
    epsilon: float = 1e-5
    running: bool = True

    @nn.compact
    def __call__(self, features: Array, counted: Array | None) -> Array:
        width = features.shape[-1:]
        gain = self.param("scale", nn.initializers.ones, width)
        shift = self.param("bias", nn.initializers.zeros, width)
        if counted is None or self.running:
            kept = self.variable("statistics", "mean_variance", _standard, *width)
        if counted is None:
            mean, variance = kept.value
        else:
            count, mean, variance = self._moments(features, counted)
            if self.running and not self.is_initializing():
                new = 0.9 * kept.value + 0.1 * jnp.stack([mean, variance])
                kept.value = jnp.where(count > 0, new, kept.value)
            # Where no row counts, what follows must still be finite.
            variance = jnp.where(count > 0, variance, 1.0)
        return (features - mean) * jax.lax.rsqrt(variance + self.epsilon) * gain + shift

    def _moments(self, features: Array, counted: Array) -> tuple[Array, Array, Array]:
        weight = _rows(counted.astype(features.dtype))
        first = jnp.sum(weight * features, axis=(0, 1, 2))
        second = jnp.sum(weight * jnp.square(features), axis=(0, 1, 2))
        count = jnp.sum(weight) * features[0, ..., 0].size
        if self.axis is not None:
            count, first, second = jax.lax.psum((count, first, second), self.axis)
        mean, square = first / jnp.maximum(count, 1), second / jnp.maximum(count, 1)
        return count, mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _standard(width: int) -> Array:
    return jnp.stack([jnp.zeros(width), jnp.ones(width)])


class Up(nn.Module):
    """A 4 x 4 convolution that doubles the size ("transposed", stride 2), no bias.

    As four 2 x 2 convolutions, one for each place in a 2 x 2: the same sums, and on a
    CPU a seventh of the time.
    """

    width: int
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, features: Array) -> Array:
        b, h, w, c = features.shape
        kernel = self.param("kernel", self.kernel_init, (4, 4, c, self.width))
        padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))

        def at(row: int, column: int) -> Array:
            return jax.lax.conv_general_dilated(
                padded[:, row : row + h + 1, column : column + w + 1],
                kernel[row::2, column::2],
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        rows = [jnp.stack([at(row, 0), at(row, 1)], axis=3) for row in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, self.width)


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), instance norms."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        width = features.shape[-1]
        hidden = nn.Conv(width, (3, 3), use_bias=False, name="first")(features)
        hidden = nn.relu(instance_norm(hidden))
        hidden = nn.Conv(width, (3, 3), use_bias=False, name="second")(hidden)
        return features + instance_norm(hidden)


class Patches(nn.Module):
    """What a PatchGAN sees: 4 x 4 convolutions of stride 2, instance norms but for the
    first, leaky ReLUs. As many as leave 2 positions a side."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Array) -> Array:
        depth = halvings(features.shape[1:3], len(self.widths), 2)
        for level, width in enumerate(self.widths[:depth]):
            features = nn.Conv(width, (4, 4), (2, 2), kernel_init=NORMAL, name=f"down{level}")(
                features
            )
            features = leaky(instance_norm(features) if level else features)
        return features


class PatchMaps(nn.Module):
    """A last 4 x 4 convolution, of unchanged size: `maps` verdicts on each patch."""

    maps: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        padded = jnp.pad(features, ((0, 0), (2, 1), (2, 1), (0, 0)))
        return nn.Conv(
            self.maps, (4, 4), padding="VALID", use_bias=False, kernel_init=NORMAL, name="maps"
        )(padded)


def dropped(keys: Keys, features: Array, turn: int, rate: float) -> Array:
    """Dropout of each row [B, ...] by its own key, another one each `turn`."""

    def kept(key: Array) -> Array:
        own = jax.random.fold_in(key, turn)
        return jax.random.bernoulli(own, 1 - rate, features.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), features / (1 - rate), 0)
