"""Where a subject's answers lie, what is told of them, and whether they are there.

An answer is a volume whose header says that it is synthetic, by which it is known
wherever it goes, and a JSON file beside it. It never takes the place of a real volume.
"""

import dataclasses
import json
import pathlib

from ummcsgm.answer import Trained
from ummcsgm.data.layouts import Layout, Subject
from ummcsgm.data.nifti import Geometry, is_synthetic, write_like
from ummcsgm.data.search import file_name
from ummcsgm.data.store import sha256
from ummcsgm.files import read_json, write_whole
from ummcsgm.manifest import versions
from ummcsgm.types import Array, InputError

RESEARCH = "For research only: not a medical device, not for clinical decisions."


@dataclasses.dataclass(frozen=True)
class Order:
    """What is wanted of every subject: which modalities to do without, and how."""

    missing: tuple[str, ...]  # besides those whose files are absent
    ignored: tuple[str, ...]  # modalities of the subjects that are not read
    draws: int
    sampler: str
    overwrite: bool  # answers that are there already


@dataclasses.dataclass(frozen=True)
class Result:
    """One answer: its place, and all that decides what it is."""

    path: pathlib.Path
    modality: str
    draw: int  # counted from 0
    identity: dict


def results_of(
    trained: Trained, layout: Layout, subject: Subject, order: Order, facts: dict
) -> list[Result]:
    """The answers that `order` wants of `subject`, relative to the target folder.

    They lie where the modality would in a data folder of the layout. `facts` are those
    of the sampler: its steps and the seed.
    """
    inputs = {
        name: {"file": path.name, "sha256": sha256(path)}
        for name, path in subject.files.items()
        if name in trained.space.modalities
    }
    identity = {
        "subject": subject.name,
        "inputs": inputs,
        "parameters_sha256": trained.digest,
        "sampler": order.sampler,
        **facts,
    }
    return [
        Result(
            _numbered(file_name(layout, subject, name), order.draws, draw),
            name,
            draw,
            identity | {"modality": name, "draw": draw + 1},
        )
        for draw in range(order.draws)
        for name in trained.space.modalities
        if name not in subject.files
    ]


def finished(target: pathlib.Path, results: list[Result], overwrite: bool) -> bool:
    """Whether all of `results` are in `target` already, made as they would be now.

    Raises:
        InputError: in the place of one lies something that is not synthetic, or (unless
            `overwrite`) an answer that was made otherwise.
    """
    there = 0
    for result in results:
        path = target / result.path
        others = _others(path)
        if others:
            raise InputError(
                f"{others[0]} is there and is not synthetic: choose another --output."
            )
        if not path.is_file() or not sidecar(path).is_file() or overwrite:
            continue
        made = read_json(sidecar(path))
        changed = [k for k, v in result.identity.items() if made.get(k) != v]
        if changed:
            raise InputError(
                f"{path} was made with another {changed[0]}: add --overwrite to make "
                "it again, or choose another --output."
            )
        there += 1
    return there == len(results)


def write_result(
    path: pathlib.Path, volume: Array, geometry: Geometry, about: dict
) -> None:
    """`path` holds the volume [Z, Y, X] on the grid of `geometry`, and a JSON file
    beside it tells `about` it."""
    about = {"synthetic": True, "note": RESEARCH} | about | {"versions": versions()}
    # The volume's own header says that it is synthetic; the rest is told beside it.
    write_like(path, volume, geometry)
    write_whole(sidecar(path), json.dumps(about, indent=1))


def sidecar(path: pathlib.Path) -> pathlib.Path:
    """Where what is told of the volume at `path` lies."""
    return path.with_name(f"{_stem(path)}.json")


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _numbered(path: pathlib.Path, draws: int, draw: int) -> pathlib.Path:
    """With several draws their number is part of the name."""
    if draws == 1:
        return path
    return path.with_name(f"{_stem(path)}_draw-{draw + 1:02d}.nii.gz")


def _others(path: pathlib.Path) -> list[pathlib.Path]:
    """What lies where a volume and its sidecar go, packed or not, and is not ours."""
    volumes = [sidecar(path).with_suffix(end) for end in (".nii.gz", ".nii")]
    there = [place for place in volumes if place.exists()]
    if there:
        return [] if all(is_synthetic(place) for place in there) else there
    about = sidecar(path)
    if about.exists() and not _tells_of_an_answer(about):
        return [about]
    return []


def _tells_of_an_answer(path: pathlib.Path) -> bool:
    """Whether a sidecar is ours, of a volume that is gone."""
    try:
        made = read_json(path)
    except InputError:
        return False
    return isinstance(made, dict) and {"synthetic", "parameters_sha256"} <= made.keys()
