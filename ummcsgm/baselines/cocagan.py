"""CocaGAN (Huang et al. 2019), reconstructed: a common feature space, aware of lesions.

Each modality has an encoder to a common feature space. A classifier guesses which modality
the features come from, and the encoders are trained so that it cannot. Each modality has
a decoder that reads any features of that space. A least-squares GAN scores the images,
and errors inside the lesion count five times.

Written from the abstract, in two dimensions and not in three, with layers and weights of
our choice. The features of all available modalities are averaged. With `input_modality`
only the features of that modality are used wherever it is available, as the paper seems
to have done with T1. The other encoders then learn only from the common space and from
the examples that lack that modality.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ummcsgm.baselines import layers, method
from ummcsgm.diffusion.missingness import Condition
from ummcsgm.types import Array, Images, Keys, Losses, Params

WIDTHS = (32, 64, 128)
DISCRIMINATOR_WIDTHS = (64, 128, 256, 512)
CLASSIFIER_WIDTHS = (64, 128)
BLOCKS = 3
LESION_WEIGHT = 5.0  # how often an error inside the lesion counts
L1, ADVERSARIAL, COMMON_SPACE = 10.0, 0.25, 0.25


class Decoder(nn.Module):
    """One modality [B, *size, 1] of features of the common space."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Array, size: tuple[int, int]) -> Images:
        return layers.decode_residual(features, self.widths, BLOCKS, size)


class Generator(nn.Module):
    """All modalities [B, H, W, M] in [-1, 1], and the features of each.

    The features of the `used` [B, M] modalities are averaged and decoded.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Images, used: Array) -> tuple[Images, list[Array]]:
        modalities = range(images.shape[-1])
        features = [
            layers.ResidualEncoder(self.widths, BLOCKS, name=f"encoder{m}")(images[..., m : m + 1])
            for m in modalities
        ]
        common, size = layers.mean_over_available(features, used), images.shape[1:3]
        decoded = [Decoder(self.widths, name=f"decoder{m}")(common, size) for m in modalities]
        return jnp.concatenate(decoded, axis=-1), features


def select_inputs(missing: Array, input_modality: int | None) -> Array:
    """[B, M] bool: the modalities whose features are averaged. All available ones, or
    only that of index `input_modality` in the examples that have it."""
    available = ~missing
    if input_modality is None:
        return available
    alone = jnp.arange(missing.shape[1]) == input_modality
    return jnp.where(available[:, input_modality : input_modality + 1], alone, available)


def lesion_weighted_error(generated: Images, batch: method.GANBatch, truth: Images) -> Losses:
    """[B] the mean absolute error of the scored modalities; a voxel of the lesion counts
    `LESION_WEIGHT` times."""
    weight = jnp.where(batch.lesion, LESION_WEIGHT, 1.0)[..., None]
    return method.masked_mean(weight * jnp.abs(generated - truth), batch.scored)


def classifier_losses(scores: Array, available: Array) -> tuple[Losses, Losses]:
    """([B], [B]) the encoders' loss, which is 0 where all modalities are equally likely, and
    the classifier's cross entropy, averaged over the features of the available [B, M].

    `scores` [B, features, classes] has a row for the features of each modality.
    """
    logs = jax.nn.log_softmax(scores)
    uneven = -logs.mean(axis=-1) - jnp.log(scores.shape[-1])
    wrong = -jnp.einsum("bmm->bm", logs)
    count = jnp.maximum(available.sum(axis=1), 1)
    return tuple(jnp.where(available, loss, 0.0).sum(axis=1) / count for loss in (uneven, wrong))


@dataclasses.dataclass(frozen=True)
class CocaGAN(method.Method):
    """CocaGAN for `modalities` modalities, of images in [-1, 1]."""

    modalities: int
    input_modality: int | None
    generator: nn.Module
    discriminator: nn.Module
    classifier: nn.Module

    name = "cocagan"
    title = "CocaGAN"
    learning_rates = (2e-4, 2e-4)

    @property
    def note(self) -> str:
        """What is reconstructed, and which modalities are the inputs."""
        alone = self.input_modality is not None
        return (
            "Reconstructed from its abstract, in two dimensions, with layers and weights of our"
            " choice; it completes from the features of"
            f" {'one modality alone' if alone else 'all available modalities'}."
        )

    def init(self, key: Array, grid: tuple[int, int]) -> Params:
        keys = jax.random.split(key, 3)
        images = jnp.zeros((1, *grid, self.modalities))
        used = jnp.ones((1, self.modalities), bool)
        (_, features), variables = self.generator.init_with_output(keys[0], images, used)
        return {
            "generator": variables["params"],
            "discriminator": {
                "images": self.discriminator.init(keys[1], images)["params"],
                "features": self.classifier.init(keys[2], features[0])["params"],
            },
            "statistics": {},
        }

    def complete(self, params: Params, condition: Condition) -> Images:
        used = select_inputs(condition.missing, self.input_modality)
        variables = {"params": params["generator"]}
        generated, _ = self.generator.apply(variables, 2 * condition.seen - 1, used)
        return condition.fill((generated + 1) / 2)

    def losses(self, keys: Keys, params: Params, batch: method.GANBatch) -> method.MethodLosses:
        """The lesion-weighted error, the least-squares GAN loss and the classifier's losses.
        `keys` are not used."""
        images = 2 * batch.images - 1
        variables, seen_images = {"params": params["generator"]}, method.select(batch.seen, images)
        used = select_inputs(batch.missing, self.input_modality)
        generated, features = self.generator.apply(variables, seen_images, used)
        real, fake = method.real_and_fake(batch, images, generated)
        stacked = jnp.concatenate(features)

        def loss(params: Params, candidate: Images, target: float) -> Losses:
            scores, _ = self.discriminator.apply({"params": params["images"]}, candidate)
            return method.least_squares(scores, target)

        def classify(params: Params, stacked: Array) -> tuple[Losses, Losses]:
            _, scores = self.classifier.apply({"params": params["features"]}, stacked)
            scores = jnp.stack(jnp.split(scores, len(features)), axis=1)
            return classifier_losses(scores, batch.seen)

        frozen, discriminator_params = jax.lax.stop_gradient, params["discriminator"]
        adversarial, discriminator = method.adversarial_losses(
            loss, discriminator_params, real, fake
        )
        parts = {
            "l1": (L1, lesion_weighted_error(generated, batch, images)),
            "adversarial": (ADVERSARIAL, adversarial),
            "alike": (COMMON_SPACE, classify(frozen(discriminator_params), stacked)[0]),
        }
        wrong = classify(discriminator_params, frozen(stacked))[1]
        return method.combine_losses(batch, parts, 0.5 * discriminator + COMMON_SPACE * wrong)


def make_cocagan(
    modalities: int,
    *,
    width: float,
    scale: float,
    axis: str | None,
    input_modality: int | None = None,
) -> CocaGAN:
    """CocaGAN with `width` times our channels; `scale` and `axis` are not used."""
    return CocaGAN(
        modalities,
        input_modality,
        Generator(layers.scale_widths(WIDTHS, width)),
        layers.PatchDiscriminator(layers.scale_widths(DISCRIMINATOR_WIDTHS, width)),
        layers.PatchDiscriminator(
            layers.scale_widths(CLASSIFIER_WIDTHS, width), maps=0, classes=modalities
        ),
    )
