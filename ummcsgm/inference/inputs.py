"""Inputs of a completion: which subjects lack a modality, and what the network sees of one."""

import pathlib
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ummcsgm.config import build_data
from ummcsgm.data.layouts.find import SearchResult
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import read_geometry, spacing_in_plane
from ummcsgm.data.subjects import PreparedSubject, network_stacks, prepare_subject
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.types import Array, InputError, Stacks

TOLERANCE = 1.2  # between the voxels of training and those of a subject


class SubjectInputs(NamedTuple):
    """What the network sees of one subject, and which modalities are missing."""

    name: str
    z: Array  # [S] the slices with brain
    images: Stacks  # 0 where missing
    missing: Array  # [M] bool


def load_inputs(trained: TrainedModel, subject: Subject) -> tuple[PreparedSubject, SubjectInputs]:
    """Returns a subject read from its files, and what the network sees of it.

    Raises:
        InputError: the network does not know its modalities or its voxels' size, or a file
            cannot be used.
    """
    check_modalities(trained, subject.name, subject.files)
    if not trained.space.view.spacing:
        _check_spacing(trained, subject)
    space = trained.space
    prepared = prepare_subject(subject, space.modalities, space.view)
    return prepared, subject_inputs(subject.name, prepared, space.modalities)


def subject_inputs(
    name: str, prepared: PreparedSubject, modalities: tuple[str, ...]
) -> SubjectInputs:
    """Returns the inputs of all slices with brain; every absent modality is missing."""
    z = np.flatnonzero(prepared.brain.any(axis=(1, 2)))
    missing = np.array([modality not in prepared.scales for modality in modalities])
    return SubjectInputs(name, z, network_stacks(prepared, modalities, z), missing)


def find_incomplete(
    trained: TrainedModel, source: pathlib.Path, unused: Collection[str]
) -> SearchResult:
    """Returns the subjects that lack a modality, without the scans of `unused` modalities.

    Raises:
        InputError: there is none, nor one that cannot be read.
    """
    found = build_data.find_anywhere(trained.config, source)
    subjects = [
        replace(subject, files={m: path for m, path in subject.files.items() if m not in unused})
        for subject in found.subjects
    ]
    modalities = set(trained.space.modalities)
    incomplete = [subject for subject in subjects if modalities - set(subject.files)]
    if found.unused_files:
        print(
            f"not read: {len(found.unused_files)} files that are no scan of the layout "
            f"{found.layout.name}, such as {found.unused_files[0]}",
            flush=True,
        )
    if not incomplete and not found.problems:
        raise InputError(
            f"{source}: no modality of any subject is missing; name the ones to do "
            "without, like --missing t1c,flair."
        )
    return replace(found, subjects=incomplete)


def check_modalities(trained: TrainedModel, name: str, given: Collection[str]) -> None:
    """Raises InputError unless the network knows all `given` modalities, and there is one."""
    modalities = trained.space.modalities
    unknown = [modality for modality in given if modality not in modalities]
    known = [modality for modality in given if modality in modalities]
    if unknown or not known:
        raise InputError(
            f"subject {name} has {', '.join(given) if given else 'nothing to go by'}, and "
            f"this network was trained on {', '.join(modalities)}"
            + (f": leave the rest out with --ignore {','.join(unknown)}" * bool(known))
            + "."
        )


def _check_spacing(trained: TrainedModel, subject: Subject) -> None:
    """Raises InputError unless pixels are as large as those of training."""
    spacing = spacing_in_plane(read_geometry(next(iter(subject.files.values()))))
    ratios = [own / usual for own, usual in zip(spacing, trained.spacing, strict=True)]
    if max(*ratios, *(1 / ratio for ratio in ratios)) > TOLERANCE:
        raise InputError(
            f"subject {subject.name} has axial pixels of {spacing[0]:.3g} x {spacing[1]:.3g} "
            f"mm, and this network was trained on {trained.spacing[0]:.3g} x "
            f"{trained.spacing[1]:.3g} mm: train with config.data.spacing, which "
            "resamples."
        )
