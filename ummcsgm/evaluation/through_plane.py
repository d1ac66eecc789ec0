"""Whether neighbouring slices of a draw agree along z as those of the truth do.

A slab is some neighbouring slices in the middle of a brain. Its residuals are
(image - mean) / sd, about the network's mean; their lag-1 is the correlation of
neighbours along z. No metric of single slices sees it: the law of each slice is the same
at any rho of the noise. Volumes are [Z, Y, X], their slices neighbours in ascending z.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import uniform_filter

from ummcsgm.data.nifti import spacing
from ummcsgm.data.subjects import PreparedSubject
from ummcsgm.evaluation import ensemble
from ummcsgm.evaluation.methods import TrainedMethod
from ummcsgm.evaluation.metrics import WANG_RADIUS, group_rows, ssim_wang
from ummcsgm.evaluation.protocols import TABLE1
from ummcsgm.evaluation.subject import EvaluatedSubject, SubjectSlices, possible_patterns
from ummcsgm.types import Array, InputError

DRAWS = 4  # of each slab
SD_FLOOR = 0.1  # of a modality's root mean square sd: a voxel's is not below it
CLOSE = 0.05  # to the truth's lag-1: draws that come so near need no other rho
MAX_RHO = 0.99  # at 1 all slices of a draw would have one noise
ALL = "all"  # modalities together


def measure_slab(
    evaluated: EvaluatedSubject, method: TrainedMethod, rhos: Sequence[float], count: int
) -> tuple[list[dict], dict[str, Array]]:
    """(records of `compare_slab`, pictures of `slab_picture` [M, ...]) of a subject's slab
    of `count` slices, with each modality alone missing, for draws with each of `rhos`.

    Both are empty where no two neighbouring slices have brain.
    """
    modalities = evaluated.modalities
    present = np.array([name in evaluated.prepared.scales for name in modalities])
    patterns = possible_patterns(np.eye(len(present), dtype=bool), present)
    slices = evaluated.slices(middle_slab(evaluated.prepared.brain, count))
    records, pictures = [], {}
    if not (slices.brain[1:] & slices.brain[:-1]).any():
        return records, pictures
    labels = evaluated.labels | {"slices": len(slices.z), "draws": DRAWS}
    labels["flatness"] = _flatness(evaluated.prepared)
    for missing, scored in zip(*patterns, strict=True):
        estimate = method.predict(slices.images, np.tile(missing, (len(slices.z), 1)))
        draws = {}
        for rho in rhos:
            sample = method.make_sampler(ensemble.SAMPLER, rho)
            draws[rho] = ensemble.draw(sample, slices, missing, estimate, DRAWS)
        channel = int(np.argmax(scored))
        names = labels | {"modality": modalities[channel]}
        numbers = compare_slab(slices, channel, estimate.mean, draws)
        records += [names | record for record in numbers]
        pictures[channel] = slab_picture(slices, channel, estimate.mean, draws)
    return records, ensemble.stack_pictures(pictures, len(modalities))


def middle_slab(brain: Array, count: int) -> Array:
    """The z of the `count` slices in the middle of a `brain` [Z, Y, X], ascending; of
    all from its first to its last slice if these are no more."""
    first, *_, last = np.flatnonzero(brain.any(axis=(1, 2))).repeat(2)
    count = min(count, last - first + 1)
    start = (first + last + 1 - count) // 2
    return np.arange(start, start + count)


def compare_slab(
    slices: SubjectSlices, channel: int, mean: Array, draws: dict[float, Array]
) -> list[dict]:
    """A record for each of the truth, the `mean` [S, H, W, M] and the draws [K, S, H, W, M] of each
    rho, in grey levels within the brain; none if the draws are all alike, or the mean is the truth.

    `sums` are `neighbour_sums` of the residuals, `variance` that of the draws; numbers of
    several draws are their mean. `coronal_ssim` is None if the slab is smaller than its
    window; what an image does not have is None.
    """
    brain, grey = slices.brain, slices.grey[channel]
    truth, centre = (grey * images[..., channel] for images in (slices.images, mean))
    drawn = {rho: grey * images[..., channel] for rho, images in draws.items()}
    sd = pooled_sd(next(iter(drawn.values())), brain)
    if not sd[brain].any() or not (truth - centre)[brain].any():
        return []
    images = {("truth", None): truth[None], ("mean", None): centre[None]}
    images |= {("draw", rho): volumes for rho, volumes in drawn.items()}
    records = []
    for (kind, rho), volumes in images.items():
        record = {"image": kind, "rho": rho, "sums": None, "variance": None}
        if kind != "mean":
            residuals = [np.where(brain, (v - centre) / sd, 0) for v in volumes]
            sums = [neighbour_sums(residual, brain) for residual in residuals]
            record["sums"] = np.mean(sums, axis=0).tolist()
        if kind == "draw":
            record["variance"] = float(np.var(volumes, axis=0, ddof=1)[brain].mean())
        scores = [gradient_scores(truth, v, brain) for v in volumes]
        for name in ("gradient", "gradient_error"):
            record[name] = float(np.mean([score[name] for score in scores]))
        records.append(record | {"coronal_ssim": _mean_coronal_ssim(truth, volumes, brain)})
    return records


def pooled_sd(draws: Array, brain: Array) -> Array:
    """[S, H, W] sd of each voxel of draws [K, S, H, W], to divide residuals by; all 0 if
    the draws are all alike.

    A few draws estimate a voxel's sd badly, and 1 / sd even worse: each residual would
    have a random scale, which hides the correlation of neighbours. So the variance is
    the mean over the brain's voxels in a cube of 3 around it, and no sd is below
    SD_FLOOR of the root mean square of all.
    """
    variance = np.var(draws, axis=0, ddof=1, dtype=np.float64) * brain
    near = uniform_filter(variance, 3, mode="constant")
    share = uniform_filter(brain.astype(np.float64), 3, mode="constant")
    pooled = np.sqrt(np.maximum(near, 0) / np.maximum(share, 1 / 27))
    return np.maximum(pooled, SD_FLOOR * np.sqrt(np.mean(variance[brain])))


def _mean_coronal_ssim(truth: Array, volumes: Array, brain: Array) -> float | None:
    if min(truth.shape[0], truth.shape[2]) <= 2 * WANG_RADIUS:
        return None
    return float(np.mean([coronal_ssim(truth, v, brain, TABLE1.peak) for v in volumes]))


def slab_picture(
    slices: SubjectSlices, channel: int, mean: Array, draws: dict[float, Array]
) -> dict[str, Array]:
    """The coronal plane [S, W] with most brain, in grey levels: truth, mean, and as
    `draws` [n, S, W] the first draw of each rho."""
    y = int(np.argmax(slices.brain.sum(axis=(0, 2))))
    scale = slices.brain[:, y] * slices.grey[channel]
    first = [images[0] for images in draws.values()]
    return {
        "truth": scale * slices.images[:, y, :, channel],
        "mean": scale * mean[:, y, :, channel],
        "draws": np.stack([scale * image[:, y, :, channel] for image in first]),
    }


def _flatness(prepared: PreparedSubject) -> float:
    """The distance of neighbouring slices, in pixels along x."""
    z, _, x = spacing(prepared.geometry)
    return float(z / (x * prepared.window.step[1]))


def fit(records: list[dict], measure: Callable[[float], list[dict]]) -> dict:
    """`rho` at which draws are as coherent as the truth, the truth's `lag_one`, and
    `draws`, pairs of a rho and the lag-1 of draws with it.

    `records` are those of validation slabs with rho 0, measure(rho) makes others. A sampler passes
    on a little less of rho than it is given, and its draws share what of their mean is not the
    network's: where draws at `fit_rho` miss the truth's lag-1 by more than CLOSE, rho moves once,
    on the line through these and the draws at 0. Empty without records.
    """
    if not records:
        return {}
    wanted, rho = _lag(records, "truth"), fit_rho(_sums(records, "truth"))
    rho, tried = round(min(rho, MAX_RHO), 3), [(0.0, _lag(records, "draw"))]
    if rho > 0:
        tried.append((rho, _lag(measure(rho), "draw")))
        rho = _moved(wanted, *tried)
    return {"rho": rho, "lag_one": wanted, "draws": tried}


def _moved(wanted: float, at_zero: tuple[float, float], first: tuple[float, float]) -> float:
    rho, gained = first[0], first[1] - at_zero[1]
    if abs(first[1] - wanted) <= CLOSE or gained <= 0:
        return rho
    return round(float(np.clip(rho * (wanted - at_zero[1]) / gained, 0, MAX_RHO)), 3)


def _sums(records: list[dict], image: str) -> Array:
    return np.array([record["sums"] for record in records if record["image"] == image])


def _lag(records: list[dict], image: str) -> float:
    return lag_one(_sums(records, image))


def summaries(records: list[dict]) -> list[dict]:
    """A row for each modality, and ALL, and image of its slabs: the lag-1 pooled over
    subjects, the sd of draws over that at the first rho, and means of the scores."""
    modalities = [*dict.fromkeys(record["modality"] for record in records)]
    rows = []
    for modality in [*modalities, ALL] if records else []:
        chosen = [record for record in records if modality in (ALL, record["modality"])]
        groups = group_rows(chosen, ("image", "rho"))
        base = next(group for (image, _), group in groups.items() if image == "draw")
        for (image, rho), group in groups.items():
            row = {"modality": modality, "image": image, "rho": rho}
            row["subjects"] = len({record["subject"] for record in group})
            row["lag_one"] = None if image == "mean" else _lag(group, image)
            row["sd_ratio"] = _sd_ratio(group, base) if image == "draw" else None
            for name in ("gradient", "gradient_error", "coronal_ssim"):
                values = [record[name] for record in group]
                row[name] = None if None in values else float(np.mean(values))
            rows.append(row)
    return rows


def _sd_ratio(records: list[dict], base: list[dict]) -> float:
    pairs = zip(records, base, strict=True)
    ratios = [record["variance"] / first["variance"] for record, first in pairs]
    return float(np.sqrt(np.mean(ratios)))


def gradient_scores(truth: Array, estimate: Array, brain: Array) -> dict[str, float]:
    """Means of |d/dz| in the truth's units a slice, where both slices have brain.

    `gradient` is the estimate's: that of a draw should equal the truth's, that of a
    posterior mean is smaller. `gradient_error` is the mean of
    |d/dz estimate - d/dz truth|; 0 is best.

    Raises:
        InputError: no two neighbouring slices have brain at the same pixel.
    """
    both = _in_both_slices(brain)
    of_truth = np.diff(np.asarray(truth, np.float64), axis=0)[both]
    of_estimate = np.diff(np.asarray(estimate, np.float64), axis=0)[both]
    return {
        "gradient": float(np.mean(np.abs(of_estimate))),
        "gradient_error": float(np.mean(np.abs(of_estimate - of_truth))),
    }


def coronal_ssim(truth: Array, estimate: Array, brain: Array, peak: float) -> float:
    """`ssim_wang` of the coronal planes, [Z, X] at each y, a fraction.

    The mean over planes, weighted by their number of brain voxels. Outside the brain
    the estimate is set to 0, as in `protocols.TABLE1`, and the truth is not changed.

    Raises:
        InputError: there are fewer slices or columns than the window's 11, or no brain.
    """
    area = np.sum(brain, axis=(0, 2))
    if not area.any():
        raise InputError("no coronal plane to score: the brain is empty.")
    truth = np.swapaxes(truth, 0, 1)
    estimate = np.swapaxes(np.where(brain, estimate, 0), 0, 1)
    similarity = ssim_wang(truth, estimate, peak)
    return float(np.average(similarity, weights=area))


def neighbour_sums(residuals: Array, brain: Array) -> Array:
    """[3] sums over pairs of neighbours along z: r r', r^2 and r'^2, r below r'.

    Of `residuals` [Z, ...] with mean 0 and one scale, such as (truth - mean) / sd or
    (draw - mean) / sd, at pairs that both lie in `brain` [Z, ...]. Add them over
    modalities and subjects; `lag_one` makes them a correlation.

    Raises:
        InputError: no two neighbouring slices have brain at the same pixel.
    """
    both = _in_both_slices(brain)
    residuals = np.asarray(residuals, np.float64)
    low, high = residuals[:-1][both], residuals[1:][both]
    return np.array([low @ high, low @ low, high @ high])


def lag_one(sums: Array) -> float:
    """The correlation of neighbours along z, in [-1, 1], pooled over sums [S, 3].

    Not centred on the voxels' mean: an error that a whole subject shares correlates too.
    """
    cross, low, high = np.sum(np.reshape(sums, (-1, 3)), axis=0)
    return float(cross / np.sqrt(low * high))


def fit_rho(sums: Array) -> float:
    """The rho in [0, 1] at which draws are as coherent along z as the errors are.

    `sums` [S, 3] are `neighbour_sums` of each validation subject's residuals
    (truth - mean) / sd, about the network's mean: about the mean of K draws the answer
    is K / (K + 1) of it where draws are independent along z. A sampler that is linear in
    its noise (a normal posterior) passes rho on as it is, others a little less of it.
    """
    return min(max(lag_one(sums), 0.0), 1.0)


def _in_both_slices(brain: Array) -> Array:
    brain = np.asarray(brain, bool)
    both = brain[:-1] & brain[1:]
    if not both.any():
        raise InputError(
            "no neighbours along z: no two neighbouring slices have brain at the same pixel."
        )
    return both
