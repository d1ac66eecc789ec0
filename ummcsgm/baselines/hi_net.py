"""Hi-Net (Zhou et al. 2020): features of each modality, fused at every level.

Each modality has an encoder and, in training, a decoder that gives it back from its own
features. A fusion network runs beside them: at each level it takes the sum, the product
and the maximum of the modalities' features, and what it made of the level before. Its
result is decoded with the same fusions on the way up.

Hi-Net is published for two inputs and one output, a model for each. Here one model
answers all questions: fusions are of the available modalities of each row, the
generator has an output for each modality, and the discriminator sees all of them, the
seen ones being real. Statistics of a modality are of the rows that have it. The
published code's rate is used.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines.layers import BatchNorm, doubled, greatest, halved, halvings, leaky, scaled
from ummcsgm.baselines.method import (
    GANBatch,
    Method,
    MethodLosses,
    average,
    has_truth,
    only,
    outcome,
    taught,
    verdict,
)
from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.types import Array, Images, Keys, Params

ENCODER = (32, 64, 128)
JUDGE = (32, 64, 128, 256)
TARGET, REBUILT = 100.0, 20.0  # weights of the two L1 losses


class Layer(nn.Module):
    """activate(norm(conv(x))), 3 x 3."""

    width: int
    axis: str | None
    activate: Callable = nn.relu
    running: bool = True

    @nn.compact
    def __call__(self, features: Array, counted: Array | None) -> Array:
        hidden = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(features)
        norm = BatchNorm(self.axis, running=self.running, name="norm")
        return self.activate(norm(hidden, counted))


class Encoder(nn.Module):
    """One modality [B, H, W, 1] -> its features at 1/2, 1/4 and 1/8."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, image: Images, counted: Array | None) -> list[Array]:
        features, levels = image, []
        for width in self.widths:
            for _ in range(2):
                features = Layer(width, self.axis, leaky)(features, counted)
            features = halved(features)
            levels.append(features)
        return levels


class Decoder(nn.Module):
    """One modality, from its own features at 1/8; used in training alone."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, levels: list[Array], image: Images, counted: Array) -> Images:
        one, two, three = self.widths
        below, features = [levels[1], levels[0], image], levels[2]
        sizes = ((three,), (three, two), (two, one))
        for widths, like in zip(sizes, below, strict=True):
            for each in widths:
                layer = Layer(each, self.axis, running=False)
                features = layer(features, counted)
            features = doubled(features, like)
        features = Layer(one, self.axis, running=False)(features, counted)
        return nn.Conv(1, (3, 3), name="head")(features)


def fuse(features: list[Array], available: Array) -> Array:
    """[B, h, w, 3 C] the sum, product and maximum of the available [B, M] of M features
    [B, h, w, C]."""
    total, product = 0.0, 1.0
    for each, flag in zip(features, available.T, strict=True):
        here = flag[:, None, None, None]
        total += jnp.where(here, each, 0.0)
        product *= jnp.where(here, each, 1.0)
    return jnp.concatenate([total, product, greatest(features, available)], axis=-1)


class Fusion(nn.Module):
    """The fused features of a level, joined with what was made of the level before."""

    inner: int
    width: int
    axis: str | None
    activate: Callable

    @nn.compact
    def __call__(self, fused: Array, before: Array | None, counted: Array | None) -> Array:
        first = Layer(self.inner, self.axis, self.activate, name="fuse")
        hidden = first(fused, counted)
        if before is None:
            return hidden
        joined = jnp.concatenate([hidden, before], axis=-1)
        return Layer(self.width, self.axis, self.activate, name="join")(joined, counted)


class Generator(nn.Module):
    """(images in [-1, 1], available) -> the images, and each as its decoder has it."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(
        self, images: Images, available: Array, counted: Array | None
    ) -> tuple[Images, Images | None]:
        """With `counted` None: running statistics, and no decoders of single ones."""
        modalities, axis = images.shape[-1], self.axis
        levels, rebuilt = [], []
        for m in range(modalities):
            image = images[..., m : m + 1]
            rows = None if counted is None else counted & available[:, m]
            own = Encoder(self.widths, axis, name=f"encoder{m}")(image, rows)
            levels.append(own)
            if counted is not None:
                decoder = Decoder(self.widths, axis, name=f"decoder{m}")
                rebuilt.append(decoder(own, image, rows))
        fused = [fuse(list(level), available) for level in zip(*levels, strict=True)]
        features = self._fusion_path(fused, counted)
        drawn = self._decode(features, fused, images, counted)
        return drawn, jnp.concatenate(rebuilt, axis=-1) if rebuilt else None

    def _fusion_path(self, fused: list[Array], counted: Array | None) -> Array:
        _, two, three = self.widths
        sizes = ((two, two), (two, three), (three, three))
        features = None
        for level, (inner, width) in enumerate(sizes):
            before = None if features is None else halved(features)
            join = Fusion(inner, width, self.axis, leaky, name=f"down{level}")
            features = join(fused[level], before, counted)
        return Layer(2 * three, self.axis, leaky, name="deep")(features, counted)

    def _decode(
        self, features: Array, fused: list[Array], images: Images, counted: Array | None
    ) -> Images:
        one, two, three = self.widths
        features = Layer(three, self.axis, name="enter")(features, counted)
        below = [images, *fused[:-1]]  # the next finer grid of each level
        sizes = ((one, one), (two, one), (three, two))
        for level in reversed(range(3)):
            inner, width = sizes[level]
            join = Fusion(inner, width, self.axis, nn.relu, name=f"up{level}")
            features = join(fused[level], features, counted)
            features = doubled(features, below[level])
        features = Layer(one, self.axis, name="leave")(features, counted)
        return nn.Conv(images.shape[-1], (3, 3), name="head")(features)


class Judge(nn.Module):
    """All modalities of a subject at once -> verdicts on its patches, [B, h, w, 1]."""

    widths: tuple[int, ...]
    axis: str | None

    @nn.compact
    def __call__(self, images: Images, counted: Array) -> Array:
        features = images
        # The last convolution needs three positions a side.
        depth = halvings(images.shape[1:3], len(self.widths), 4)
        for level, width in enumerate(self.widths[:depth]):
            features = nn.Conv(width, (3, 3), (2, 2), name=f"down{level}")(features)
            if level:
                norm = BatchNorm(self.axis, 0.8, running=False, name=f"norm{level}")
                features = norm(features, counted)
            features = leaky(features)
        return nn.Conv(1, (3, 3), padding="VALID", name="verdict")(features)


def make_hi_net(modalities: int, *, width: float, scale: float, axis: str | None) -> Method:
    """Hi-Net with a share `width` of its channels; statistics are over all devices of
    `axis`. It works in [-1, 1] and has no use for `scale`."""
    generator = Generator(scaled(ENCODER, width), axis)
    judge = Judge(scaled(JUDGE, width), axis)
    return Method(
        name="hi-net",
        title="Hi-Net",
        note="Adapted: one model for all questions, with fusions of whatever is"
        " available and an output for each modality, linear and not a tanh; the"
        " discriminator sees all modalities at once.",
        init=functools.partial(_init, generator, judge, modalities),
        complete=functools.partial(_complete, generator),
        losses=functools.partial(_losses, generator, judge),
        deal=None,
        rates=(1e-3, 1e-3),
        betas=(0.5, 0.999),
        training_only=("decoder",),
    )


def _init(
    generator: Generator, judge: Judge, modalities: int, key: Array, grid: tuple[int, int]
) -> Params:
    key_generator, key_judge = jax.random.split(key)
    # Statistics at initialisation are of this one device.
    alone = generator.clone(axis=None)
    images = jnp.zeros((1, *grid, modalities))
    counted = jnp.ones(1, bool)
    drawn = alone.init(key_generator, images, jnp.ones((1, modalities), bool), counted)
    judged = judge.clone(axis=None).init(key_judge, images, counted)
    return {
        "generator": drawn["params"],
        "discriminator": judged["params"],
        "statistics": drawn["statistics"],
    }


def _complete(generator: Generator, params: Params, question: Condition) -> Images:
    own = {"params": params["generator"], "statistics": params["statistics"]}
    images = 2 * question.seen - 1
    drawn, _ = generator.apply(own, images, ~question.missing, None)
    return question.fill((drawn + 1) / 2)


def _losses(
    generator: Generator, judge: Judge, keys: Keys, params: Params, lesson: GANBatch
) -> MethodLosses:
    """The least-squares GAN's, 100 of what is scored and 20 of each input given back.

    Nothing here is random: `keys` are for those that need some.
    """
    counted, images = taught(lesson), 2 * lesson.images - 1
    (drawn, rebuilt), changed = generator.apply(
        {"params": params["generator"], "statistics": params["statistics"]},
        jnp.where(per_modality(lesson.missing), -1.0, images),
        ~lesson.missing,
        counted,
        mutable=["statistics"],
    )
    real = only(has_truth(lesson), images)
    fake = jnp.where(per_modality(lesson.scored), drawn, real)

    def judged(params: Params, candidate: Images, wanted: float) -> Array:
        return verdict(judge.apply({"params": params}, candidate, counted), wanted)

    still = jax.lax.stop_gradient
    own = params["discriminator"]
    told = judged(own, real, 1.0) + judged(own, still(fake), 0.0)
    given_back = average(jnp.abs(rebuilt - images), ~lesson.missing)
    parts = {
        "adversarial": (1.0, judged(still(own), fake, 1.0)),
        "l1": (TARGET, average(jnp.abs(drawn - images), lesson.scored)),
        # The published sum over inputs, of which a row has as many as it has.
        "rebuilt": (REBUILT, given_back * (~lesson.missing).sum(axis=1)),
    }
    return outcome(lesson, parts, 0.5 * told, still(changed["statistics"]))
