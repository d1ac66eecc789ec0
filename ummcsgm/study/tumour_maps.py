"""What the draws of a missing modality say of the tumour: a probability in each voxel.

The segmentation of the mean image knows nothing of what the image might have been. The
mean over draws of their segmentations does: where draws disagree about the tumour, its
probability is between 0 and 1, and is to be as often right as it says.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ummcsgm.data.crop import uncrop
from ummcsgm.data.labels import REGIONS, region
from ummcsgm.data.subjects import PreparedSubject
from ummcsgm.inference.outputs import write_output
from ummcsgm.study.downstream import Patient, overlaps
from ummcsgm.training.segmenter_step import regions
from ummcsgm.types import Array, Images

BINS = 10  # of equal width, of probability


def probability_map(segment: Callable[[Images], Array], draws: Iterable[Images]) -> Array:
    """[S, H, W, 3]: the probability of each of REGIONS, over draws [K, S, H, W, M].

    The mean over draws of the probability that `segment` gives; one draw of them is in
    memory at a time.
    """
    total, count = 0.0, 0
    for images in draws:
        total, count = total + regions(segment(images)), count + 1
    return total / count


def examine_maps(
    segment: Callable[[Images], Array],
    patient: Patient,
    channel: int,
    draws: Iterable[Images],
    mean: Images,
) -> tuple[list[dict], Array]:
    """(records, the map of the draws), of one modality left out of a patient's slices.

    `draws` [K, S, H, W, M] and `mean`, the network's one answer, are of the patient's
    own slices; only the modality at place `channel` is read. A record has subject,
    group, modality, `map` ("draws", or the segmentation of "mean" or "truth") and those
    of `judge`.
    """
    given = {"draws": draws, "mean": [mean], "truth": [patient.images]}
    facts = {"subject": patient.name, "group": patient.group}
    facts["modality"] = patient.modalities[channel]
    records, maps = [], {}
    for name, answers in given.items():
        images = (patient.given(channel, answer) for answer in answers)
        maps[name] = probability_map(segment, images)
        judged = judge(maps[name], patient.labels, patient.brain)
        records += [facts | {"map": name} | one for one in judged]
    return records, maps["draws"]


def judge(maps: Array, labels: Array, brain: Array) -> list[dict]:
    """How right `maps` [S, H, W, 3] are, a record a region.

    Those of `overlaps`, the Brier score (the mean squared error of the probability,
    over the brain), and what a reliability table is made of: of each of BINS of
    probability the brain's voxels in it, the sum of their probabilities, and how many
    of them are of the region.
    """
    records = overlaps(maps, labels)
    for place, record in enumerate(records):
        said = maps[..., place][brain].astype(np.float64)
        true = region(labels, record["region"])[brain]
        bins = np.minimum((said * BINS).astype(int), BINS - 1)
        sums = (np.bincount(bins, w, BINS).tolist() for w in (None, said, true))
        record["brier"] = float(np.mean((said - true) ** 2))
        record["bins"] = dict(zip(("voxels", "said", "true"), sums, strict=True))
    return records


def map_summary(records: Sequence[dict]) -> list[dict]:
    """A row a kind of map, modality and region: means over subjects of Dice and Brier
    score, and the reliability of all their voxels together.

    `calibration` is the expected calibration error: over `table`'s bins the mean
    distance between the probability and the frequency, weighed by voxels. Subjects
    without the region are `skipped` in the Dice alone.
    """
    names = ("map", "modality", "region")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return [dict(zip(names, group, strict=True)) | _pooled(own) for group, own in groups.items()]


def _pooled(records: list[dict]) -> dict:
    dices = [one["dice"] for one in records if one["dice"] is not None]
    voxels, said, true = (
        np.sum([one["bins"][name] for one in records], axis=0)
        for name in ("voxels", "said", "true")
    )
    table = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "voxels": int(voxels[place]),
            "probability": float(said[place] / voxels[place]),
            "frequency": float(true[place] / voxels[place]),
        }
        for place in np.flatnonzero(voxels).tolist()
    ]
    return {
        "dice": float(np.mean(dices)) if dices else None,
        "brier": float(np.mean([one["brier"] for one in records])),
        "calibration": float(np.abs(said - true).sum() / voxels.sum()),
        "subjects": len(records),
        "skipped": len(records) - len(dices),
        "table": table,
    }


def write_maps(
    folder: pathlib.Path, prepared: PreparedSubject, patient: Patient, maps: Array, about: dict
) -> list[pathlib.Path]:
    """In `folder` a NIfTI file a region with `maps` [S, H, W, 3] on the scanner's grid,
    and a JSON file beside each; returns the volumes.

    They are 0 off the brain, and in slices that are not the patient's. `about` says how
    they came about: the `missing` modality, which is in the names, how many draws of
    which sampler, and digests of the networks.
    """
    paths = []
    for place, name in enumerate(REGIONS):
        file = f"{patient.name}_without-{about['missing']}_{name}-probability.nii.gz"
        facts = {
            "subject": patient.name,
            "what": "the probability of a tumour region, of BraTS, over draws of the "
            "missing modality",
            "region": name,
            "slices": patient.z.tolist(),
        }
        volume = _volume(prepared, patient, maps[..., place])
        folder.mkdir(parents=True, exist_ok=True)
        write_output(folder / file, volume, prepared.case.geometry, facts | about)
        paths.append(folder / file)
    return paths


def _volume(prepared: PreparedSubject, patient: Patient, slices: Array) -> Array:
    """[S, H, W] in their places [Z, Y, X], from 0 to 1, 0 off the brain."""
    volume = np.zeros(prepared.brain.shape, np.float32)
    volume[patient.z] = uncrop(prepared.window, slices * patient.brain)
    return np.where(prepared.brain, volume.clip(0, 1), 0)
