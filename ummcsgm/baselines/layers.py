"""Flax layers that the published methods share: channels last, any grid.

Grids are halved to ceil(n / 2). On the way up features are cropped to the finer grid.
Flax names unnamed layers after their class: a renamed class changes the paths of the
parameters and with them the initialisation. The networks of the modalities run in turn,
because grouped convolutions take forty times as long on a CPU.
"""

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.types import Array, Keys

NORMAL = nn.initializers.normal(0.02)  # the usual initialisation of a GAN's kernels


def scale_widths(published: tuple[int, ...], width: float) -> tuple[int, ...]:
    """The published channel counts times `width`, rounded to multiples of 4, at least 4."""
    return tuple(max(4 * round(channels * width / 4), 4) for channels in published)


def count_halvings(grid: tuple[int, int], most: int, smallest: int) -> int:
    """How often a grid is halved: until a side is `smallest`, at most `most` times."""
    count, side = 0, min(grid)
    while count < most and side > smallest:
        count, side = count + 1, -(-side // 2)
    return count


def leaky(features: Array) -> Array:
    """The leaky ReLU with slope 0.2."""
    return nn.leaky_relu(features, 0.2)


def instance_norm(features: Array) -> Array:
    """Each channel of each image scaled to mean 0 and variance 1, without parameters."""
    mean = features.mean(axis=(1, 2), keepdims=True)
    centred = features - mean
    variance = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5)


def crop_to(features: Array, size: tuple[int, ...]) -> Array:
    """[B, H, W, C]: the first rows and columns of the features."""
    return features[:, : size[0], : size[1]]


def upsample(features: Array, like: Array) -> Array:
    """Twice the size by nearest neighbour, cropped to the size of `like`."""
    tall = jnp.repeat(features, 2, axis=1)
    return crop_to(jnp.repeat(tall, 2, axis=2), like.shape[1:3])


def downsample(features: Array) -> Array:
    """Half the size by 2 x 2 max pooling; ceil(n / 2) where n is odd."""
    return nn.max_pool(features, (2, 2), (2, 2), "SAME")


def fill_unavailable(features: list[Array], available: Array, value: float) -> Iterator[Array]:
    """The M features [B, H, W, C], with `value` where not available [B, M]."""
    for feature, flag in zip(features, available.T, strict=True):
        yield jnp.where(_per_example(flag), feature, value)


def max_over_available(features: list[Array], available: Array) -> Array:
    """The maximum over the available [B, M] of M features [B, H, W, C]; 0 without any."""
    lowest = jnp.finfo(jnp.float32).min
    filled = fill_unavailable(features, available, lowest)
    largest = functools.reduce(jnp.maximum, filled, jnp.full_like(features[0], lowest))
    return jnp.where(_per_example(available.any(axis=1)), largest, 0.0)


def mean_over_available(features: list[Array], available: Array) -> Array:
    """The mean over the available [B, M] of M features [B, H, W, C]; 0 without any."""
    weights = available / jnp.maximum(available.sum(axis=1, keepdims=True), 1)
    filled = fill_unavailable(features, available, 0.0)
    return sum(_per_example(w) * feature for w, feature in zip(weights.T, filled, strict=True))


def _per_example(values: Array) -> Array:
    return values[:, None, None, None]


class BatchNorm(nn.Module):
    """Each channel scaled to mean 0 and variance 1 over the `valid` [B] examples of all devices.

    With `valid` None the running averages are used, of which a training step replaces a
    tenth. `running=False` has no averages, for a network that is used in training only.
    """

    axis: str | None
    epsilon: float = 1e-5
    running: bool = True

    @nn.compact
    def __call__(self, features: Array, valid: Array | None) -> Array:
        width = features.shape[-1:]
        gain = self.param("scale", nn.initializers.ones, width)
        shift = self.param("bias", nn.initializers.zeros, width)
        if valid is None or self.running:
            average = self.variable("statistics", "mean_variance", _zeros_and_ones, *width)
        if valid is None:
            mean, variance = average.value
        else:
            count, mean, variance = self._batch_statistics(features, valid)
            if self.running and not self.is_initializing():
                new = 0.9 * average.value + 0.1 * jnp.stack([mean, variance])
                average.value = jnp.where(count > 0, new, average.value)
            # Without a valid example the output must still be finite.
            variance = jnp.where(count > 0, variance, 1.0)
        return (features - mean) * jax.lax.rsqrt(variance + self.epsilon) * gain + shift

    def _batch_statistics(self, features: Array, valid: Array) -> tuple[Array, Array, Array]:
        weight = _per_example(valid.astype(features.dtype))
        first = jnp.sum(weight * features, axis=(0, 1, 2))
        second = jnp.sum(weight * jnp.square(features), axis=(0, 1, 2))
        count = jnp.sum(weight) * features[0, ..., 0].size
        if self.axis is not None:
            count, first, second = jax.lax.psum((count, first, second), self.axis)
        mean, square = first / jnp.maximum(count, 1), second / jnp.maximum(count, 1)
        return count, mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _zeros_and_ones(width: int) -> Array:
    return jnp.stack([jnp.zeros(width), jnp.ones(width)])


class Up(nn.Module):
    """A transposed 4 x 4 convolution of stride 2 without bias: twice the size.

    It is computed as a 2 x 2 convolution for each position in a 2 x 2 block: the same
    sums in a seventh of the time on a CPU.
    """

    width: int
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, features: Array) -> Array:
        b, h, w, c = features.shape
        kernel = self.param("kernel", self.kernel_init, (4, 4, c, self.width))
        padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))

        def convolve(row: int, column: int) -> Array:
            return jax.lax.conv_general_dilated(
                padded[:, row : row + h + 1, column : column + w + 1],
                kernel[row::2, column::2],
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        rows = [jnp.stack([convolve(row, 0), convolve(row, 1)], axis=3) for row in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, self.width)


def conv4(features: Array, width: int, stride: int, *, bias: bool, name: str) -> Array:
    """A GAN's 4 x 4 convolution, as a layer of the calling module; stride 1 keeps the size."""
    padding = "SAME"
    if stride == 1:
        features, padding = jnp.pad(features, ((0, 0), (2, 1), (2, 1), (0, 0))), "VALID"
    options = dict(padding=padding, use_bias=bias, kernel_init=NORMAL, name=name)
    return nn.Conv(width, (4, 4), (stride, stride), **options)(features)


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), instance norms."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        width = features.shape[-1]
        hidden = nn.Conv(width, (3, 3), use_bias=False, name="first")(features)
        hidden = nn.relu(instance_norm(hidden))
        hidden = nn.Conv(width, (3, 3), use_bias=False, name="second")(hidden)
        return features + instance_norm(hidden)


class ResidualEncoder(nn.Module):
    """Features [B, H / 4, W / 4, C] of images [B, H, W, 1]: a 7 x 7 convolution, two
    strided 3 x 3 convolutions, then residual blocks."""

    widths: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        features = image
        for level, width in enumerate(self.widths):
            size, stride = (3, 2) if level else (7, 1)
            conv = nn.Conv(width, (size, size), (stride, stride), use_bias=False)
            features = nn.relu(instance_norm(conv(features)))
        for _ in range(self.blocks):
            features = Residual()(features)
        return features


def decode_residual(
    features: Array, widths: tuple[int, ...], blocks: int, size: tuple[int, int]
) -> Array:
    """An image [B, *size, 1] of encoded features, without a last activation, as layers of
    the calling module."""
    for _ in range(blocks):
        features = Residual()(features)
    for width in widths[-2::-1]:
        features = nn.relu(instance_norm(Up(width)(features)))
    return nn.Conv(1, (7, 7), name="head")(crop_to(features, size))


class Patches(nn.Module):
    """The features of a PatchGAN: strided 4 x 4 convolutions and leaky ReLUs, with
    instance norms after the first. A side keeps at least 2 positions."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Array) -> Array:
        depth = count_halvings(features.shape[1:3], len(self.widths), 2)
        for level, width in enumerate(self.widths[:depth]):
            features = conv4(features, width, 2, bias=True, name=f"down{level}")
            features = leaky(instance_norm(features) if level else features)
        return features


class PatchMaps(nn.Module):
    """`maps` scores of each patch, by a 4 x 4 convolution."""

    maps: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        return conv4(features, self.maps, 1, bias=False, name="maps")


class PatchDiscriminator(nn.Module):
    """A PatchGAN: (`maps` scores of each patch [B, h, w, maps], class scores [B, classes])
    of images [B, H, W, C]. None in place of maps or classes that number 0."""

    widths: tuple[int, ...]
    maps: int = 1
    classes: int = 0

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array | None, Array | None]:
        features, scores, classes = Patches(self.widths, name="patches")(images), None, None
        if self.maps:
            scores = PatchMaps(self.maps, name="verdict")(features)
        if self.classes:
            classes = nn.Dense(self.classes, name="class")(features.mean(axis=(1, 2)))
        return scores, classes


def dropout(keys: Keys, features: Array, layer: int, rate: float) -> Array:
    """Dropout of features [B, ...] by the `keys` [B], with another mask in each `layer`."""

    def draw_mask(key: Array) -> Array:
        key = jax.random.fold_in(key, layer)
        return jax.random.bernoulli(key, 1 - rate, features.shape[1:])

    return jnp.where(jax.vmap(draw_mask)(keys), features / (1 - rate), 0)
