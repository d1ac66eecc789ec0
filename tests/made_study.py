"""A workdir as a study leaves it, made in a moment: numbers that are known, a mark on
the brain that tells left from right, and no network."""

import json
import pathlib
import zlib

import numpy as np
from matplotlib.image import imsave

MODALITIES = ("flair", "t1", "t1c", "t2")
METHODS = {
    "mm-csn": "mm-CSN mean, 1 evaluation",
    "mm-csn-draw": "mm-CSN warm draw, 1 + 12 evaluations",
    "mmgan": "MM-GAN <b>& friends",
    "pix2pix": "pix2pix",
    "ridge": "ridge, linear (floor)",
}
LEVELS = {"psnr": 31.0, "ssim_global": 0.97, "ssim_wang": 0.94, "mae": 3.0}
SHAPE = (4, 6, 56, 48)  # modalities, slices, rows, columns
MARK = (slice(42, 45), slice(32, 35))  # anterior, on the patient's right
CONFIG = {
    "seed": 7,
    "train": {"steps": 2000, "batch": 16, "rate": 1e-3},
    "data": {"folder": "subjects", "split": [20, 4, 6]},
    "phantom": {},
}


def write_study(workdir: pathlib.Path, **changes) -> pathlib.Path:
    """A whole study; `changes` replace keys of results.json, or of its facts."""
    results = study_results()
    for key, value in changes.items():
        target = results if key in results else results["facts"]
        target[key] = value
    folder = workdir / "study"
    (folder / "gallery").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    names = [method["name"] for method in results["methods"]]
    for index, name in enumerate(("P005", "P011")):
        np.savez_compressed(folder / "gallery" / f"{name}.npz", **gallery(index, names))
    write_log(workdir / "log.jsonl", 1.2, 0.05)
    for name in ("mmgan", "pix2pix"):
        write_log(workdir / "methods" / name / "log.jsonl", 40.0, 18.0)
    (workdir / "evaluation").mkdir()
    names = "reliability ranks structure lesions two_sample uncertainty figure"
    for name in names.split():
        imsave(workdir / "evaluation" / f"{name}.png", picture(name))
    (workdir / "dial").mkdir()
    imsave(workdir / "dial" / "dial.png", picture("dial"))
    return workdir


def study_results() -> dict:
    """results.json of five methods, one with notes, one without costs."""
    indices = {name: index for index, name in enumerate(METHODS)}
    rows = [
        row(name, missing, metric, indices[name])
        for name in METHODS
        for missing in (*MODALITIES, "flair+t1", "t1c+t2", "flair+t1+t2")
        for metric in LEVELS
        for _ in missing.split("+")[:1]
    ]
    return {
        "methods": [method(name, index) for name, index in indices.items()],
        "rows": rows,
        "subjects": [],
        "crps": [
            {"method": m, "modality": c, "mean": 4.0 + p, "sd": 0.5, "subjects": 6}
            for m, p in indices.items()
            for c in MODALITIES
        ],
        "structure": [structure_row(m) for m in MODALITIES],
        "lesions": lesions(),
        "two_sample": [two_sample_row(m, m == "t2") for m in MODALITIES],
        "tests": [
            difference(metric, modality, name, 0.4 * index)
            for metric in ("psnr", "mae")
            for name, index in list(indices.items())[2:]
            for modality in MODALITIES
        ],
        "paper": [
            {"method": "mmgan", "modality": "t1", "metric": "psnr", "mean": 27.5} | {"sd": 1.25},
            {"method": "sgan", "modality": "t2", "metric": "psnr", "mean": 26.5} | {"sd": None},
        ],
        "downstream": {
            "rows": dice_rows(),
            "note": "One U-Net, trained on truth.",
            "maps": [map_row("draws", 0.5), map_row("mean", None)],
        },
        "facts": facts(),
    }


def lesions() -> dict:
    """What lesions say of the draws, of T1c and T2 of phantoms: every number is known."""
    names = ("spread_ratio", "spread_skill", "coverage")
    ends = {f"{n}{e}": v for n in names for e, v in (("", 0.6), ("_low", 0.5), ("_high", 0.8))}
    numbers = {"subjects": 5, "lesions": 6, "draws": 8, "truth": 1.25, "truth_sd": 0.5}
    numbers |= {"of_mean": 1.2, "draw": 1.125, "draw_sd": 0.3, "crps": 0.1234, "crps_of_mean": 0.2}
    rows = [
        {"modality": m, "region": region, "measure": measure} | numbers | ends
        for m, region, measures in (("t1c", "TC", ("p90", "enhancement")), ("t2", "WT", ("mean",)))
        for measure in measures
    ]
    rows[-1] |= dict.fromkeys(("spread_ratio", "spread_ratio_low", "spread_ratio_high"))
    shares = ("share_of_truths", "share_of_draws", "share_of_mean", "share_ratio", "brier")
    found = {f"{n}{e}": v for n in shares for e, v in (("", 0.5), ("_low", 0.25), ("_high", 0.75))}
    found |= {"bright": {name: value / 2 for name, value in found.items()}}
    found |= {"subjects": 5, "lesions": 6, "draws": 8, "brier_of_share": 0.25}
    bins = [(0.0, 0.2, 1.5, 0.0, 1.0), (0.8, 1.0, 4.5, 1.0, 0.4375)]
    found["reliability"] = [
        {"low": low, "high": high, "lesions": n, "probability": p, "frequency": f}
        | {"frequency_low": f - 0.1, "frequency_high": f + 0.1}
        for low, high, n, p, f in bins
    ]
    found["known"] = {"probability": 0.75, "share_built": 0.7, "mean": 0.9, "sd": 0.31}
    found["known"] |= {"sd_of_right": 0.15, "brier": 0.19, "agreement": 0.995, "patterns": {}}
    results = {"rows": rows, "enhancement": found, "skipped": {"no segmentation": ["P005"]}}
    return results | {"least_voxels": 10, "threshold": 1.1, "bright": 1.5, "smoothing": 2.0}


def structure_row(modality: str) -> dict:
    """Known numbers of five bands and two block sizes; no block of 16 counts."""
    first = 2 * (1 + MODALITIES.index(modality))
    bands = ("0-0.05", "0.05-0.1", "0.1-0.2", "0.2-0.3", "0.3 up")
    power = [{"band": b} | _three("ratio", (first + n) / 10) for n, b in enumerate(bands)]
    names = ("spread_skill", "coverage", "crps", "crps_over_mae")
    blocks = [{"size": 1, "subjects": 6}, {"size": 16, "subjects": 0}]
    for block in blocks:
        for n, name in enumerate(names):
            block |= _three(name, (first + n) / 20 if block["subjects"] else None)
    return {"missing": modality, "modality": modality} | {
        "structure": {"power": power, "blocks": blocks}
    }


def two_sample_row(modality: str, skipped: bool) -> dict:
    """Known areas, or none."""
    names = ("auc", "low", "high", "control_auc", "control_low", "control_high")
    values = [None] * 6 if skipped else [0.8, 0.7, 0.9, 0.5, 0.4, 0.6]
    row = {"modality": modality, "subjects": 6, "patches": 0 if skipped else 120}
    reason = "3 test subjects." if skipped else None
    return row | dict(zip(names, values, strict=True)) | {"skipped": reason}


def _three(name: str, value: float | None) -> dict:
    low, high = (value and value * factor for factor in (0.9, 1.2))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def map_row(kind: str, dice: float | None) -> dict:
    """What one kind of map is worth where T1c is replaced."""
    names = {"map": kind, "modality": "t1c", "region": "enhancing"}
    numbers = {"dice": dice, "brier": 0.01234, "calibration": 0.00567}
    return names | numbers | {"subjects": 6, "skipped": 1, "table": []}


def method(name: str, index: int) -> dict:
    """A method of results.json; ridge costs nothing that is known."""
    costs = {
        "parameters": 1_234_567 * (index + 1),
        "gflop": 0.174,
        "train_seconds": None if name == "pix2pix" else 1234.5,
        "images_seen": 160_000,
        "steps": 10_000,
        "seconds_per_slice": 0.0123,
    }
    notes = {"mmgan": "Adapted: one generator for every question."}
    costs = None if name == "ridge" else costs
    return dict(name=name, title=METHODS[name], note=notes.get(name, ""), costs=costs)


def row(name: str, missing: str, metric: str, index: int) -> dict:
    """A row of scores: the first method is the best everywhere, by known steps."""
    modality = missing.split("+")[0]
    step = {"psnr": -1.0, "mae": 0.5}.get(metric, -0.01)
    worse = 2 * (missing.count("+")) + index + 0.25 * MODALITIES.index(modality)
    numbers = {"mean": LEVELS[metric] + step * worse, "sd": 0.4 * abs(step)}
    labels = {"method": name, "missing": missing, "modality": modality}
    labels |= {"profile": "umm-csgm-table1", "profile_hash": "0123456789ab"}
    labels |= {"metric": metric}
    return labels | numbers | {"subjects": 6}


def difference(metric: str, modality: str, name: str, size: float) -> dict:
    """A row of tests."""
    labels = {"metric": metric, "modality": modality, "method": name}
    labels |= {"reference": "mm-csn", "subjects": 6}
    interval = {"low": size - 0.3, "high": size + 0.3}
    chances = {"p": 0.0004, "p_holm": 0.2 if modality == "t2" else 0.0044}
    return labels | {"difference": size} | interval | chances


def dice_rows() -> list[dict]:
    """Dice of two regions, with truth, with nothing and with the first method."""
    scores = {"truth": 0.8, "zeros": 0.3, "mm-csn": 0.7, "ridge": 0.5}
    return [
        {"method": name, "modality": modality, "region": region, "dice": score}
        | {"sd": 0.05, "subjects": 5, "skipped": 1 if region == "enhancing" else 0}
        for region in ("whole", "enhancing")
        for name, score in scores.items()
        for modality in MODALITIES
    ]


def facts() -> dict:
    """What the study was made of."""
    return {
        "budget": "Equal images.",
        "seed": 7,
        "modalities": list(MODALITIES),
        "split": {"train": 20, "validation": 4, "test": 6},
        "split_sha256": "5" * 64,
        "data_sha256": "d" * 64,
        "config": CONFIG,
        "versions": {"jax": "0.10.2", "ummcsgm": "0.1.0"},
        "commit": "0123456789abcdef",
        "notes": ["Every method saw 160000 images."],
    }


def gallery(index: int, names: list[str]) -> dict[str, np.ndarray]:
    """A subject's slices; every method is off by 6 times its index, plus some noise."""
    rng = np.random.default_rng(index)
    m, s, y, x = np.indices(SHAPE)
    inside = ((y - 28) / (24 - 2 * abs(s - 2.5))) ** 2 + ((x - 24 - index) / 18) ** 2 <= 1
    truth = np.where(inside, 90 + 25 * m + 20 * np.sin(x / 4 + s) * np.cos(y / 5), 0)
    truth[:, :, *MARK] = 240
    arrays = {"z": np.arange(50, 62, 2), "truth": truth.astype(np.uint8)}
    for n, name in enumerate(names):
        noise = rng.normal(0, 3 + 2 * n, SHAPE)
        estimate = np.where(truth > 0, truth + 6 * (n + 1) + noise, 0)
        arrays[name] = estimate.clip(0, 255).round().astype(np.uint8)
    sd = np.where(truth > 0, 5 + 5 * np.sin(y / 7) ** 2, 0)
    return arrays | {"sd": sd.astype(np.uint8)}


def write_log(path: pathlib.Path, first: float, last: float) -> None:
    """A log of 80 records, whose last line a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    share = np.arange(1, 81) / 80
    losses = last * (first / last) ** (1 - share) * np.exp(0.05 * rng.normal(size=80))
    losses[[0, -1]] = first, last
    lines = [
        json.dumps({"step": 25 * (n + 1), "loss": loss, "skipped": 0})
        for n, loss in enumerate(losses)
    ]
    path.write_text("\n".join(lines) + '\n{"step": 2025, "lo')


def picture(name: str) -> np.ndarray:
    """A picture that no other name has."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.kron(rng.uniform(0.3, 1, (6, 12, 3)), np.ones((40, 40, 1)))
