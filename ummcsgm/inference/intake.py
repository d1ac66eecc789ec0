"""The subjects that are to be completed, and whether the network knows their like."""

import pathlib
from collections.abc import Sequence
from dataclasses import replace

from ummcsgm.config import build_data
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.layouts.search import Found
from ummcsgm.data.nifti import read_geometry, spacing_in_plane
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.inference.results import CompletionOptions
from ummcsgm.types import InputError

TOLERANCE = 1.2  # between the voxels trained on and those completed


def find_lacking(trained: TrainedModel, source: pathlib.Path, order: CompletionOptions) -> Found:
    """The subjects that lack a modality, each without what the order leaves out.

    Raises:
        InputError: there is none, nor one that was refused.
    """
    found = build_data.find_anywhere(trained.config, source)
    left_out = (*order.missing, *order.ignored)
    subjects = [_without(subject, left_out) for subject in found.subjects]
    modalities = set(trained.space.modalities)
    lacking = [subject for subject in subjects if modalities - set(subject.files)]
    if found.leftover:
        print(
            f"not read: {len(found.leftover)} files that are no scan of the layout "
            f"{found.layout.name}, such as {found.leftover[0]}",
            flush=True,
        )
    if not lacking and not found.refused:
        raise InputError(
            f"{source}: no modality of any subject is missing; name the ones to do "
            "without, like --missing t1c,flair."
        )
    return replace(found, subjects=lacking)


def check_modalities(trained: TrainedModel, subject: Subject) -> None:
    """Raises InputError unless the subject has something that the network knows, and
    nothing else."""
    modalities = trained.space.modalities
    strange = [name for name in subject.files if name not in modalities]
    known = [name for name in subject.files if name in modalities]
    if strange or not known:
        files = ", ".join(subject.files) if subject.files else "nothing to go by"
        raise InputError(
            f"subject {subject.name} has {files}, and this network was trained on "
            f"{', '.join(modalities)}"
            + (f": leave the rest out with --ignore {','.join(strange)}" * bool(known))
            + "."
        )


def check_spacing(trained: TrainedModel, subject: Subject) -> None:
    """Raises InputError unless voxels are as large as those trained on, where they are
    not resampled."""
    if trained.space.view.spacing:
        return
    own = spacing_in_plane(read_geometry(next(iter(subject.files.values()))))
    ratios = [o / t for o, t in zip(own, trained.spacing, strict=True)]
    if max(*ratios, *(1 / ratio for ratio in ratios)) > TOLERANCE:
        raise InputError(
            f"subject {subject.name} has axial pixels of {own[0]:.3g} x {own[1]:.3g} "
            f"mm, and this network was trained on {trained.spacing[0]:.3g} x "
            f"{trained.spacing[1]:.3g} mm: train with config.data.spacing, which "
            "resamples."
        )


def _without(subject: Subject, missing: Sequence[str]) -> Subject:
    """The subject without these modalities."""
    files = {name: path for name, path in subject.files.items() if name not in missing}
    return replace(subject, files=files)
