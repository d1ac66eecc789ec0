"""UcDGAN (Liu et al. 2021), reconstructed: one encoder for all, a target by its name.

A single encoder, the same for every modality, is to give a code of the anatomy alone;
one generator makes of it the modality that a one-hot vector names. A discriminator says
whether an image is real, and which modality it is. The answer's own code is to be that
of the source, and to give the source back.

Written from the abstract, with layers and weights of our own choice. Of several
available modalities the codes are averaged. Each row of a batch trains one target and
gives one source back, drawn anew in each step. The named target enters before a
convolution without a norm: an instance norm would subtract what is the same everywhere.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines.layers import (
    Patches,
    PatchMaps,
    Residual,
    Up,
    instance_norm,
    mean_of,
    scaled,
)
from ummcsgm.baselines.method import (
    GANBatch,
    Method,
    MethodLosses,
    channel,
    only,
    outcome,
    pick,
    verdict,
)
from ummcsgm.diffusion.missingness import Condition
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (64, 128, 256)
JUDGE = (64, 128, 256, 512)
BLOCKS = 6
L1, CYCLE, CODE, ADVERSARIAL, CLASS = 10.0, 1.0, 1.0, 0.25, 0.25


class Encoder(nn.Module):
    """One image of any modality [B, H, W, 1] -> its code [B, H / 4, W / 4, C]."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, image: Images) -> Array:
        features = image
        for level, width in enumerate(self.widths):
            size, stride = (3, 2) if level else (7, 1)
            conv = nn.Conv(width, (size, size), (stride, stride), use_bias=False)
            features = nn.relu(instance_norm(conv(features)))
        for _ in range(BLOCKS):
            features = Residual()(features)
        return features


class Generator(nn.Module):
    """(code, a one-hot target [B, M]) -> that modality, cropped to `size`."""

    widths: tuple[int, ...]
    size: tuple[int, int]

    @nn.compact
    def __call__(self, code: Array, target: Array) -> Images:
        named = target[:, None, None, :]
        named = jnp.broadcast_to(named, code.shape[:3] + named.shape[-1:])
        features = jnp.concatenate([code, named], axis=-1)
        features = nn.relu(nn.Conv(self.widths[-1], (3, 3), name="enter")(features))
        for _ in range(BLOCKS):
            features = Residual()(features)
        for width in self.widths[-2::-1]:
            features = nn.relu(instance_norm(Up(width)(features)))
        features = features[:, : self.size[0], : self.size[1]]
        return nn.Conv(1, (7, 7), name="head")(features)


class Judge(nn.Module):
    """One image -> verdicts on its patches, and the scores [B, M] of each modality."""

    widths: tuple[int, ...]
    modalities: int

    @nn.compact
    def __call__(self, image: Images) -> tuple[Array, Array]:
        features = Patches(self.widths, name="patches")(image)
        scores = nn.Dense(self.modalities, name="class")(features.mean(axis=(1, 2)))
        return PatchMaps(1, name="verdict")(features), scores


class Networks(NamedTuple):
    """All three, and how many modalities they know."""

    encoder: Encoder
    generator: Generator
    judge: Judge
    modalities: int

    def encode(self, params: Params, image: Images) -> Array:
        """The code of one image a row."""
        return self.encoder.apply({"params": params["encoder"]}, image)

    def encode_all(self, params: Params, images: Images) -> list[Array]:
        """The codes of each modality, of one pass through the encoder."""
        each = jnp.split(images, self.modalities, axis=-1)
        return jnp.split(self.encode(params, jnp.concatenate(each)), self.modalities)

    def generate(self, params: Params, code: Array, target: Array, like: Images):
        """The modality `target` [B], of the size of `like`."""
        generator = self.generator.clone(size=like.shape[1:3])
        named = jax.nn.one_hot(target, self.modalities)
        return generator.apply({"params": params["generator"]}, code, named)


def unlike(code: Array, other: Array) -> Losses:
    """[B] 1 less the cosine of two codes."""

    def product(one: Array, two: Array) -> Array:
        return jnp.sum(one * two, axis=(1, 2, 3))

    squares = product(code, code) * product(other, other)
    # A row that pads has codes of 0, and the root no slope there.
    return 1 - product(code, other) * jax.lax.rsqrt(squares + 1e-12)


def wrong_class(scores: Array, modality: Array) -> Losses:
    """[B] the cross entropy of scores [B, M] with the modality [B] that it is."""
    logs = jax.nn.log_softmax(scores)
    return -jnp.take_along_axis(logs, modality[:, None], axis=1)[:, 0]


def make_ucdgan(modalities: int, *, width: float, scale: float, axis: str | None) -> Method:
    """UcDGAN with a share `width` of our channels. It works in [-1, 1] and has no use
    for `scale`."""
    networks = Networks(
        Encoder(scaled(WIDTHS, width)),
        Generator(scaled(WIDTHS, width), (0, 0)),
        Judge(scaled(JUDGE, width), modalities),
        modalities,
    )
    return Method(
        name="ucdgan",
        title="UcDGAN",
        note="Reconstructed from its abstract, with layers and weights of our choice;"
        " the codes of all available modalities are averaged, and the output is linear"
        " and not a tanh.",
        init=functools.partial(_init, networks),
        complete=functools.partial(_complete, networks),
        losses=functools.partial(_losses, networks),
        deal=None,
        rates=(1e-4, 1e-5),
        betas=(0.5, 0.999),
    )


def _init(networks: Networks, key: Array, grid: tuple[int, int]) -> Params:
    keys = jax.random.split(key, 3)
    image = jnp.zeros((1, *grid, 1))
    code, encoder = networks.encoder.init_with_output(keys[0], image)
    named = jnp.zeros((1, networks.modalities))
    generator = networks.generator.clone(size=grid).init(keys[1], code, named)
    judge = networks.judge.init(keys[2], image)
    return {
        "generator": {"encoder": encoder["params"], "generator": generator["params"]},
        "discriminator": judge["params"],
        "statistics": {},
    }


def _complete(networks: Networks, params: Params, question: Condition) -> Images:
    own, rows = params["generator"], len(question.missing)
    codes = networks.encode_all(own, 2 * question.seen - 1)
    code = mean_of(codes, ~question.missing)
    many = networks.modalities
    target = jnp.repeat(jnp.arange(many), rows)
    tiled = jnp.concatenate([code] * many)
    drawn = networks.generate(own, tiled, target, question.seen)
    drawn = jnp.concatenate(jnp.split(drawn, many), axis=-1)
    return question.fill((drawn + 1) / 2)


def _losses(networks: Networks, keys: Keys, params: Params, lesson: GANBatch) -> MethodLosses:
    own, images = params["generator"], 2 * lesson.images - 1
    pairs = jax.vmap(jax.random.split)(keys)
    target = pick(pairs[:, 0], lesson.scored)
    source = pick(pairs[:, 1], ~lesson.missing)
    codes = networks.encode_all(own, only(~lesson.missing, images))
    fake = networks.generate(own, mean_of(codes, ~lesson.missing), target, images)
    code, stacked = networks.encode(own, fake), jnp.stack(codes, axis=1)
    back = networks.generate(own, code, source, images)
    real, given = channel(images, target), channel(images, source)
    index = source[:, None, None, None, None]
    of_source = jnp.take_along_axis(stacked, index, axis=1)[:, 0]

    def judged(params: Params, image: Images, wanted: float) -> tuple[Losses, Losses]:
        maps, scores = networks.judge.apply({"params": params}, image)
        return verdict(maps, wanted), wrong_class(scores, target)

    still = jax.lax.stop_gradient
    judge = params["discriminator"]
    fooled, named = judged(still(judge), fake, 1.0)
    told_real, class_real = judged(judge, real, 1.0)
    told_fake, class_fake = judged(judge, still(fake), 0.0)
    parts = {
        "l1": (L1, _distance(fake, real)),
        "cycle": (CYCLE, _distance(back, given)),
        "code": (CODE, unlike(of_source, code)),
        "adversarial": (ADVERSARIAL, fooled),
        "class": (CLASS, named),
    }
    told = ADVERSARIAL * (told_real + told_fake) + CLASS * (class_real + class_fake)
    return outcome(lesson, parts, told)


def _distance(one: Images, other: Images) -> Losses:
    return jnp.mean(jnp.abs(one - other), axis=(1, 2, 3))
