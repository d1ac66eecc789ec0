"""Checkpoint + subjects -> NIfTI files on their inputs' own grid.

What is written is synthetic and says so: in its header's description, by which it is
known wherever it goes, and in a JSON file beside it. It never takes the place of a real
volume, and is never read as one.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from ummcsgm import build
from ummcsgm.answer import Trained, load_trained, make_answer, slice_addresses
from ummcsgm.data.intensity import denormalise
from ummcsgm.data.layouts import Layout, Subject, file_name, find_subjects
from ummcsgm.data.nifti import is_synthetic, write_like
from ummcsgm.data.subjects import Prepared, network_slices, prepare_subject
from ummcsgm.data.window import paste
from ummcsgm.files import write_whole
from ummcsgm.manifest import versions
from ummcsgm.plans import Scoring
from ummcsgm.types import Array, Config, Images, InputError


@dataclasses.dataclass(frozen=True)
class Order:
    """What is wanted of every subject: which modalities to do without, and how."""

    missing: tuple[str, ...]  # besides those whose files are absent
    draws: int
    sampler: str


def complete(
    workdir: pathlib.Path,
    config: Config | None,
    folders: tuple[str | None, str | None],
    order: Order,
) -> None:
    """Every missing modality of the subjects in a source lies under a target.

    `folders` are (source, target); the source is one subject's folder or a folder of
    subjects. A subject's missing modalities are those without a file, and those of
    `order.missing`. Each is written on the input's grid, with its affine, header and
    type, background 0, with a JSON file beside it, where it would lie in a data folder
    of its layout. The seed and the steps of a draw are told by `config`, if it is
    given, else by the config in the checkpoint.

    Raises:
        InputError: the flags, the files or the checkpoint do not allow it; a file that
            is not synthetic would be overwritten.
    """
    source, target = folders
    if not source or not target:
        raise InputError(f"--{'output' if source else 'input'} is missing.")
    trained = load_trained(workdir)
    _check_order(order, trained.space.modalities)
    scoring = build.build_scoring(build.fitting(config, trained.config, workdir))
    answer = make_answer(trained, order.sampler, scoring)
    layout = build.build_layout(trained.config)
    found = find_subjects(pathlib.Path(source), layout)
    subjects = [_without(subject, order.missing) for subject in found]
    lacking = [s for s in subjects if len(s.files) < len(trained.space.modalities)]
    if not lacking:
        raise InputError(
            f"{source}: no modality of any subject is missing; name the ones to do "
            "without, like --missing t1c,flair."
        )
    for subject in lacking:
        _check_subject(pathlib.Path(target), layout, subject, order)
    for place, subject in enumerate(lacking):
        prepared = prepare_subject(
            subject, trained.space.modalities, trained.space.grid
        )
        for draw in range(order.draws):
            rows = _answer(trained, answer, subject.name, prepared, draw)
            for name, volume in _volumes(trained, prepared, *rows).items():
                path = _path(pathlib.Path(target), layout, subject, name, order, draw)
                about = _about(trained, subject, name) | _drawn(scoring, order, draw)
                _write(path, volume, prepared, about)
        print(f"completed {place + 1}/{len(lacking)}: {subject.name}", flush=True)


def _check_order(order: Order, modalities: tuple[str, ...]) -> None:
    for name in order.missing:
        if name not in modalities:
            raise InputError(
                f"--missing names {name!r}; this network knows {', '.join(modalities)}."
            )
    if set(order.missing) == set(modalities):
        raise InputError(
            "--missing names every modality: at least one must be given to complete "
            "from."
        )
    if order.draws < 1:
        raise InputError(f"--draws is {order.draws}; wanted at least 1.")
    if order.draws > 1 and order.sampler == "mean":
        raise InputError(
            f"--draws is {order.draws}, and the mean is not drawn: add --sampler "
            "euler_maruyama."
        )


def _check_subject(
    target: pathlib.Path, layout: Layout, subject: Subject, order: Order
) -> None:
    """Something is seen, and no real file lies where a synthetic one is to be."""
    if not subject.files:
        raise InputError(
            f"subject {subject.name}: no modality is left to complete from."
        )
    for name in layout.tokens:
        for draw in range(order.draws):
            path = _path(target, layout, subject, name, order, draw)
            others = _others(path)
            if name not in subject.files and others:
                raise InputError(
                    f"{others[0]} is there and is not synthetic: choose another "
                    "--output."
                )


def _without(subject: Subject, missing: Sequence[str]) -> Subject:
    """The subject without these modalities."""
    files = {name: path for name, path in subject.files.items() if name not in missing}
    return dataclasses.replace(subject, files=files)


def _sidecar(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _others(path: pathlib.Path) -> list[pathlib.Path]:
    """What lies where a volume and its sidecar go, packed or not, and is not ours."""
    volumes = [_sidecar(path).with_suffix(end) for end in (".nii.gz", ".nii")]
    there = [place for place in volumes if place.exists()]
    ours = bool(there) and all(is_synthetic(place) for place in there)
    if not there and _sidecar(path).exists():
        there = [_sidecar(path)]
    return [] if ours else there


def _path(
    target: pathlib.Path,
    layout: Layout,
    subject: Subject,
    name: str,
    order: Order,
    draw: int,
) -> pathlib.Path:
    """Where a modality goes; with several draws their number is part of the name."""
    path = target / file_name(layout, subject, name)
    if order.draws == 1:
        return path
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    return path.with_name(f"{stem}_draw-{draw + 1:02d}{path.name[len(stem) :]}")


def _answer(
    trained: Trained, answer, name: str, prepared: Prepared, draw: int
) -> tuple[Array, Images]:
    """The z of all slices with brain, and these with all M modalities."""
    z = np.flatnonzero(prepared.brain.any(axis=(1, 2)))
    modalities = trained.space.modalities
    images = network_slices(prepared, modalities, z)
    missing = np.array([name not in prepared.scales for name in modalities])
    addresses = slice_addresses(name, z, draw=draw)
    return z, answer(images, np.tile(missing, (len(z), 1)), addresses)


def _volumes(
    trained: Trained, prepared: Prepared, z: Array, images: Images
) -> dict[str, Array]:
    """The missing modalities' volumes [Z, Y, X], 0 outside the brain.

    In units a scanner could have used: the training cohort's median scale of the
    modality, times how this subject's seen scales compare with the cohort's.
    """
    gain = statistics.median(
        scale / trained.scales[name] for name, scale in prepared.scales.items()
    )
    volumes = {}
    for channel, name in enumerate(trained.space.modalities):
        if name not in prepared.scales:
            volume = np.zeros(prepared.brain.shape, np.float32)
            volume[z] = paste(prepared.window, images[..., channel])
            volume = denormalise(volume, gain * trained.scales[name])
            volumes[name] = np.where(prepared.brain, volume, 0)
    return volumes


def _about(trained: Trained, subject: Subject, name: str) -> dict:
    return {
        "synthetic": True,
        "note": "For research only: not a medical device.",
        "subject": subject.name,
        "modality": name,
        "inputs": {seen: path.name for seen, path in subject.files.items()},
        "checkpoint_step": trained.step,
        "parameters_sha256": trained.digest,
        "versions": versions(),
    }


def _drawn(scoring: Scoring, order: Order, draw: int) -> dict:
    return {
        "sampler": order.sampler,
        "steps": 1 if order.sampler == "mean" else scoring.steps,
        "draw": draw + 1,
        "seed": scoring.seed,
    }


def _write(path: pathlib.Path, volume: Array, prepared: Prepared, about: dict) -> None:
    if not np.isfinite(volume).all():
        raise FloatingPointError(
            f"{path}: the network's answer is not finite, so nothing was written; its "
            "checkpoint is of no use."
        )
    # The volume's own header says that it is synthetic; the rest is told beside it.
    write_like(path, volume, prepared.case.geometry)
    write_whole(_sidecar(path), json.dumps(about, indent=1))
