"""UcDGAN (Liu et al. 2021), reconstructed: one encoder and one decoder for all modalities.

One encoder for all modalities gives a code of the anatomy alone; one generator turns it
into the modality that a one-hot vector names. A discriminator says whether an image is
real, and which modality it is. The code of the output has to equal that of the source,
and the generator has to reconstruct the source from it.

Written from the abstract, with layers and weights of our choice. The codes of several
available modalities are averaged. In each step an example trains one random target, and
one random source is reconstructed. The one-hot target enters before a convolution without
a norm: an instance norm would subtract what is constant over the image.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines import layers, method
from ummcsgm.diffusion.missingness import Condition
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (64, 128, 256)
DISCRIMINATOR_WIDTHS = (64, 128, 256, 512)
BLOCKS = 6
L1, CYCLE, CODE, ADVERSARIAL, CLASS = 10.0, 1.0, 1.0, 0.25, 0.25


class Generator(nn.Module):
    """The modality [B, *size, 1] of a one-hot target [B, M], generated from a code."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, code: Array, target: Array, size: tuple[int, int]) -> Images:
        maps = jnp.broadcast_to(target[:, None, None, :], code.shape[:3] + target.shape[-1:])
        features = jnp.concatenate([code, maps], axis=-1)
        features = nn.relu(nn.Conv(self.widths[-1], (3, 3), name="enter")(features))
        return layers.decode_residual(features, self.widths, BLOCKS, size)


def cosine_distance(code: Array, other: Array) -> Losses:
    """[B] 1 minus the cosine of two codes [B, h, w, C]."""

    def product(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=(1, 2, 3))

    squares = product(code, code) * product(other, other)
    # Padding has codes of 0, where the root has no slope.
    return 1 - product(code, other) * jax.lax.rsqrt(squares + 1e-12)


def cross_entropy(scores: Array, modality: Array) -> Losses:
    """[B] the cross entropy of class scores [B, M] with the index [B] of the modality."""
    logs = jax.nn.log_softmax(scores)
    return -jnp.take_along_axis(logs, modality[:, None], axis=1)[:, 0]


def choose_channel(keys: Keys, flags: Array) -> Array:
    """[B] the index of a random channel among those that `flags` [B, M] select, all equally
    likely; 0 without any."""
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, flags.shape[1:]))(keys)
    return jnp.argmax(jnp.where(flags, uniforms, -1.0), axis=1)


def _take_channel(images: Images, index: Array) -> Images:
    return jnp.take_along_axis(images, index[:, None, None, None], axis=-1)


def _distance(image: Images, other: Images) -> Losses:
    return jnp.mean(jnp.abs(image - other), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class UcDGAN(method.Method):
    """UcDGAN for `modalities` modalities, of images in [-1, 1]."""

    modalities: int
    encoder: nn.Module
    generator: nn.Module
    discriminator: nn.Module

    name = "ucdgan"
    title = "UcDGAN"
    note = (
        "Reconstructed from its abstract, with layers and weights of our choice;"
        " the codes of all available modalities are averaged, and the output is linear"
        " and not a tanh."
    )
    learning_rates = (1e-4, 1e-5)

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        keys = jax.random.split(key, 3)
        image, target = jnp.zeros((1, *grid, 1)), jnp.zeros((1, self.modalities))
        code, encoder = self.encoder.init_with_output(keys[0], image)
        generator = self.generator.init(keys[1], code, target, grid)
        discriminator = self.discriminator.init(keys[2], image)
        return {
            "generator": {"encoder": encoder["params"], "generator": generator["params"]},
            "discriminator": discriminator["params"],
            "statistics": {},
        }

    def encode(self, params: Params, image: Images) -> Array:
        """The code [B, h, w, C] of images [B, H, W, 1]."""
        return self.encoder.apply({"params": params["encoder"]}, image)

    def encode_all(self, params: Params, images: Images) -> list[Array]:
        """The codes of the M modalities of images [B, H, W, M], in one pass of the encoder."""
        stacked = jnp.concatenate(jnp.split(images, self.modalities, axis=-1))
        return jnp.split(self.encode(params, stacked), self.modalities)

    def generate(self, params: Params, code: Array, target: Array, like: Images) -> Images:
        """The modality of index `target` [B], of the size of `like`."""
        one_hot = jax.nn.one_hot(target, self.modalities)
        variables = {"params": params["generator"]}
        return self.generator.apply(variables, code, one_hot, like.shape[1:3])

    def complete(self, params: Params, condition: Condition) -> Images:
        params, modalities = params["generator"], self.modalities
        codes = self.encode_all(params, 2 * condition.seen - 1)
        code = layers.mean_over_available(codes, ~condition.missing)
        target = jnp.repeat(jnp.arange(modalities), len(condition.missing))
        repeated = jnp.concatenate([code] * modalities)
        generated = self.generate(params, repeated, target, condition.seen)
        generated = jnp.concatenate(jnp.split(generated, modalities), axis=-1)
        return condition.fill((generated + 1) / 2)

    def losses(self, keys: Keys, params: Params, batch: method.GANBatch) -> method.MethodLosses:
        """The errors of the target, of the reconstructed source and of the code, and the
        least-squares and cross-entropy losses of the discriminator."""
        generator, images = params["generator"], 2 * batch.images - 1
        pairs = jax.vmap(jax.random.split)(keys)
        target = choose_channel(pairs[:, 0], batch.scored)
        source = choose_channel(pairs[:, 1], batch.seen)
        codes = self.encode_all(generator, method.select(batch.seen, images))
        code = layers.mean_over_available(codes, batch.seen)
        fake = self.generate(generator, code, target, images)
        fake_code, stacked = self.encode(generator, fake), jnp.stack(codes, axis=1)
        back = self.generate(generator, fake_code, source, images)
        real, source_image = _take_channel(images, target), _take_channel(images, source)
        index = source[:, None, None, None, None]
        source_code = jnp.take_along_axis(stacked, index, axis=1)[:, 0]

        def loss(params: Params, image: Images, label: float) -> Array:
            scores, classes = self.discriminator.apply({"params": params}, image)
            return jnp.stack([method.least_squares(scores, label), cross_entropy(classes, target)])

        discriminator_params = params["discriminator"]
        adversarial, discriminator = method.adversarial_losses(
            loss, discriminator_params, real, fake
        )
        parts = {
            "l1": (L1, _distance(fake, real)),
            "cycle": (CYCLE, _distance(back, source_image)),
            "code": (CODE, cosine_distance(source_code, fake_code)),
            "adversarial": (ADVERSARIAL, adversarial[0]),
            "class": (CLASS, adversarial[1]),
        }
        discriminator = ADVERSARIAL * discriminator[0] + CLASS * discriminator[1]
        return method.combine_losses(batch, parts, discriminator)


def make_ucdgan(modalities: int, *, width: float, scale: float, axis: str | None) -> UcDGAN:
    """UcDGAN with `width` times our channels; `scale` and `axis` are not used."""
    widths = layers.scale_widths(WIDTHS, width)
    encoder, generator = layers.ResidualEncoder(widths, BLOCKS), Generator(widths)
    widths = layers.scale_widths(DISCRIMINATOR_WIDTHS, width)
    discriminator = layers.PatchDiscriminator(widths, classes=modalities)
    return UcDGAN(modalities, encoder, generator, discriminator)
