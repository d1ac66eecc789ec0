"""Output files of a completed subject: names, units, sidecars, and what is there already.

A synthetic volume says so in its own header, and has a JSON file (its sidecar) beside it
that says how it was made. It never replaces a real volume.
"""

import dataclasses
import json
import math
import pathlib
import statistics

import numpy as np

from ummcsgm.data.crop import uncrop
from ummcsgm.data.intensity import denormalise
from ummcsgm.data.layouts.find import file_name
from ummcsgm.data.layouts.layout import Layout, Subject
from ummcsgm.data.nifti import Geometry, is_synthetic, read_geometry, write_like
from ummcsgm.data.subjects import PreparedSubject, network_brain
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import read_json, sha256_of_file, write_atomic
from ummcsgm.utils.provenance import versions

RESEARCH = "For research only: not a medical device, not for clinical decisions."


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Which modalities of every subject are completed, how, and what is written."""

    missing: tuple[str, ...] = ()  # left out on purpose, besides those without a file
    ignored: tuple[str, ...] = ()  # scans that are not read
    draws: int = 1
    quantiles: tuple[float, ...] = (0.05, 0.5, 0.95)  # levels, written of several draws
    sampler: str = "mean"
    overwrite: bool = False  # make finished files again
    keep_draws: bool = True  # write each of several draws, beside their summaries
    quantiles_requested: bool = False  # by the user: the mean alone does not do
    budget_seconds: float | None = None  # a subject; chooses the sampler and the draws
    rank_acquisitions: bool = False  # write which scan to acquire, no volumes


@dataclasses.dataclass(frozen=True)
class OutputFile:
    """One volume to write: its path, and the facts that decide its content."""

    path: pathlib.Path  # below the output folder
    modality: str
    kind: str  # see `output_kinds`
    identity: dict


def check_options(options: CompletionOptions, modalities: tuple[str, ...]) -> None:
    """Raises InputError, naming the flag, unless a network of these modalities can do it."""
    for name in options.missing:
        if name not in modalities:
            raise InputError(
                f"--missing names {name!r}; this network knows {', '.join(modalities)}."
            )
    if set(options.missing) == set(modalities):
        raise InputError(
            "--missing names every modality: at least one must be given to complete from."
        )
    draws, seconds = options.draws, options.budget_seconds
    if draws < 1:
        raise InputError(f"--draws is {draws}; wanted at least 1.")
    if draws > 1 and options.sampler == "mean":
        raise InputError(f"--draws is {draws}, and the mean is not drawn: add --sampler warm.")
    if options.rank_acquisitions and draws < 2:
        raise InputError(f"--draws is {draws}, and --advise wants at least 2: add --draws 8.")
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"--budget-seconds is {seconds:g}; wanted a number above 0.")
    kinds = [quantile_kind(level) for level in options.quantiles]
    if len(set(kinds)) < len(kinds):
        raise InputError("--quantiles has one level twice: name each once.")
    for level in options.quantiles:
        if not 0 < level < 1:
            raise InputError(f"--quantiles has {level:g}; wanted numbers above 0 and below 1.")


def output_kinds(options: CompletionOptions, predicted_variance: bool) -> list[str]:
    """Returns what is written of each missing modality: "mean", "draw-01", "sd", "q05" ...

    "" is the only volume of a modality, the mean or the only draw; the mean has its sd
    beside it if the network predicts the variance.
    """
    if options.sampler == "mean" and predicted_variance:
        return ["", "sd"]
    if options.draws == 1:
        return [""]
    draws = draw_kinds(options) if options.keep_draws else []
    return ["mean", *draws, "sd", *map(quantile_kind, options.quantiles)]


def draw_kinds(options: CompletionOptions) -> list[str]:
    """Returns the kinds that are draws, in their order."""
    if options.draws == 1:
        return [""]
    return [f"draw-{draw + 1:02d}" for draw in range(options.draws)]


def quantile_kind(level: float) -> str:
    """Returns q05 for 0.05, q02p5 for 0.025: part of a file's name, distinct per level."""
    whole, _, part = f"{100 * level:.10f}".rstrip("0").partition(".")
    return f"q{whole:>02}" + (f"p{part}" if part else "")


def output_files(
    trained: TrainedModel,
    layout: Layout,
    subject: Subject,
    options: CompletionOptions,
    facts: dict,
) -> list[OutputFile]:
    """Returns the volumes that `options` want of `subject`, named as in its layout.

    `facts` are the seed and those of `sampler_facts`.
    """
    inputs = {
        name: {"file": path.name, "sha256": sha256_of_file(path)}
        for name, path in subject.files.items()
        if name in trained.space.modalities
    }
    common = {"subject": subject.name, "inputs": inputs, "parameters_sha256": trained.digest}
    drawn = {"sampler": options.sampler, "draws": options.draws, **facts}
    mean = {"sampler": "mean", "draws": 0, "steps": 1, "evaluations": 1, "seed": facts["seed"]}
    files = []
    for kind in output_kinds(options, trained.model.network.predict_variance):
        for name in trained.space.modalities:
            if name in subject.files:
                continue
            path = file_name(layout, subject, name)
            if kind:
                path = path.with_name(f"{_stem(path)}_{kind}.nii.gz")
            how = mean if "mean" in (kind, options.sampler) else drawn
            identity = common | how | {"modality": name, "kind": kind or options.sampler}
            files.append(OutputFile(path, name, kind, identity))
    return files


def all_finished(folder: pathlib.Path, files: list[OutputFile], overwrite: bool) -> bool:
    """Returns whether all `files` are in `folder` already, made as they would be now.

    A file that is damaged, or lacks its volume or its sidecar, is not finished.

    Raises:
        InputError: in the place of one is something that is not synthetic, or (unless
            `overwrite`) a volume that was made otherwise.
    """
    return all([_is_finished(folder / file.path, file.identity, overwrite) for file in files])


def _is_finished(path: pathlib.Path, identity: dict, overwrite: bool) -> bool:
    foreign = _foreign_files(path)
    if foreign:
        raise InputError(f"{foreign[0]} is there and is not synthetic: choose another --output.")
    saved = _read_sidecar(path)
    if (
        overwrite
        or not saved
        or not path.is_file()
        or saved["volume_sha256"] != sha256_of_file(path)
    ):
        return False
    changed = [key for key, value in identity.items() if saved.get(key) != value]
    if changed:
        raise InputError(
            f"{path} was made with another {changed[0]}: add --overwrite to make it "
            "again, or choose another --output."
        )
    return True


def _foreign_files(path: pathlib.Path) -> list[pathlib.Path]:
    """What is where a volume and its sidecar go, packed or not, and was not written by us."""
    volumes = [sidecar(path).with_suffix(suffix) for suffix in (".nii.gz", ".nii")]
    saved = _read_sidecar(path)
    foreign = [
        volume
        for volume in volumes
        if volume.exists() and not is_synthetic(volume) and not (saved and _is_broken(volume))
    ]
    if not foreign and not saved and sidecar(path).exists():
        return [] if any(map(is_synthetic, volumes)) else [sidecar(path)]
    return foreign


def _is_broken(path: pathlib.Path) -> bool:
    """Whether nothing can be read at `path`: beside our sidecar, a part of our volume."""
    try:
        read_geometry(path)
    except InputError:
        return True
    return False


def _read_sidecar(path: pathlib.Path) -> dict | None:
    """The sidecar of the volume at `path`; None without one, or if it is not ours."""
    try:
        saved = read_json(sidecar(path))
    except InputError:
        return None
    ours = isinstance(saved, dict) and {"synthetic", "volume_sha256"} <= saved.keys()
    return saved if ours else None


def sidecar(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the JSON file beside the volume at `path`."""
    return path.with_name(f"{_stem(path)}.json")


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def output_units(trained: TrainedModel, prepared: PreparedSubject) -> dict[str, dict]:
    """Returns, for each missing modality, its intensity scale and how it was found.

    Units that a scanner could have used: the training cohort's median scale of the
    modality, times how this subject's own scans compare with the cohort's.
    """
    gains = {name: scale / trained.scales[name] for name, scale in prepared.scales.items()}
    gain = statistics.median(gains.values())
    return {
        name: {
            "how": "training cohort's median scale x median ratio of this subject's "
            "own scales to the cohort's; a scale is twice the median magnitude of a "
            "volume's non-zero voxels; values are bounded by the cohort's range, in "
            "units of the scale",
            "cohort_scale": trained.scales[name],
            "range": list(trained.ranges[name]),
            "ratios": gains,
            "scale": gain * trained.scales[name],
        }
        for name in trained.space.modalities
        if name not in prepared.scales
    }


def output_volume(
    prepared: PreparedSubject, z: Array, slices: Array, units: dict, kind: str
) -> Array:
    """Returns a modality's output [S, H, W] as a volume [Z, Y, X] in units.

    Values but an sd's are clipped to the cohort's range; outside the brain it is 0.
    """
    if kind != "sd":
        slices = np.clip(slices, *units["range"])
    volume = np.zeros(prepared.brain.shape, np.float32)
    volume[z] = uncrop(prepared.window, slices * network_brain(prepared, z))
    return np.where(prepared.brain, denormalise(volume, units["scale"]), 0)


def write_output(path: pathlib.Path, volume: Array, geometry: Geometry, facts: dict) -> None:
    """Writes the volume [Z, Y, X] on the grid of `geometry`, and `facts` in its sidecar.

    The sidecar has the volume's checksum and is there only when its volume is.
    """
    sidecar(path).unlink(missing_ok=True)
    # The volume's own header says that it is synthetic.
    write_like(path, volume, geometry)
    facts = {"synthetic": True, "note": RESEARCH} | facts
    facts |= {"versions": versions(), "volume_sha256": sha256_of_file(path)}
    write_atomic(sidecar(path), json.dumps(facts, indent=1))
