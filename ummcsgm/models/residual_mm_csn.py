"""The mm-CSN in two parts: what depends on the seen images alone, and what sees the noise.

    MMCSN              the seen images and A|B -> the posterior mean, in one evaluation
    ConditionEncoder   the features of its decoder, and the images -> features for the noisy part
    BandUNet           the noisy residual about that mean, and the noise level -> the residual
    ResidualMMCSN      the three together

The first two are computed once for a question, however many noise levels, steps and draws
follow. No gradient goes from the noisy part into the mean.

The noisy part reads and writes Haar coefficients: each level of its U-Net has the coefficients of
its grid. What the seen images say about a place scales what the noisy ones say: a tumour's blocks
may brighten, others may not. So the encoder's features multiply them where they enter.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.models.mm_csn import (
    MMCSN,
    Attention,
    Block,
    ConditionEmbedding,
    NormFiLMAct,
    to_patches,
)
from ummcsgm.types import Array, Missing, Params, Stacks, Times
from ummcsgm.utils.haar import HaarBands, haar, merge_level

LARGEST_ATTENTION = 24  # positions a side of the coarsest grid, where attention is cheap


def repeat_questions(values: Array, rows: int) -> Array:
    """[B, ...] -> [rows, ...]: each question's values for all of its noise levels."""
    count = rows // len(values)
    return jnp.repeat(values, count, axis=0) if count > 1 else values


class ConditionEncoder(nn.Module):
    """The features [B, h, w, width] of each level, the finest first, that the noisy part reads.

    From the decoder's features of the mean, the images that are seen (with their neighbours) and
    the mean where they are not.
    """

    widths: tuple[int, ...]
    blocks: int  # of each level
    patch: int
    dtype: Any

    @nn.compact
    def __call__(self, features: list[Array], images: Array) -> tuple[Array, ...]:
        patches = to_patches(images.astype(self.dtype), self.patch)
        hidden = jnp.concatenate([features[0].astype(self.dtype), patches], axis=-1)
        encoded = []
        for depth, width in enumerate(self.widths):
            if depth:
                coarse = nn.avg_pool(hidden, (2, 2), (2, 2))
                hidden = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"{depth}_features")(
                    features[depth].astype(self.dtype)
                )
                hidden += nn.Dense(width, dtype=self.dtype, name=f"{depth}_enter")(coarse)
            else:
                hidden = nn.Conv(width, (3, 3), dtype=self.dtype, name="0_enter")(hidden)
            for index in range(self.blocks):
                hidden = Block(self.dtype, name=f"{depth}_{index}")(hidden, None)
            encoded.append(NormFiLMAct(self.dtype, name=f"{depth}_norm")(hidden, None))
        return tuple(encoded)


class BandUNet(nn.Module):
    """whitened residual -> the same shapes, float32, 0 at initialisation.

    Both are the Haar bands of images [B K, H, W, M], down to the grid of the coarsest level. Of the
    input each coefficient has variance about 1, and so has each of the target. The output is
    F + G u: F and G come from the features of a coefficient's position, u is the coefficient
    itself, so that a gain that depends on the place is one layer away.
    """

    modalities: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    patch: int
    remat: tuple[bool, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, residual: HaarBands, missing: Missing, log_level: Times, seen: tuple[Array, ...]
    ) -> HaarBands:
        rows, depths = len(residual.coarse), len(self.widths)
        missing = repeat_questions(missing, rows)
        condition = ConditionEmbedding(2 * self.widths[0], name="condition")(log_level, missing)
        coefficients = coefficients_by_level(residual, depths)
        features = self.enter(0, coefficients[0], seen[0])
        features, skips = self.level("down", 0, features, condition), []
        for depth in range(1, depths):
            skips.append(features)
            pooled = nn.avg_pool(features, (2, 2), (2, 2))
            features = self.enter(depth, coefficients[depth], seen[depth])
            features += self.dense(self.widths[depth], f"down{depth}_enter")(pooled)
            features = self.level("down", depth, features, condition)
        if max(features.shape[1:3]) <= LARGEST_ATTENTION:
            features = Attention(self.dtype, name="attention")(features)
        features = self.level("up", depths - 1, features, condition)
        outputs = [self.leave(depths - 1, features, coefficients[-1])]
        for depth in reversed(range(depths - 1)):
            b, h, w, c = features.shape
            features = jax.image.resize(features, (b, 2 * h, 2 * w, c), "nearest")
            features = jnp.concatenate([features, skips[depth]], axis=-1)
            features = self.dense(self.widths[depth], f"up{depth}_enter")(features)
            features = self.level("up", depth, features, condition)
            outputs.append(self.leave(depth, features, coefficients[depth]))
        return bands_of_levels(outputs, self.patch)

    def level(self, side: str, depth: int, features: Array, condition: Array) -> Array:
        """The blocks of one level."""
        block_class = nn.remat(Block) if self.remat[depth] else Block
        for index in range(self.blocks[depth]):
            block = block_class(self.dtype, name=f"{side}{depth}_{index}")
            features = block(features, condition)
        return features

    def enter(self, depth: int, coefficients: Array, seen: Array) -> Array:
        """A convolution of the level's coefficients, scaled and shifted by what is seen."""
        flat = coefficients.reshape(*coefficients.shape[:3], -1).astype(self.dtype)
        width, rows = self.widths[depth], len(flat)
        features = nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype, name=f"enter{depth}")(
            flat
        )
        scale = repeat_questions(1 + self.dense(width, f"enter{depth}_scale")(seen), rows)
        return features * scale + repeat_questions(
            self.dense(width, f"enter{depth}_shift")(seen), rows
        )

    def leave(self, depth: int, features: Array, coefficients: Array) -> Array:
        """F + G u, shaped like the level's coefficients."""
        features = NormFiLMAct(self.dtype, name=f"leave{depth}_norm")(features, None)
        features = features.astype(jnp.float32)
        size = coefficients.shape[-2] * coefficients.shape[-1]
        values = nn.Dense(2 * size, kernel_init=nn.initializers.zeros, name=f"leave{depth}")(
            features
        )
        offset, gain = jnp.split(values, 2, axis=-1)
        shape = coefficients.shape
        return offset.reshape(shape) + gain.reshape(shape) * coefficients.astype(jnp.float32)

    @nn.nowrap
    def dense(self, width: int, name: str) -> nn.Dense:
        """A linear layer on each position."""
        return nn.Dense(width, dtype=self.dtype, name=name)


def coefficients_by_level(bands: HaarBands, depths: int) -> list[Array]:
    """The Haar coefficients [B, h, w, M, n] at each position of each U-Net level, the finest first.

    First the coarse coefficient on the level's own grid, then the details: of one Haar level, or at
    the finest U-Net level of all those within a patch.
    """
    coarse, levels = bands.coarse, []
    for details in bands.details[: depths - 1]:
        levels.insert(0, jnp.concatenate([coarse[..., None], details], axis=-1))
        coarse = merge_level(coarse, details)
    return [_pack(HaarBands(coarse, bands.details[depths - 1 :])), *levels]


def bands_of_levels(levels: list[Array], patch: int) -> HaarBands:
    """The bands of the coefficients of each level, the COARSEST first. What a finer level says of a
    coarser one's coefficients is not used."""
    *coarser, finest = levels
    finest = _unpack(finest, patch.bit_length() - 1)
    if not coarser:
        return finest
    details = tuple(level[..., 1:] for level in coarser)
    return HaarBands(coarser[0][..., 0], details + finest.details)


def _pack(bands: HaarBands) -> Array:
    """[B, h, w, M, p^2]: all coefficients of each patch, the coarse one first."""
    parts = [bands.coarse[..., None]]
    for level, details in enumerate(bands.details):
        b, h, w, m, n = details.shape
        side = 2**level
        tiles = details.reshape(b, h // side, side, w // side, side, m, n)
        tiles = tiles.transpose(0, 1, 3, 5, 2, 4, 6)
        parts.append(tiles.reshape(b, h // side, w // side, m, side * side * n))
    return jnp.concatenate(parts, axis=-1)


def _unpack(packed: Array, levels: int) -> HaarBands:
    """The inverse of `_pack`."""
    b, h, w, m, _ = packed.shape
    details, start = [], 1
    for level in range(levels):
        side = 2**level
        size = 3 * side * side
        tiles = packed[..., start : start + size].reshape(b, h, w, m, side, side, 3)
        tiles = tiles.transpose(0, 1, 4, 2, 5, 3, 6)
        details.append(tiles.reshape(b, h * side, w * side, m, 3))
        start += size
    return HaarBands(packed[..., 0], tuple(details))


class ResidualMMCSN(nn.Module):
    """mm-CSN whose score is about its own mean: `encode` and `denoise`.

    H and W must be multiples of `multiple()`, and the patch a power of 2.
    """

    mean_network: MMCSN
    widths: tuple[int, ...]  # channels of the noisy part's levels, as many as the mean's
    encoder_blocks: int

    def setup(self) -> None:
        mean = self.mean_network
        self.encoder = ConditionEncoder(mean.widths, self.encoder_blocks, mean.patch, mean.dtype)
        self.residual = BandUNet(
            mean.modalities, self.widths, mean.blocks, mean.patch, mean.remat, mean.dtype
        )

    def encode(self, images: Stacks, missing: Missing, log_level: Times) -> tuple[Array, tuple]:
        """(the mean network's output of the `images`, which are 0 where missing; the features
        that `denoise` reads)."""
        output, features = self.mean_network(images, missing, log_level, return_features=True)
        output_mean = output[..., : missing.shape[-1]]
        known = jnp.where(missing[:, None, None], output_mean, images[..., : missing.shape[-1]])
        known = jnp.concatenate([known, images[..., missing.shape[-1] :]], axis=-1)
        features, known = jax.lax.stop_gradient((features, known))
        return output, self.encoder(features, known)

    def denoise(
        self, residual: HaarBands, missing: Missing, log_level: Times, seen: tuple[Array, ...]
    ) -> HaarBands:
        """`BandUNet`'s output for K noise levels of each question."""
        return self.residual(residual, missing, log_level, seen)

    def __call__(self, images: Stacks, missing: Missing, log_level: Times) -> HaarBands:
        """What initialises all parameters: the residual of no noise."""
        output, seen = self.encode(images, missing, log_level)
        residual = jnp.zeros_like(output[..., : missing.shape[-1]])
        bands = haar(residual, self.multiple().bit_length() - 1)
        return self.denoise(bands, missing, log_level, seen)

    @property
    def modalities(self) -> int:
        """The number of modalities M."""
        return self.mean_network.modalities

    @property
    def predict_variance(self) -> bool:
        """Whether the mean comes with the variance of its error."""
        return self.mean_network.predict_variance

    @nn.nowrap
    def without_remat(self) -> "ResidualMMCSN":
        """The network that computes nothing again for its gradient."""
        return self.clone(mean_network=self.mean_network.without_remat())

    @nn.nowrap
    def multiple(self) -> int:
        """The sides of the network's grid must be multiples of it."""
        return self.mean_network.multiple()

    @nn.nowrap
    def channels(self) -> int:
        """The channels of the input images, neighbouring slices included."""
        return self.mean_network.channels()


def in_noisy_part(params: Params) -> Any:
    """A tree of bools like `params`: True for those of `ConditionEncoder` and `BandUNet`."""
    names = ("encoder", "residual")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(part, "key", None) in names for part in path), params
    )
