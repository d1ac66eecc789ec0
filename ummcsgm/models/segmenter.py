"""A small segmentation network, made of the mm-CSN's blocks, and its step.

It is trained on real images and expects all modalities: what it makes of a synthetic
one tells what that is worth to whom it was not made for.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA, REGIONS, UNKNOWN
from ummcsgm.distributed import devices
from ummcsgm.models.mm_csn import Block, NormFiLMAct
from ummcsgm.models.patches import from_patches, split_patches, to_patches
from ummcsgm.models.pixels import silu_film
from ummcsgm.training.plans import UpdateRule
from ummcsgm.training.train_state import TrainState, accumulate, first_state, split, update
from ummcsgm.types import Array, Batch, Images, Losses, Params

CLASSES = (0, CORE, OEDEMA, ENHANCING)  # the labels, in the order of channels
MEMBERS = np.array([[label in REGIONS[name] for name in REGIONS] for label in CLASSES], np.float32)


class Segmenter(nn.Module):
    """images [B, H, W, M] -> logits [B, H, W, 4] float32 of CLASSES, 0 at first.

    A U-Net over patches, and two convolutions at full resolution for what is smaller
    than a patch. H and W must be multiples of `patch` 2^(levels - 1).
    """

    scale: float  # of the images: they are divided by it
    widths: tuple[int, ...]  # channels of each level, the finest first
    blocks: tuple[int, ...]  # residual blocks of each level, on either side
    stem: str
    patch: int
    pixel_width: int
    context: int  # channels of context that the U-Net hands to the pixels
    dtype: Any

    @nn.compact
    def __call__(self, images: Images) -> Array:
        images = (images / self.scale).astype(self.dtype)
        patches = self.decode(*self.encode(images))
        patches = NormFiLMAct(self.dtype, name="norm")(patches, None)
        around = self.dense(self.context * self.patch**2, "context_out")(patches)
        around = from_patches(around, self.patch, self.stem)
        hidden = self.conv(self.pixel_width, "enter")(jnp.concatenate([images, around], axis=-1))
        film = self.dense(2 * self.pixel_width, "film")(patches)
        within = silu_film(split_patches(hidden, patches), film[:, :, None, :, None])
        hidden = self.conv(self.pixel_width, "pixels")(within.reshape(hidden.shape))
        hidden = nn.silu(hidden).astype(jnp.float32)
        zeros = nn.initializers.zeros
        return nn.Dense(len(CLASSES), kernel_init=zeros, name="logits")(hidden)

    def encode(self, images: Array) -> tuple[Array, list[Array]]:
        """The features of the coarsest level, and each finer level's for the skip."""
        features = to_patches(images, self.patch, self.stem)
        features, skips = self.conv(self.widths[0], "stem")(features), []
        for depth in range(len(self.widths)):
            if depth:
                features = nn.avg_pool(features, (2, 2), (2, 2))
            features = self.level("down", depth, features)
            skips.append(features)
        return features, skips[:-1]

    def decode(self, features: Array, skips: list[Array]) -> Array:
        """The features of the finest level."""
        for depth in reversed(range(len(skips))):
            b, h, w, c = features.shape
            features = jax.image.resize(features, (b, 2 * h, 2 * w, c), "nearest")
            features = jnp.concatenate([features, skips[depth]], axis=-1)
            features = self.level("up", depth, features)
        return features

    def level(self, side: str, depth: int, features: Array) -> Array:
        """The blocks of one level."""
        if features.shape[-1] != self.widths[depth]:
            features = self.dense(self.widths[depth], f"{side}{depth}_enter")(features)
        for index in range(self.blocks[depth]):
            block = Block(self.dtype, name=f"{side}{depth}_{index}")
            features = block(features, None)
        return features

    @nn.nowrap
    def dense(self, width: int, name: str) -> nn.Dense:
        """A linear layer of each position."""
        return nn.Dense(width, dtype=self.dtype, name=name)

    @nn.nowrap
    def conv(self, width: int, name: str) -> nn.Conv:
        """A convolution of 3 x 3."""
        return nn.Conv(width, (3, 3), dtype=self.dtype, name=name)


def regions(probabilities: Array) -> Array:
    """[..., 4] of CLASSES -> [..., 3], those of REGIONS: each is the sum of its own."""
    return probabilities @ MEMBERS


def make_segment(model: Segmenter) -> Callable[[Params, Images], Array]:
    """segment(params, images): the probabilities [B, H, W, 4] of CLASSES."""
    return lambda params, images: jax.nn.softmax(model.apply(params, images))


def losses(logits: Array, labels: Array) -> tuple[Losses, Losses]:
    """(loss, soft Dice), each [B], both 0 where the labels are UNKNOWN.

    The loss is the mean cross entropy of pixels and 1 - the mean soft Dice of REGIONS,
    one voxel added to both of its counts, so that nothing found of nothing is 1.
    """
    target = (labels[..., None] == np.array(CLASSES)).astype(jnp.float32)
    entropy = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1).mean((1, 2))
    found, true = regions(jax.nn.softmax(logits)), regions(target)
    both, either = (found * true).sum((1, 2)), (found + true).sum((1, 2))
    dice = jnp.mean((2 * both + 1) / (either + 1), axis=-1)
    known = known_rows(labels)
    return jnp.where(known, entropy + 1 - dice, 0), jnp.where(known, dice, 0)


def known_rows(labels: Array) -> Array:
    """[B] bool, of labels [B, H, W]: whether the subject has a segmentation."""
    return (labels != UNKNOWN).all((1, 2))


def init_state(
    key: jax.Array, model: Segmenter, recipe: UpdateRule, shape: tuple[int, int, int]
) -> TrainState:
    """The state before the first step, for images of `shape` H, W, M."""
    params = jax.jit(model.init)(key, jnp.zeros((1, *shape)))
    return first_state(params, recipe)


def make_step(model: Segmenter, recipe: UpdateRule, modalities: int) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    Nothing is drawn: `key` is not read. The gradient is that of the mean loss over the
    examples of the GLOBAL batch that have a segmentation and are no padding.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple:
        images = batch.images[..., :modalities].astype(jnp.float32)
        labels = jnp.where(batch.valid[:, None, None], batch.labels, UNKNOWN)
        examples = jnp.maximum(devices.sum_over_devices(known_rows(labels).sum()), 1)

        def mean_losses(params: Params, part: tuple) -> tuple[Array, dict]:
            images, labels = part
            loss, dice = losses(model.apply(params, images), labels)
            told = {"loss": loss.sum() / examples, "dice": dice.sum() / examples}
            return told["loss"], told

        parts = split((images, labels), recipe.accumulate)
        told, grads = devices.sum_over_devices(accumulate(mean_losses, state.params, parts))
        return update(recipe, state, told, grads)

    return step
