"""Where a subject's answers lie, what is told of them, and whether they are there.

An answer is a volume whose header says that it is synthetic, by which it is known
wherever it goes, and a JSON file beside it. It never takes the place of a real volume.
"""

import dataclasses
import json
import math
import pathlib

from ummcsgm.data.layouts.naming import Layout, Subject
from ummcsgm.data.layouts.search import file_name
from ummcsgm.data.nifti import Geometry, is_synthetic, read_geometry, write_like
from ummcsgm.data.store import sha256
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic
from ummcsgm.utils.provenance import versions

RESEARCH = "For research only: not a medical device, not for clinical decisions."


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """What is wanted of every subject: which modalities to do without, and how."""

    missing: tuple[str, ...]  # besides those whose files are absent
    ignored: tuple[str, ...]  # modalities of the subjects that are not read
    draws: int
    levels: tuple[float, ...]  # of the quantiles, where there are several draws
    sampler: str
    overwrite: bool  # answers that are there already
    keep: bool = True  # several draws, beside what is told of them
    spread: bool = False  # quantiles were asked for: the mean alone will not do
    seconds: float | None = None  # a subject, for which to choose sampler and draws
    advise: bool = False  # which scan to acquire, instead of answers


@dataclasses.dataclass(frozen=True)
class OutputFile:
    """One answer: its place, and all that decides what it is."""

    path: pathlib.Path
    modality: str
    kind: str  # what of the posterior: "" for the one answer, else in the name
    identity: dict


def check_order(order: CompletionOptions, modalities: tuple[str, ...]) -> None:
    """Raises InputError, naming the flag, unless a network of these can do `order`."""
    for name in order.missing:
        if name not in modalities:
            raise InputError(
                f"--missing names {name!r}; this network knows {', '.join(modalities)}."
            )
    if set(order.missing) == set(modalities):
        raise InputError(
            "--missing names every modality: at least one must be given to complete from."
        )
    if order.draws < 1:
        raise InputError(f"--draws is {order.draws}; wanted at least 1.")
    if order.draws > 1 and order.sampler == "mean":
        raise InputError(
            f"--draws is {order.draws}, and the mean is not drawn: add --sampler warm."
        )
    if order.advise and order.draws < 2:
        raise InputError(f"--draws is {order.draws}, and --advise wants at least 2: add --draws 8.")
    if order.seconds is not None and not 0 < order.seconds < math.inf:
        raise InputError(f"--budget-seconds is {order.seconds:g}; wanted a number above 0.")
    kinds = [quantile_kind(level) for level in order.levels]
    if len(set(kinds)) < len(kinds):
        raise InputError("--quantiles has one level twice: name each once.")
    for level in order.levels:
        if not 0 < level < 1:
            raise InputError(f"--quantiles has {level:g}; wanted numbers above 0 and below 1.")


def output_files(
    trained: TrainedModel,
    layout: Layout,
    subject: Subject,
    order: CompletionOptions,
    facts: dict,
    fits: dict[str, dict],
) -> list[OutputFile]:
    """The answers that `order` wants of `subject`, relative to the target folder.

    They lie where the modality would in a data folder of the layout. `facts` are those
    of the sampler: its steps and the seed; `fits` are, by modality, the factor that the
    spread of its draws was multiplied with.
    """
    inputs = {
        name: {"file": path.name, "sha256": sha256(path)}
        for name, path in subject.files.items()
        if name in trained.space.modalities
    }
    subject_facts = {"subject": subject.name, "inputs": inputs, "parameters_sha256": trained.digest}
    drawn = {"sampler": order.sampler, "draws": order.draws, **facts}
    mean = {"sampler": "mean", "draws": 0, "steps": 1, "evaluations": 1}
    mean["seed"] = facts["seed"]
    return [
        OutputFile(
            _named(file_name(layout, subject, name), kind),
            name,
            kind,
            subject_facts
            | (mean if "mean" in (kind, order.sampler) else drawn)
            | {"modality": name, "kind": kind if kind else order.sampler}
            | {"recalibration": None if kind == "mean" else fits.get(name)},
        )
        for kind in kinds_of(order, trained.model.network.predict_variance)
        for name in trained.space.modalities
        if name not in subject.files
    ]


def finished(target: pathlib.Path, results: list[OutputFile], overwrite: bool) -> bool:
    """Whether all of `results` are in `target` already, made as they would be now.

    An answer that is damaged, or lacks its volume or its sidecar, is not there.

    Raises:
        InputError: in the place of one lies something that is not synthetic, or (unless
            `overwrite`) an answer that was made otherwise.
    """
    there = [_is_there(target / one.path, one.identity, overwrite) for one in results]
    return all(there)


def _is_there(path: pathlib.Path, identity: dict, overwrite: bool) -> bool:
    others = _others(path)
    if others:
        raise InputError(f"{others[0]} is there and is not synthetic: choose another --output.")
    made = _told(sidecar(path))
    if overwrite or not made or not path.is_file():
        return False
    if made["volume_sha256"] != sha256(path):
        return False
    changed = [key for key, value in identity.items() if made.get(key) != value]
    if changed:
        raise InputError(
            f"{path} was made with another {changed[0]}: add --overwrite to make it "
            "again, or choose another --output."
        )
    return True


def write_result(path: pathlib.Path, volume: Array, geometry: Geometry, about: dict) -> None:
    """`path` holds the volume [Z, Y, X] on the grid of `geometry`, and a JSON file
    beside it tells `about` it.

    The sidecar has the volume's checksum and is there only when its volume is.
    """
    sidecar(path).unlink(missing_ok=True)
    # The volume's own header says that it is synthetic; the rest is told beside it.
    write_like(path, volume, geometry)
    about = {"synthetic": True, "note": RESEARCH} | about
    about |= {"versions": versions(), "volume_sha256": sha256(path)}
    write_atomic(sidecar(path), json.dumps(about, indent=1))


def sidecar(path: pathlib.Path) -> pathlib.Path:
    """Where what is told of the volume at `path` lies."""
    return path.with_name(f"{_stem(path)}.json")


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def kinds_of(order: CompletionOptions, predicted: bool) -> list[str]:
    """What an order wants of each missing modality, "" for the one answer.

    Beside the mean its sd, if the network `predicted` it.
    """
    if order.sampler == "mean" and predicted:
        return ["", "sd"]
    if order.draws == 1:
        return [""]
    draws = draw_kinds(order) if order.keep else []
    return ["mean", *draws, "sd", *map(quantile_kind, order.levels)]


def draw_kinds(order: CompletionOptions) -> list[str]:
    """The kinds that are draws, in their order."""
    if order.draws == 1:
        return [""]
    return [f"draw-{draw + 1:02d}" for draw in range(order.draws)]


def quantile_kind(level: float) -> str:
    """q05 for 0.05, q02p5 for 0.025: what stands in the name of a quantile's file, a
    name for each level."""
    whole, _, part = f"{100 * level:.10f}".rstrip("0").partition(".")
    return f"q{whole:>02}" + (f"p{part}" if part else "")


def _named(path: pathlib.Path, kind: str) -> pathlib.Path:
    """With several results of a modality their kind is part of the name."""
    return path.with_name(f"{_stem(path)}_{kind}.nii.gz") if kind else path


def _others(path: pathlib.Path) -> list[pathlib.Path]:
    """What lies where a volume and its sidecar go, packed or not, and is not ours."""
    volumes = [sidecar(path).with_suffix(end) for end in (".nii.gz", ".nii")]
    told = _told(sidecar(path))
    there = [
        place
        for place in volumes
        if place.exists() and not is_synthetic(place) and not (told and _broken(place))
    ]
    if not there and sidecar(path).exists() and not told:
        there = [] if any(map(is_synthetic, volumes)) else [sidecar(path)]
    return there


def _broken(path: pathlib.Path) -> bool:
    """Whether nothing can be read at `path`: with our sidecar, what is left of ours."""
    try:
        read_geometry(path)
    except InputError:
        return True
    return False


def _told(path: pathlib.Path) -> dict | None:
    """What a sidecar of ours tells; None where there is none, or another's."""
    try:
        made = read_json(path)
    except InputError:
        return None
    ours = isinstance(made, dict) and {"synthetic", "volume_sha256"} <= made.keys()
    return made if ours else None
