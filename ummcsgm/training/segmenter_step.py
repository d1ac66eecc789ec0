"""The training step of the segmentation network, its loss and its predictions.

The network is trained on real images and expects all modalities: its score on a
synthetic modality measures what that modality is worth to a reader of real ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA, REGIONS, UNKNOWN
from ummcsgm.distributed import devices
from ummcsgm.models.segmenter import Segmenter
from ummcsgm.training.dsm_step import (
    TrainState,
    UpdateRule,
    accumulate_gradients,
    apply_update,
    first_state,
    split_microbatches,
)
from ummcsgm.types import Array, Batch, Images, Losses, Params

CLASSES = (0, CORE, OEDEMA, ENHANCING)  # the labels, in the order of channels
MEMBERS = np.array([[label in REGIONS[name] for name in REGIONS] for label in CLASSES], np.float32)


def regions(probabilities: Array) -> Array:
    """[..., 4] of CLASSES -> [..., 3] of REGIONS: the sum of the classes of each region."""
    return probabilities @ MEMBERS


def make_segment(model: Segmenter) -> Callable[[Params, Images], Array]:
    """segment(params, images): the probabilities [B, H, W, 4] of CLASSES."""
    return lambda params, images: jax.nn.softmax(model.apply(params, images))


def losses(logits: Array, labels: Array) -> tuple[Losses, Losses]:
    """(loss, soft Dice), each [B], both 0 where the labels are UNKNOWN.

    The loss is the mean cross entropy of pixels and 1 - the mean soft Dice of REGIONS, with 1 voxel
    added to numerator and denominator, so that an empty prediction of an empty region scores 1.
    """
    target = (labels[..., None] == np.array(CLASSES)).astype(jnp.float32)
    entropy = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1).mean((1, 2))
    predicted, true = regions(jax.nn.softmax(logits)), regions(target)
    intersection, total = (predicted * true).sum((1, 2)), (predicted + true).sum((1, 2))
    dice = jnp.mean((2 * intersection + 1) / (total + 1), axis=-1)
    labelled = has_labels(labels)
    return jnp.where(labelled, entropy + 1 - dice, 0), jnp.where(labelled, dice, 0)


def has_labels(labels: Array) -> Array:
    """[B] bool, from labels [B, H, W]: whether the subject has a segmentation."""
    return (labels != UNKNOWN).all((1, 2))


def init_state(
    key: jax.Array, model: Segmenter, rule: UpdateRule, shape: tuple[int, int, int]
) -> TrainState:
    """The state before the first step, for images of `shape` H, W, M."""
    return first_state(jax.jit(model.init)(key, jnp.zeros((1, *shape))), rule)


def make_step(model: Segmenter, rule: UpdateRule, modalities: int) -> Callable:
    """step(key, state, batch) -> (state, metrics), to be mapped over devices.

    Nothing is random: `key` is not used. The gradient is that of the mean loss over the
    examples of the GLOBAL batch that have a segmentation and are not padding.
    """

    def step(key: jax.Array, state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        images = batch.images[..., :modalities].astype(jnp.float32)
        labels = jnp.where(batch.valid[:, None, None], batch.labels, UNKNOWN)
        examples = jnp.maximum(devices.sum_over_devices(has_labels(labels).sum()), 1)

        def mean_losses(params: Params, microbatch: tuple) -> tuple[Array, dict]:
            images, labels = microbatch
            loss, dice = losses(model.apply(params, images), labels)
            metrics = {"loss": loss.sum() / examples, "dice": dice.sum() / examples}
            return metrics["loss"], metrics

        microbatches = split_microbatches((images, labels), rule.accumulate)
        metrics, grads = devices.sum_over_devices(
            accumulate_gradients(mean_losses, state.params, microbatches)
        )
        return apply_update(rule, state, metrics, grads)

    return step
