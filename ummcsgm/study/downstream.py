"""How useful a synthetic modality is to a segmentation network of real ones.

The network of `models.segmenter`, trained on real images, is given a test subject's real
modalities, one of them replaced: by a method's prediction, by zeros, or by the truth
again. Of the mm-CSN also the draws are segmented: their mean is the probability of a
tumour, which the segmentation of the mean image does not know.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.config.build_methods import SEGMENTER, method_folder
from ummcsgm.data.crop import uncrop
from ummcsgm.data.labels import REGIONS, region
from ummcsgm.data.nifti import read_volume
from ummcsgm.data.subjects import (
    PreparedSubject,
    network_brain,
    network_labels,
    read_labels,
    view_window,
)
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.evaluate import EvaluationSpec, Part, SubjectResult
from ummcsgm.evaluation.methods import TrainedMethod
from ummcsgm.evaluation.metrics import group_rows, mean_and_sd
from ummcsgm.evaluation.protocols import TABLE1, profile_hash
from ummcsgm.evaluation.subject import EvaluatedSubject, SubjectSlices, choose_evenly
from ummcsgm.inference.outputs import write_output
from ummcsgm.inference.predictor import in_microbatches, slice_addresses
from ummcsgm.training import checkpoint
from ummcsgm.training.segmenter_step import CLASSES, make_segment, regions
from ummcsgm.types import Array, Config, Images, InputError, Missing
from ummcsgm.utils.atomic_io import json_without_nan

BINS = 10  # of equal width, of probability
MAPS = "segmentation of draws"  # the part
REFERENCES = ("zeros", "truth")  # in place of a prediction
NOTE = (
    "A segmentation network that was trained on real images of all modalities, with "
    "one of them replaced; in all slices with brain, on the network's grid. Dice is "
    "that of subjects who have the region."
)


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """segmenter(images [R, H, W, M]): the probabilities [R, H, W, 4] of CLASSES, R >= 0.

    `digest` is that of the parameters.
    """

    digest: str
    _segment: Callable

    def __call__(self, images: Images) -> Array:
        if not len(images):
            return np.zeros((0, *images.shape[1:3], len(CLASSES)), np.float32)
        return self._segment(images)


def load_segmenter(workdir: pathlib.Path, config: Config) -> Segmenter:
    """The segmentation network that was trained in `workdir`, its averaged parameters.

    Raises:
        InputError: there is none.
    """
    folder = method_folder(workdir, SEGMENTER)
    saved = build.config_from_json(checkpoint.restore_metadata(folder)["config"])
    model, space = build.build_segmenter(saved), build.build_space(saved)
    images = jnp.zeros((1, *space.grid, len(space.modalities)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    params = checkpoint.restore_ema(folder, shapes)
    microbatch = build.build_evaluation_options(config).microbatch
    segment = in_microbatches(make_segment(model), params, microbatch)
    return Segmenter(checkpoint.params_digest(params), segment)


class SegmentedSubject(NamedTuple):
    """A subject with a segmentation: the S of its slices that have brain on the grid.

    `present` [M] is False for what was never scanned; `labels` [S, H, W] are those of
    `data.labels`.
    """

    columns: dict[str, str]  # of its records: subject, group
    modalities: tuple[str, ...]
    present: Array
    slices: SubjectSlices
    labels: Array

    @property
    def images(self) -> Images:
        """[S, H, W, M] the real images, 0 where there are none and off the brain."""
        return self.slices.images[..., : len(self.modalities)]

    def replaceable(self) -> list[int]:
        """The channels that can be replaced: something else stays seen."""
        channels = np.flatnonzero(self.present)
        return channels.tolist() if len(channels) > 1 else []

    def missing(self, channel: int) -> Missing:
        """[S, M] what is missing in each slice if one modality is left out."""
        missing = ~self.present
        missing[channel] = True
        return np.tile(missing, (len(self.labels), 1))

    def replaced(self, channel: int, images: Images) -> Images:
        """The real images [S, H, W, M], with one modality of `images`, 0 off the brain."""
        replaced = self.images.copy()
        replaced[..., channel] = images[..., channel] * self.slices.brain
        return replaced


def segmented_subject(
    evaluated: EvaluatedSubject, z: Array | None = None
) -> SegmentedSubject | None:
    """The subject as the segmentation network sees it, of all its slices with brain or
    those that are among `z`; None without a segmentation.

    Raises:
        InputError: its segmentation does not fit its scans.
    """
    subject, prepared = evaluated.subject, evaluated.prepared
    labels = read_labels(subject, prepared)
    if labels is None:
        return None
    every = np.arange(len(prepared.brain))
    with_brain = every[evaluated.brain(every).any(axis=(1, 2))]
    if not len(with_brain):
        raise InputError(f"subject {subject.name} has no brain on config.data.grid")
    z = with_brain if z is None else np.intersect1d(with_brain, z)
    return SegmentedSubject(
        evaluated.labels,
        evaluated.modalities,
        np.array([name in prepared.scales for name in evaluated.modalities]),
        evaluated.slices(z),
        network_labels(prepared, labels, z),
    )


# Segmentations of predictions.


def segment_replaced(
    segment: Callable[[Images], Array],
    subject: SegmentedSubject,
    method: str,
    predict: Callable[[int], Images],
) -> list[dict]:
    """A record for each replaced modality and each of REGIONS, over all slices.

    predict(channel) gives [S, H, W, M], of which that channel is read; where it is not
    finite the method has no prediction, and no record. A record has subject, group,
    method, modality (the one replaced) and the numbers of `overlaps`.
    """
    columns = subject.columns | {"method": method}
    records = []
    for channel in subject.replaceable():
        images = predict(channel)
        if np.isfinite(images[..., channel]).all():
            found = regions(segment(subject.replaced(channel, images)))
            names = columns | {"modality": subject.modalities[channel]}
            records += [names | numbers for numbers in overlaps(found, subject.labels)]
    return records


def overlaps(found: Array, labels: Array) -> list[dict]:
    """How `found`, probabilities [S, H, W, 3] of REGIONS, agree with `labels`.

    For each region its Dice, 2 |A and B| / (|A| + |B|), None where the labels have nothing of it,
    and its number of `voxels` in the labels and `predicted`: those of a probability above a half.
    """
    records = []
    for index, name in enumerate(REGIONS):
        true, predicted = region(labels, name), found[..., index] > 0.5
        voxels, count = int(true.sum()), int(predicted.sum())
        dice = 2 * int((true & predicted).sum()) / (voxels + count) if voxels else None
        records.append({"region": name, "dice": dice, "voxels": voxels, "predicted": count})
    return records


def dice_summary(records: Sequence[dict]) -> list[dict]:
    """Means over subjects, a row for each method, replaced modality and region.

    Subjects that have nothing of the region are `skipped` and have no Dice; the mean number of
    voxels that were predicted in them is `false_voxels`. None where there are too few subjects.
    """
    rows = []
    names = ("method", "modality", "region")
    for key, group in group_rows(records, names).items():
        dice = mean_and_sd([record["dice"] for record in group])
        false = [record["predicted"] for record in group if record["dice"] is None]
        row = dict(zip(names, key, strict=True)) | {
            "dice": dice["mean"],
            "sd": dice["sd"],
            "subjects": dice["subjects"],
        }
        row |= {"skipped": len(false), "false_voxels": mean_and_sd(false)["mean"]}
        rows.append(json_without_nan(row))
    return rows


# Probability maps of draws.


def probability_map(segment: Callable[[Images], Array], draws: Iterable[Images]) -> Array:
    """[S, H, W, 3]: the probability of each of REGIONS, over draws [K, S, H, W, M].

    The mean over draws of the probability that `segment` gives; one draw is in memory at a time.
    """
    total, count = 0.0, 0
    for images in draws:
        total, count = total + regions(segment(images)), count + 1
    return total / count


def compare_maps(
    segment: Callable[[Images], Array],
    subject: SegmentedSubject,
    channel: int,
    draws: Iterable[Images],
    mean: Images,
) -> tuple[list[dict], Array]:
    """(records, the map of the draws), of one modality left out of a subject's slices.

    `draws` [K, S, H, W, M] and `mean`, the network's, are of the subject's slices; only
    the given channel is read. A record has subject, group, modality, `map` ("draws", or the
    segmentation of "one draw", the first, of "mean" or of "truth") and the numbers of `score_map`.
    """
    draws = iter(draws)
    first = next(draws)
    sources = {"draws": itertools.chain([first], draws), "one draw": [first]}
    sources |= {"mean": [mean], "truth": [subject.images]}
    columns = subject.columns | {"modality": subject.modalities[channel]}
    records, maps = [], {}
    for name, volumes in sources.items():
        maps[name] = probability_map(segment, (subject.replaced(channel, v) for v in volumes))
        scores = score_map(maps[name], subject.labels, subject.slices.brain)
        records += [columns | {"map": name} | numbers for numbers in scores]
    return records, maps["draws"]


def score_map(maps: Array, labels: Array, brain: Array) -> list[dict]:
    """A record for each region of `maps` [S, H, W, 3].

    The numbers of `overlaps`, the Brier score (the mean squared error of the probability, over the
    brain), and the counts of a reliability table: of each of BINS of probability the brain's voxels
    in it, the sum of their probabilities (`said`), and how many of them are of the region (`true`).
    """
    records = overlaps(maps, labels)
    for index, record in enumerate(records):
        said = maps[..., index][brain].astype(np.float64)
        true = region(labels, record["region"])[brain]
        bins = np.minimum((said * BINS).astype(int), BINS - 1)
        sums = (np.bincount(bins, w, BINS).tolist() for w in (None, said, true))
        record["brier"] = float(np.mean((said - true) ** 2))
        record["bins"] = dict(zip(("voxels", "said", "true"), sums, strict=True))
    return records


def map_summary(records: Sequence[dict]) -> list[dict]:
    """A row for each kind of map, modality and region: means over subjects of Dice and
    Brier score, and the reliability of all their voxels together.

    `calibration` is the expected calibration error: over the bins of `table` the mean
    distance between probability and frequency, weighted by voxels. Subjects without the
    region are `skipped` in the Dice alone.
    """
    names = ("map", "modality", "region")
    return [
        dict(zip(names, key, strict=True)) | _reliability(group)
        for key, group in group_rows(records, names).items()
    ]


def _reliability(records: list[dict]) -> dict:
    dices = [record["dice"] for record in records if record["dice"] is not None]
    voxels, said, true = (
        np.sum([record["bins"][name] for record in records], axis=0)
        for name in ("voxels", "said", "true")
    )
    table = [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "voxels": int(voxels[index]),
            "probability": float(said[index] / voxels[index]),
            "frequency": float(true[index] / voxels[index]),
        }
        for index in np.flatnonzero(voxels).tolist()
    ]
    return {
        "dice": float(np.mean(dices)) if dices else None,
        "brier": float(np.mean([record["brier"] for record in records])),
        "calibration": float(np.abs(said - true).sum() / voxels.sum()),
        "subjects": len(records),
        "skipped": len(records) - len(dices),
        "table": table,
    }


def write_maps(
    folder: pathlib.Path,
    name: str,
    prepared: PreparedSubject,
    z: Array,
    maps: Array,
    metadata: dict,
) -> list[pathlib.Path]:
    """Writes a NIfTI file for each region of the `maps` [S, H, W, 3] of the subject of this
    `name` on the scanner's grid, and a JSON file beside each; returns the volumes' paths.

    They are 0 off the brain, and in other slices than `z` [S]. `metadata` has the
    `missing` modality, which is in the names, the number of draws, their sampler, and
    digests of the networks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, region_name in enumerate(REGIONS):
        stem = f"{name}_without-{metadata['missing']}_{region_name}-probability"
        facts = {
            "subject": name,
            "what": "the probability of a tumour region, of BraTS, over draws of the "
            "missing modality",
            "region": region_name,
            "slices": z.tolist(),
        }
        volume = np.zeros(prepared.brain.shape, np.float32)
        volume[z] = uncrop(prepared.window, maps[..., index] * network_brain(prepared, z))
        volume = np.where(prepared.brain, volume.clip(0, 1), 0)
        paths.append(folder / f"{stem}.nii.gz")
        write_output(paths[-1], volume, prepared.geometry, facts | metadata)
    return paths


# Parts of an evaluation.


def segmentation_parts(
    workdir: pathlib.Path,
    spec: EvaluationSpec,
    segmenter: Segmenter,
    methods: Sequence[TrainedMethod],
) -> dict[str, Part]:
    """The parts "segmentation of NAME" of the methods and REFERENCES, whose records are
    those of `segment_replaced`; and MAPS, of the first method, which draws.

    Of the subjects that have a segmentation; MAPS of as many of them, slices and draws as
    its draws are measured with, and of the first one in all slices.
    """
    folder = method_folder(workdir, SEGMENTER) / "parts"
    known = [s for s in spec.subjects if s.segmentation is not None]
    times = {s.name: s.segmentation.stat().st_mtime_ns for s in known}
    view = [spec.space.modalities, dataclasses.asdict(spec.space.view), profile_hash(TABLE1)]
    parts = {}
    for name, method in ({m.name: m for m in methods} | dict.fromkeys(REFERENCES)).items():
        key = [segmenter.digest, name, method.digest if method else "", *view]
        compute = functools.partial(_segment_method, segmenter, name, method)
        keys = {subject: [*key, time] for subject, time in times.items()}
        parts[segmentation_name(name)] = Part(folder / name, keys, compute)
    key = [segmenter.digest, methods[0].digest, dataclasses.asdict(spec.options), *view]
    names = [*times][: spec.options.draw_subjects or None]
    keys = {name: [*key, name == names[0], times[name]] for name in names}
    compute = functools.partial(_map_draws, segmenter, spec.options, methods[0], names[:1])
    parts[MAPS] = Part(folder / "draws", keys, compute)
    return parts


def segmentation_name(method: str) -> str:
    """The name of the part of a method's segmentations."""
    return f"segmentation of {method}"


_segmented = functools.lru_cache(maxsize=1)(segmented_subject)  # for all parts of a subject


def _segment_method(
    segmenter: Segmenter, name: str, method: TrainedMethod | None, evaluated: EvaluatedSubject
) -> SubjectResult:
    subject = _segmented(evaluated)

    def predict(channel: int) -> Images:
        if method is None:
            return {"zeros": np.zeros_like(subject.images), "truth": subject.images}[name]
        return method.predict(subject.slices.images, subject.missing(channel)).mean

    return SubjectResult(records=segment_replaced(segmenter, subject, name, predict))


def _map_draws(
    segmenter: Segmenter,
    options: EvaluationOptions,
    method: TrainedMethod,
    whole: Sequence[str],
    evaluated: EvaluatedSubject,
) -> SubjectResult:
    """The records of some slices; of a subject that is among `whole`, maps of all, and
    `grid`: their `z` and the `brain` on the scanner's grid, for `write_first_maps`."""

    def compare(subject: SegmentedSubject) -> tuple[list[dict], dict[str, Array]]:
        """(records, maps by the modality that is replaced)."""
        slices, sample = subject.slices, method.make_sampler(SAMPLER)
        addresses = [slice_addresses(slices.name, slices.z, draw=k) for k in range(options.draws)]
        records, maps = [], {}
        for channel in subject.replaceable():
            missing = subject.missing(channel)
            estimate = method.predict(slices.images, missing)
            draws = sample(slices.images, missing, np.stack(addresses), estimate)
            more, probability = compare_maps(segmenter, subject, channel, draws, estimate.mean)
            records += more
            maps[subject.modalities[channel]] = probability.astype(np.float16)
        return records, maps

    z = choose_evenly(evaluated.z, options.draw_slices)
    records, _ = compare(segmented_subject(evaluated, z))
    if evaluated.subject.name not in whole:
        return SubjectResult(records=records)
    subject = _segmented(evaluated)
    grid = {"z": subject.slices.z, "brain": evaluated.prepared.brain}
    return SubjectResult(records=records, arrays={"maps": compare(subject)[1], "grid": grid})


def downstream_results(results: dict[str, dict[str, SubjectResult]], names: Sequence[str]) -> dict:
    """The study's `downstream`: rows of `dice_summary` of the methods of these names and
    REFERENCES, a note, the `records` they are means of, and the `maps` of `map_summary`."""
    records = [
        record
        for name in (*names, *REFERENCES)
        for result in results[segmentation_name(name)].values()
        for record in result.records
    ]
    maps = [record for result in results[MAPS].values() for record in result.records]
    rows = {"rows": dice_summary(records), "note": NOTE}
    return rows | {"records": records, "maps": map_summary(maps)}


def write_first_maps(
    folder: pathlib.Path,
    spec: EvaluationSpec,
    segmenter: Segmenter,
    method: TrainedMethod,
    results: dict[str, SubjectResult],
) -> None:
    """Writes the maps of the subject that has them among the `results` of MAPS.

    Of its scans the first is read, for the header that the files take over.
    """
    metadata = {
        "sampler": SAMPLER,
        "draws": spec.options.draws,
        "seed": spec.options.seed,
        "parameters_sha256": method.digest,
        "segmenter_sha256": segmenter.digest,
    }
    for subject in spec.subjects:
        if subject.name in results and "maps" in results[subject.name].arrays:
            arrays, view = results[subject.name].arrays, spec.space.view
            first = next(m for m in spec.space.modalities if m in subject.files)
            _, geometry = read_volume(subject.files[first], subject.volume_indices.get(first))
            brain = arrays["grid"]["brain"]
            window = view_window(brain, geometry, view)
            prepared = PreparedSubject({}, geometry, brain, window, {}, view.neighbours)
            for missing, maps in arrays["maps"].items():
                facts = {"missing": missing} | metadata
                write_maps(folder, subject.name, prepared, arrays["grid"]["z"], maps, facts)
