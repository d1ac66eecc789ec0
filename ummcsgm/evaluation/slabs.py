"""Whether neighbouring slices of a draw go together as the truth's do, in numbers.

A slab is some neighbouring slices in the middle of a brain. Its residuals are
(image - mean) / sd, about the network's own mean, the truth's and the draws' alike, and
so is their correlation between neighbours along z, the lag-1. Nothing here is seen by a
metric of one slice: the law of each slice is the same at any rho.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.nifti import spacing
from ummcsgm.data.subjects import PreparedSubject, prepare_subject
from ummcsgm.evaluation import ensemble
from ummcsgm.evaluation.exam import Exam
from ummcsgm.evaluation.marks import Marks
from ummcsgm.evaluation.metrics import WANG_RADIUS
from ummcsgm.evaluation.protocols import TABLE1
from ummcsgm.evaluation.sitting import asked_of
from ummcsgm.evaluation.through_plane import (
    coronal_ssim,
    fit_rho,
    gradient_scores,
    lag_one,
    neighbour_sums,
)
from ummcsgm.types import Array

DRAWS = 4  # of each slab
FLOOR = 0.1  # of a modality's root mean square sd: a voxel's is not below it
CLOSE = 0.05  # of the truth's lag-1: draws that come so near need no other rho
HIGHEST = 0.99  # at 1 all slices of a draw would have one noise
EVERY = "all"  # modalities together


def slab_of(brain: Array, count: int) -> Array:
    """The z of the `count` slices in the middle of a `brain` [Z, Y, X], ascending; of
    all from its first to its last slice if these are no more."""
    first, *_, last = np.flatnonzero(brain.any(axis=(1, 2))).repeat(2)
    count = min(count, last - first + 1)
    start = (first + last + 1 - count) // 2
    return np.arange(start, start + count)


def examine_slab(exam: Exam, subject: Subject, answers: dict[float, Callable]) -> Marks:
    """The records of `measure` of one subject's slab, every modality asked for alone.

    `answers` are those of `ensembles.SAMPLER` by the rho of their noise. The pictures
    are `view`'s. Both are empty where no two neighbouring slices have brain.
    """
    prepared = prepare_subject(subject, exam.modalities, exam.space.view)
    present = np.array([name in prepared.scales for name in exam.modalities])
    asked = asked_of(np.eye(len(present), dtype=bool), present)
    z = slab_of(prepared.brain, exam.scoring.slab_slices)
    slices = ensemble.slices_of(subject.name, prepared, exam.modalities, z)
    records, tiles = [], {}
    if not (slices.brain[1:] & slices.brain[:-1]).any():
        return Marks([], records, {}, tiles)
    facts = {"subject": subject.name, "group": subject.group, "slices": len(z)}
    facts |= {"draws": DRAWS, "flatness": _flatness(prepared)}
    for missing, scored in zip(asked.missing, asked.scored, strict=True):
        told = exam.mean(slices.images, np.tile(missing, (len(z), 1)))
        draws = {
            rho: ensemble.draw(answer, slices, missing, told, DRAWS)
            for rho, answer in answers.items()
        }
        channel = int(np.argmax(scored))
        own = facts | {"modality": exam.modalities[channel]}
        records += [own | one for one in measure(slices, channel, told.mean, draws)]
        tiles[channel] = view(slices, channel, told.mean, draws)
    return Marks([], records, {}, ensemble.stacked(tiles, len(exam.modalities)))


def measure(
    slices: ensemble.Slices, channel: int, mean: Array, draws: dict[float, Array]
) -> list[dict]:
    """A record each of the truth, the `mean` [S, H, W, M] and the draws [K, S, H, W, M]
    of each rho, in grey levels within the brain; none if the draws are all alike, or
    the mean is the truth.

    `sums` are `neighbour_sums` of the residuals, `variance` the draws' own, the others
    as in `through_plane`; what several draws have is their mean. `coronal_ssim` is None
    if the slab is smaller than its window, and what an image does not have is None.
    """
    brain, grey = slices.brain, slices.grey[channel]
    truth, centre = (grey * images[..., channel] for images in (slices.images, mean))
    drawn = {rho: grey * images[..., channel] for rho, images in draws.items()}
    sd = spread(next(iter(drawn.values())), brain)
    if not sd[brain].any() or not (truth - centre)[brain].any():
        return []
    images = {("truth", None): truth[None], ("mean", None): centre[None]}
    images |= {("draw", rho): own for rho, own in drawn.items()}
    records = []
    for (kind, rho), volumes in images.items():
        told = {"image": kind, "rho": rho, "sums": None, "variance": None}
        if kind != "mean":
            residuals = [np.where(brain, (v - centre) / sd, 0) for v in volumes]
            sums = [neighbour_sums(own, brain) for own in residuals]
            told["sums"] = np.mean(sums, axis=0).tolist()
        if kind == "draw":
            told["variance"] = float(np.var(volumes, axis=0, ddof=1)[brain].mean())
        scores = [gradient_scores(truth, v, brain) for v in volumes]
        for name in ("gradient", "gradient_error"):
            told[name] = float(np.mean([own[name] for own in scores]))
        records.append(told | {"coronal_ssim": _ssim(truth, volumes, brain)})
    return records


def spread(draws: Array, brain: Array) -> Array:
    """[S, H, W] sd of each voxel of draws [K, S, H, W], to divide residuals by; all 0
    if the draws are all alike.

    A few draws alone tell a voxel's sd badly, and 1 / sd even worse: each residual
    would have a random scale of its own, which hides how neighbours go together. So
    the variance is the mean over the brain's voxels in a cube of 3 around it, and no
    sd is below a tenth of the root mean square of all.
    """
    variance = np.var(draws, axis=0, ddof=1, dtype=np.float64) * brain
    near = uniform_filter(variance, 3, mode="constant")
    share = uniform_filter(brain.astype(np.float64), 3, mode="constant")
    pooled = np.sqrt(np.maximum(near, 0) / np.maximum(share, 1 / 27))
    return np.maximum(pooled, FLOOR * np.sqrt(np.mean(variance[brain])))


def _ssim(truth: Array, volumes: Array, brain: Array) -> float | None:
    if min(truth.shape[0], truth.shape[2]) <= 2 * WANG_RADIUS:
        return None
    values = [coronal_ssim(truth, own, brain, TABLE1.peak) for own in volumes]
    return float(np.mean(values))


def view(
    slices: ensemble.Slices, channel: int, mean: Array, draws: dict[float, Array]
) -> dict[str, Array]:
    """The coronal plane [S, W] with most brain, in grey levels: truth, mean, and as
    `draws` [n, S, W] the first draw of each rho."""
    at = int(np.argmax(slices.brain.sum(axis=(0, 2))))
    scale = slices.brain[:, at] * slices.grey[channel]
    first = [images[0] for images in draws.values()]
    return {
        "truth": scale * slices.images[:, at, :, channel],
        "mean": scale * mean[:, at, :, channel],
        "draws": np.stack([scale * own[:, at, :, channel] for own in first]),
    }


def _flatness(prepared: PreparedSubject) -> float:
    """How many pixels along x a slice is apart from its neighbour."""
    z, _, x = spacing(prepared.case.geometry)
    return float(z / (x * prepared.window.step[1]))


def fit(measured: Callable[[float], list[dict]]) -> dict:
    """What is told of the rho at which draws are as coherent as the truth: `rho`, the
    truth's `lag_one`, and `draws`, pairs of a rho and the lag-1 of draws with it.

    measured(rho) gives the records of validation slabs. A sampler passes on a little
    less of rho than it is given, and its draws share what of their mean is not the
    network's: where draws at `fit_rho` miss the truth's lag-1 by more than CLOSE, rho
    moves once, on the line through these and the draws at 0. Empty without records.
    """
    records = measured(0.0)
    if not records:
        return {}
    wanted, rho = _lag(records, "truth"), fit_rho(_sums(records, "truth"))
    rho, tried = round(min(rho, HIGHEST), 3), [(0.0, _lag(records, "draw"))]
    if rho > 0:
        tried.append((rho, _lag(measured(rho), "draw")))
        rho = _moved(wanted, *tried)
    return {"rho": rho, "lag_one": wanted, "draws": tried}


def _moved(wanted: float, still: tuple[float, float], first: tuple[float, float]) -> float:
    rho, gained = first[0], first[1] - still[1]
    if abs(first[1] - wanted) <= CLOSE or gained <= 0:
        return rho
    return round(float(np.clip(rho * (wanted - still[1]) / gained, 0, HIGHEST)), 3)


def _sums(records: list[dict], image: str) -> Array:
    return np.array([one["sums"] for one in records if one["image"] == image])


def _lag(records: list[dict], image: str) -> float:
    return lag_one(_sums(records, image))


def summaries(records: list[dict]) -> list[dict]:
    """A row each modality, and EVERY, and image of its slabs: the lag-1 pooled over
    subjects, the sd of draws over that at the first rho, and means of the scores."""
    if not records:
        return []
    modalities = [*dict.fromkeys(one["modality"] for one in records), EVERY]
    rows = []
    for modality in modalities:
        own = [one for one in records if modality in (EVERY, one["modality"])]
        groups: dict[tuple, list[dict]] = {}
        for one in own:
            groups.setdefault((one["image"], one["rho"]), []).append(one)
        base = next(v for (image, _), v in groups.items() if image == "draw")
        for (image, rho), those in groups.items():
            row = {"modality": modality, "image": image, "rho": rho}
            row["subjects"] = len({one["subject"] for one in those})
            row["lag_one"] = None if image == "mean" else _lag(those, image)
            row["sd_ratio"] = _sd_ratio(those, base) if image == "draw" else None
            for name in ("gradient", "gradient_error", "coronal_ssim"):
                values = [one[name] for one in those]
                row[name] = None if None in values else float(np.mean(values))
            rows.append(row)
    return rows


def _sd_ratio(records: list[dict], base: list[dict]) -> float:
    pairs = zip(records, base, strict=True)
    ratios = [one["variance"] / other["variance"] for one, other in pairs]
    return float(np.sqrt(np.mean(ratios)))
