"""What a synthetic modality is worth to a segmentation network of real ones.

The network of `segmenter`, trained on real images, is given a test subject's real
modalities, one of them replaced: by a method's answer, by zeros, or by the truth again.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.config import build
from ummcsgm.config.courses import SEGMENTER, method_folder
from ummcsgm.data.labels import REGIONS, network_labels, read_labels, region
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import PreparedSubject, network_brain, network_slices
from ummcsgm.evaluation.marks import Marks, kept
from ummcsgm.evaluation.metrics import mean_and_sd
from ummcsgm.inference.predictor import in_microbatches
from ummcsgm.training import checkpoint
from ummcsgm.training.segmenter_step import CLASSES, make_segment, regions
from ummcsgm.types import Array, Config, Images, InputError
from ummcsgm.utils.atomic_io import json_without_nan

Fill = Callable[[int], Array | None]
"""fill(m) is a method's answer [S, H, W, M] to a patient's slices, the modality at
place m alone being missing; None where it has none. Only its channel m is read."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """trained(images [R, H, W, M]): the probabilities [R, H, W, 4] of CLASSES, R >= 0.

    `digest` is that of the parameters.
    """

    digest: str
    _segment: Callable

    def __call__(self, images: Images) -> Array:
        if not len(images):
            return np.zeros((0, *images.shape[1:3], len(CLASSES)), np.float32)
        return self._segment(images)


def load_segmenter(workdir: pathlib.Path, config: Config) -> Trained:
    """The segmentation network that was trained in `workdir`, its averaged parameters.

    Compiled once, for config.evaluate.microbatch rows over the local devices.

    Raises:
        InputError: there is none.
    """
    place = method_folder(workdir, SEGMENTER)
    saved = build.config_from_json(checkpoint.restore_metadata(place)["config"])
    model, space = build.build_segmenter(saved), build.build_space(saved)
    images = jnp.zeros((1, *space.grid, len(space.modalities)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    params = checkpoint.restore_ema(place, shapes)
    microbatch = build.build_evaluation_options(config).microbatch
    segment = in_microbatches(make_segment(model), params, microbatch)
    return Trained(checkpoint.params_digest(params), segment)


@dataclasses.dataclass(frozen=True)
class Patient:
    """A subject with a segmentation: its S slices that have brain on the grid.

    `images` [S, H, W, M] are the real ones, 0 where the subject was never so scanned
    (`present` [M] tells) and off the `brain` [S, H, W]; `labels` [S, H, W] as
    `data.labels` has them.
    """

    name: str
    group: str
    modalities: tuple[str, ...]
    present: Array
    z: Array
    images: Images
    brain: Array
    labels: Array

    def asked(self) -> list[int]:
        """The places of the modalities that can be left out: something stays seen."""
        there = np.flatnonzero(self.present)
        return there.tolist() if len(there) > 1 else []

    def at(self, z: Array) -> "Patient":
        """The same, of those of its slices that are among `z`."""
        rows = np.isin(self.z, z)
        return dataclasses.replace(
            self,
            z=self.z[rows],
            images=self.images[rows],
            brain=self.brain[rows],
            labels=self.labels[rows],
        )

    def given(self, channel: int, answer: Images) -> Images:
        """The real images [S, H, W, M], with `answer`'s in the place of one modality,
        0 off the brain."""
        images = self.images.copy()
        images[..., channel] = answer[..., channel] * self.brain
        return images

    def references(self) -> dict[str, Fill]:
        """What every method is compared with: nothing, and the truth."""
        return {
            "zeros": lambda channel: np.zeros_like(self.images),
            "truth": lambda channel: self.images,
        }


def patient_of(
    subject: Subject, prepared: PreparedSubject, modalities: Sequence[str]
) -> Patient | None:
    """The subject as the segmentation network sees it; None without a segmentation.

    Raises:
        InputError: its segmentation does not fit its scans.
    """
    labels = read_labels(subject, prepared)
    if labels is None:
        return None
    every = np.arange(len(prepared.brain))
    brain = network_brain(prepared, every)
    z = every[brain.any(axis=(1, 2))]
    if not len(z):
        raise InputError(f"subject {subject.name} has no brain on config.data.grid")
    return Patient(
        subject.name,
        subject.group,
        tuple(modalities),
        np.array([name in prepared.scales for name in modalities]),
        z,
        network_slices(prepared, modalities, z),
        brain[z],
        network_labels(prepared, labels, z),
    )


def examine(
    segment: Callable[[Images], Array], patient: Patient, method: str, fill: Fill
) -> list[dict]:
    """The records of one method's answers to one patient, over all its slices.

    One for each modality that the method fills and each of REGIONS, plain values:
    subject, group, method, modality (the one replaced), and those of `overlaps`.
    """
    facts = {"subject": patient.name, "group": patient.group, "method": method}
    records = []
    for channel in patient.asked():
        answer = fill(channel)
        if answer is None or not np.isfinite(answer[..., channel]).all():
            continue
        found = regions(segment(patient.given(channel, answer)))
        about = facts | {"modality": patient.modalities[channel]}
        records += [about | one for one in overlaps(found, patient.labels)]
    return records


def overlaps(found: Array, labels: Array) -> list[dict]:
    """How `found`, probabilities [S, H, W, 3] of REGIONS, agree with `labels`.

    For each region its Dice, 2 |A and B| / (|A| + |B|), None where the labels have
    nothing of it, and how many `voxels` they have and were `predicted`: those of a
    probability above a half.
    """
    records = []
    for place, name in enumerate(REGIONS):
        true, predicted = region(labels, name), found[..., place] > 0.5
        voxels, here = int(true.sum()), int(predicted.sum())
        dice = 2 * int((true & predicted).sum()) / (voxels + here) if voxels else None
        counts = {"voxels": voxels, "predicted": here}
        records.append({"region": name, "dice": dice} | counts)
    return records


def keep(
    path: pathlib.Path, key: list, subject: Subject, ask: Callable[[], list[dict]]
) -> list[dict]:
    """The subject's records: those at `path` if they answer the same, else what `ask`
    gives, which is then kept there.

    `key` has what they depend on beside the subject's files: the digest of the
    segmentation network, the method and its digest.
    """
    seg = subject.segmentation
    key = [*key, None if seg is None else seg.stat().st_mtime_ns]
    return kept(path, key, subject, lambda: Marks([], ask(), {}, {})).records


def summary(records: Sequence[dict]) -> list[dict]:
    """Means over subjects, a row a method, replaced modality and region.

    Subjects that have nothing of the region are `skipped` and have no Dice; how many
    voxels were predicted there, in the mean of them, are `false_voxels`. What cannot be
    told of so few subjects is None.
    """
    names = ("method", "modality", "region")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return [dict(zip(names, group, strict=True)) | _moments(own) for group, own in groups.items()]


def _moments(records: list[dict]) -> dict:
    values = [one["dice"] for one in records if one["dice"] is not None]
    false = [one["predicted"] for one in records if one["dice"] is None]
    dice = json_without_nan(mean_and_sd(values))
    return {
        "dice": dice["mean"],
        "sd": dice["sd"],
        "subjects": dice["subjects"],
        "skipped": len(false),
        "false_voxels": float(np.mean(false)) if false else None,
    }
