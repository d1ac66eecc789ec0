"""CocaGAN (Huang et al. 2019), reconstructed: a common feature space, aware of lesions.

Each modality has an encoder to one space of features, which one discriminator keeps
common: it guesses from which modality features are, and the encoders are to leave it
guessing. A bank of decoders, one for each modality, reads any features of that space.
Images are judged by a least-squares GAN, and errors inside the lesion count five times.

Written from the abstract, in two dimensions and not in three, with layers and weights
of our own choice. The features of all available modalities are averaged. With `inputs`
only one modality's are used, wherever it is available, as the paper seems to have done
with T1: the other encoders are then trained for the space alone, and for the rows that
lack it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines.layers import (
    Patches,
    PatchMaps,
    Residual,
    Up,
    cropped,
    instance_norm,
    mean_of,
    scaled,
)
from ummcsgm.baselines.method import (
    GANBatch,
    Method,
    MethodLosses,
    average,
    has_truth,
    only,
    outcome,
    verdict,
)
from ummcsgm.diffusion.missingness import Condition, per_modality
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (32, 64, 128)
JUDGE = (64, 128, 256, 512)
GUESSER = (64, 128)
BLOCKS = 3
INSIDE = 5.0  # how often an error inside the lesion counts
L1, ADVERSARIAL, ALIKE = 10.0, 0.25, 0.25


class Encoder(nn.Module):
    """One modality [B, H, W, 1] -> features of the common space, at a quarter."""

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


class Decoder(nn.Module):
    """Features of the common space -> one modality, of the size of `like`."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Array, like: Images) -> Images:
        for _ in range(BLOCKS):
            features = Residual()(features)
        for width in self.widths[-2::-1]:
            features = nn.relu(instance_norm(Up(width)(features)))
        return nn.Conv(1, (7, 7), name="head")(cropped(features, like))


class Generator(nn.Module):
    """(images in [-1, 1], available, used) -> all modalities, and features of each.

    `used` [B, M] says of which modalities the features are averaged and decoded.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Images, used: Array) -> tuple[Images, list[Array]]:
        modalities = range(images.shape[-1])
        each = [
            Encoder(self.widths, name=f"encoder{m}")(images[..., m : m + 1]) for m in modalities
        ]
        common = mean_of(each, used)
        drawn = [Decoder(self.widths, name=f"decoder{m}")(common, images) for m in modalities]
        return jnp.concatenate(drawn, axis=-1), each


class Judge(nn.Module):
    """All modalities of a subject at once -> verdicts on its patches, [B, h, w, 1]."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Images) -> Array:
        features = Patches(self.widths, name="patches")(images)
        return PatchMaps(1, name="verdict")(features)


class Guesser(nn.Module):
    """Features of the common space -> the scores [B, M] of the modality they are of."""

    widths: tuple[int, ...]
    modalities: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        hidden = Patches(self.widths, name="patches")(features)
        return nn.Dense(self.modalities, name="class")(hidden.mean(axis=(1, 2)))


def used_of(missing: Array, inputs: int | None) -> Array:
    """[B, M] bool: the modalities whose features are averaged. All that are available,
    or only that of place `inputs` in the rows that have it."""
    available = ~missing
    if inputs is None:
        return available
    named = jnp.arange(missing.shape[1]) == inputs
    return jnp.where(available[:, inputs : inputs + 1], named, available)


def aware_error(drawn: Images, lesson: GANBatch, truth: Images) -> Losses:
    """[B] the mean absolute error of what is scored, a voxel inside the lesson's lesion
    counting `INSIDE` times."""
    weight = jnp.where(lesson.lesion, INSIDE, 1.0)[..., None]
    return average(weight * jnp.abs(drawn - truth), lesson.scored)


def make_cocagan(
    modalities: int, *, width: float, scale: float, axis: str | None, inputs: int | None = None
) -> Method:
    """CocaGAN with a share `width` of our channels, from all that is available or, with
    `inputs`, from that modality alone. It works in [-1, 1], without `scale`."""
    generator = Generator(scaled(WIDTHS, width))
    judge = Judge(scaled(JUDGE, width))
    guesser = Guesser(scaled(GUESSER, width), modalities)
    sources = "all available modalities" if inputs is None else "one modality alone"
    return Method(
        name="cocagan",
        title="CocaGAN",
        note="Reconstructed from its abstract, in two dimensions, with layers and"
        f" weights of our choice; it answers from the features of {sources}.",
        init=functools.partial(_init, (generator, judge, guesser), modalities),
        complete=functools.partial(_complete, generator, inputs),
        losses=functools.partial(_losses, (generator, judge, guesser), inputs),
        deal=None,
        rates=(2e-4, 2e-4),
        betas=(0.5, 0.999),
    )


def _init(networks: tuple, modalities: int, key: Array, grid: tuple[int, int]) -> Params:
    generator, judge, guesser = networks
    keys = jax.random.split(key, 3)
    images = jnp.zeros((1, *grid, modalities))
    used = jnp.ones((1, modalities), bool)
    (_, features), drawn = generator.init_with_output(keys[0], images, used)
    return {
        "generator": drawn["params"],
        "discriminator": {
            "images": judge.init(keys[1], images)["params"],
            "features": guesser.init(keys[2], features[0])["params"],
        },
        "statistics": {},
    }


def _complete(
    generator: Generator, inputs: int | None, params: Params, question: Condition
) -> Images:
    own, used = {"params": params["generator"]}, used_of(question.missing, inputs)
    drawn, _ = generator.apply(own, 2 * question.seen - 1, used)
    return question.fill((drawn + 1) / 2)


def guess_losses(scores: Array, available: Array) -> tuple[Losses, Losses]:
    """([B], [B]) of scores [B, M, M], of features of each modality and for each: how
    far the guess is from even, and from right; the mean over the available [B, M]."""
    logs = jax.nn.log_softmax(scores)
    many = scores.shape[-1]
    uneven = -logs.mean(axis=-1) - jnp.log(many)
    wrong = -jnp.einsum("bmm->bm", logs)
    count = jnp.maximum(available.sum(axis=1), 1)
    return tuple(jnp.where(available, each, 0.0).sum(axis=1) / count for each in (uneven, wrong))


def _losses(
    networks: tuple, inputs: int | None, keys: Keys, params: Params, lesson: GANBatch
) -> MethodLosses:
    """Nothing here is random: `keys` are for those that need some."""
    generator, judge, guesser = networks
    available, images = ~lesson.missing, 2 * lesson.images - 1
    own = {"params": params["generator"]}
    shown = only(available, images)
    drawn, features = generator.apply(own, shown, used_of(lesson.missing, inputs))
    real = only(has_truth(lesson), images)
    fake = jnp.where(per_modality(lesson.scored), drawn, real)
    stacked = jnp.concatenate(features)

    def judged(params: Params, candidate: Images, wanted: float) -> Losses:
        return verdict(judge.apply({"params": params["images"]}, candidate), wanted)

    def guessed(params: Params, stacked: Array) -> tuple[Losses, Losses]:
        scores = guesser.apply({"params": params["features"]}, stacked)
        scores = jnp.stack(jnp.split(scores, len(features)), axis=1)
        return guess_losses(scores, available)

    still = jax.lax.stop_gradient
    judges = params["discriminator"]
    parts = {
        "l1": (L1, aware_error(drawn, lesson, images)),
        "adversarial": (ADVERSARIAL, judged(still(judges), fake, 1.0)),
        "alike": (ALIKE, guessed(still(judges), stacked)[0]),
    }
    told = judged(judges, real, 1.0) + judged(judges, still(fake), 0.0)
    wrong = guessed(judges, still(stacked))[1]
    return outcome(lesson, parts, 0.5 * told + ALIKE * wrong)
