"""What a competitor of Table 1 is to everyone else: a `Method`, whatever it is inside.

A trainer knows `losses`, a study knows `complete`; neither knows a network. Masks, the
averages over what is scored and the turn of generator and discriminator are here, so
that the methods differ in their ideas alone.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.types import Array, Images, Keys, Losses, Missing, Params


class GANBatch(NamedTuple):
    """What one step teaches: the rows of one device.

    `images` are the truth, 0 is background; `missing` is what the generator must do
    without: what was dealt, and what was never scanned. `scored` is the dealt part
    alone, of which there is a truth. `lesion` is the tumour, all False where nobody
    has drawn it. A row in which nothing is `scored` only pads the batch.
    """

    images: Images
    missing: Missing
    scored: Missing
    lesion: Array  # [B, H, W] bool


class MethodLosses(NamedTuple):
    """Of `Method.losses`: what is to be made small, an example each.

    `discriminator` is 0 where there is none. `statistics` are the new running
    statistics, {} where there are none; `told` are parts worth writing down.
    """

    generator: Losses
    discriminator: Losses
    statistics: Params
    told: dict[str, Losses]


@dataclasses.dataclass(frozen=True)
class Method:
    """A competitor: its networks, and what it learns by.

    `init(key, (H, W))` gives {"generator", "discriminator", "statistics"}, of which the
    last two may be {}. `complete` answers a question, each row by itself: the seen
    images come back bit for bit. The generator's loss has no gradient on the
    discriminator's parameters and the other way round, so that one gradient of their
    sum serves both; what is random of a row is of its own key. `deal(progress, M)` are
    the probabilities of the proper configurations at a progress of 0 .. 1 of training,
    None: the study's own questions.
    `rates` are Adam's learning rates, the generator's first, and `betas` its own.
    """

    name: str
    title: str
    note: str
    init: Callable[[Array, tuple[int, int]], Params]
    complete: Callable[[Params, Condition], Images]
    losses: Callable[[Keys, Params, GANBatch], MethodLosses]
    deal: Callable[[Array, int], Array] | None
    rates: tuple[float, float]
    betas: tuple[float, float]
    training_only: tuple[str, ...] = ()  # parts of the generator that no answer needs


def taught(lesson: GANBatch) -> Array:
    """[B] bool: False on the rows that only pad the batch."""
    return lesson.scored.any(axis=1)


def has_truth(lesson: GANBatch) -> Array:
    """[B, M] bool: seen or scored; False for what was never scanned."""
    return lesson.scored | ~lesson.missing


def only(flags: Array, images: Images) -> Images:
    """The flagged channels [B, M] of images [B, H, W, M], 0 elsewhere."""
    return jnp.where(per_modality(flags), images, 0.0)


def average(values: Images, flags: Array) -> Losses:
    """[B] the mean of the flagged channels [B, M] of [B, H, W, M]; 0 where there are
    none."""
    count = flags.sum(axis=1) * values[0, ..., 0].size
    return only(flags, values).sum(axis=(1, 2, 3)) / jnp.maximum(count, 1)


def verdict(maps: Images, wanted: float) -> Losses:
    """[B] the least-squares loss of a discriminator's maps, of which all should be
    `wanted`."""
    return jnp.mean(jnp.square(maps - wanted), axis=(1, 2, 3))


def pick(keys: Keys, flags: Array) -> Array:
    """[B] one of each row's flagged places of [B, M], each as likely as another; 0 in
    a row that has none."""
    cards = jax.vmap(lambda key: jax.random.uniform(key, flags.shape[1:]))(keys)
    return jnp.argmax(jnp.where(flags, cards, -1.0), axis=1)


def channel(images: Images, place: Array) -> Images:
    """[B, H, W, 1] the channel at each row's place [B]."""
    return jnp.take_along_axis(images, place[:, None, None, None], axis=-1)


def outcome(
    lesson: GANBatch,
    generator: dict[str, tuple[float, Losses]],
    discriminator: Losses | None = None,
    statistics: Params | None = None,
) -> MethodLosses:
    """The outcome of a generator's loss in parts, {name: (weight, loss)}; exactly 0,
    with an exactly zero gradient, on rows that only pad the batch."""
    counted = taught(lesson)

    def own(loss: Losses) -> Losses:
        return jnp.where(counted, loss, 0.0)

    told = {name: own(loss) for name, (_, loss) in generator.items()}
    total = sum(weight * told[name] for name, (weight, _) in generator.items())
    if discriminator is None:
        discriminator = jnp.zeros_like(total)
    else:
        told["discriminator"] = discriminator = own(discriminator)
    return MethodLosses(total, discriminator, statistics or {}, told)
