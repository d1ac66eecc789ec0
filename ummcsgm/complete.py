"""Checkpoint + subjects -> NIfTI files on their inputs' own grid.

Every subject stands for itself: one that cannot be completed is reported and the rest
go on; one that is finished is not made again.
"""

import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ummcsgm import build, build_data
from ummcsgm.answer import (
    Trained,
    load_trained,
    make_answer,
    read_rho,
    sampler_facts,
    slice_addresses,
)
from ummcsgm.calibration import quantile
from ummcsgm.console import show_table
from ummcsgm.data.layouts import Layout, Subject
from ummcsgm.data.nifti import read_geometry, spacing_in_plane
from ummcsgm.data.search import Found
from ummcsgm.data.subjects import (
    Prepared,
    network_slices,
    prepare_subject,
)
from ummcsgm.figure import check_preview, write_preview
from ummcsgm.outputs import preview_of, units_of, volume_of
from ummcsgm.progress import counting
from ummcsgm.results import (
    Order,
    Result,
    check_order,
    draw_kinds,
    finished,
    quantile_kind,
    results_of,
    write_result,
)
from ummcsgm.types import Array, Config, Images, InputError

FAILED = "FAILED"
SLAB = 8  # slices that are summarised at a time, in double precision
TOLERANCE = 1.2  # between the voxels trained on and those completed


@dataclass(frozen=True)
class Work:
    """All that completing one subject after another needs."""

    trained: Trained
    mean: Callable  # the network's mean
    answer: Callable  # of the order's sampler
    facts: dict  # of the sampler: steps and seed
    order: Order
    layout: Layout  # of the subjects
    target: pathlib.Path


def complete(
    workdir: pathlib.Path,
    config: Config | None,
    folders: tuple[str | None, str | None],
    order: Order,
    part: tuple[int, int],
) -> bool:
    """Every missing modality of the subjects in a source lies under a target.

    `folders` are (source, target); the source is one subject's folder or a folder of
    subjects, of which this process takes every n-th from the k-th on, `part` being
    (k, n). A subject's missing modalities are those without a file, and those of
    `order.missing`. Each is written on the input's grid, with its affine, header and
    type, background 0, with a JSON file beside it; previews/SUBJECT.png shows a slice.
    The seed and the steps of a draw are told by `config`, if it is given, else by the
    config in the checkpoint; how its slices go together by calibration.json, if any.

    Returns whether every subject has what it should; a table tells which have not.

    Raises:
        InputError: the flags or the checkpoint do not allow it, or no subject lacks
            a modality.
    """
    source, target = folders
    if not source or not target:
        raise InputError(f"--{'output' if source else 'input'} is missing.")
    trained = load_trained(workdir)
    check_order(order, trained.space.modalities)
    scoring = build.build_scoring(build_data.fitting(config, trained.config, workdir))
    rho = read_rho(workdir, trained)
    answer = make_answer(trained, order.sampler, scoring, rho=rho)
    mean = make_answer(trained, "mean", scoring)
    own = sampler_facts(order.sampler, trained, scoring, rho)
    facts = {"seed": scoring.seed, **own}
    found = _find(trained, pathlib.Path(source), order)
    target = pathlib.Path(target)
    work = Work(trained, mean, answer, facts, order, found.layout, target)
    rows = _complete_all(work, found.subjects[part[0] :: part[1]])
    if part[0] == 0:  # what no process can complete is told by the first
        rows += [_failed(name, "", why) for name, why in found.refused.items()]
    show_table("Completed subjects", ("subject", "given", "result"), rows)
    return not any(done.startswith(FAILED) for _, _, done in rows)


def _find(trained: Trained, source: pathlib.Path, order: Order) -> Found:
    """The subjects that lack a modality, each without what the order leaves out."""
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


def _complete_all(work: Work, subjects: Sequence[Subject]) -> list[tuple]:
    """Name, what was given and what came of it, of each subject."""
    rows = []
    with counting("completing") as report:
        for place, subject in enumerate(subjects):
            own = [name for name in work.layout.words if name in subject.files]
            given = ", ".join(own)
            try:
                rows.append((subject.name, given, _complete_one(work, subject)))
            except (InputError, FloatingPointError, OSError) as error:
                rows.append(_failed(subject.name, given, str(error)))
            report(place + 1, len(subjects))
    return rows


def _failed(name: str, given: str, why: str) -> tuple[str, str, str]:
    print(f"ummcsgm: {why}", file=sys.stderr, flush=True)
    return name, given, f"{FAILED}: {why}"


def _complete_one(work: Work, subject: Subject) -> str:
    """What was done for `subject`, in a few words: its answers are in the target."""
    trained = work.trained
    _check_modalities(subject, trained.space.modalities)
    results = results_of(trained, work.layout, subject, work.order, work.facts)
    preview = work.target / "previews" / f"{subject.name}.png"
    check_preview(preview)
    whole = finished(work.target, results, work.order.overwrite)
    if whole and preview.is_file():
        return "there already"
    _check_spacing(trained, subject)
    prepared = prepare_subject(subject, trained.space.modalities, trained.space.view)
    z = np.flatnonzero(prepared.brain.any(axis=(1, 2)))
    shown = False
    for kind, images in _answers(work, subject.name, prepared, z):
        if not shown:
            write_preview(preview, preview_of(trained, subject, prepared, images, z))
            shown = True
        own = [result for result in results if result.kind == kind]
        _write(work, own, prepared, z, images)
    return "synthesised " + ", ".join(dict.fromkeys(r.modality for r in results))


def _answers(
    work: Work, name: str, prepared: Prepared, z: Array
) -> Iterator[tuple[str, Images]]:
    """The slices `z` of each kind of result, [S, H, W, M]: what is shown comes first.

    All draws share one evaluation of the network for the mean.
    """
    order, modalities = work.order, work.trained.space.modalities
    images = network_slices(prepared, modalities, z)
    absent = np.array([name not in prepared.scales for name in modalities])
    missing = np.tile(absent, (len(z), 1))
    mean = _finite(name, work.mean(images, missing, slice_addresses(name, z, draw=0)))
    if order.sampler == "mean":
        yield "", mean
        return
    draws = []
    for draw, kind in enumerate(draw_kinds(order)):
        addresses = slice_addresses(name, z, draw=draw)
        drawn = _finite(name, work.answer(images, missing, addresses, mean))
        yield kind, drawn
        draws.append(drawn[..., absent])
    if order.draws > 1:
        yield "mean", mean
        for kind, values in _spread(np.stack(draws), order.levels).items():
            summary = np.zeros_like(images)
            summary[..., absent] = values
            yield kind, summary


def _spread(draws: Array, levels: tuple[float, ...]) -> dict[str, Array]:
    """Standard deviation and quantiles of draws [K, S, ...], each [S, ...], by kind.

    A quantile that so few draws do not reach is that of Student's prediction interval.
    """
    kinds = ["sd", *map(quantile_kind, levels)]
    slabs = [
        _of_slab(draws[:, z : z + SLAB], levels) for z in range(0, draws.shape[1], SLAB)
    ]
    return dict(zip(kinds, np.concatenate(slabs, axis=1), strict=True))


def _of_slab(draws: Array, levels: tuple[float, ...]) -> Array:
    sd = np.std(draws, axis=0, ddof=1, dtype=np.float64)
    return np.stack([sd, *(quantile(draws, level) for level in levels)])


def _finite(name: str, images: Images) -> Images:
    if not np.isfinite(images).all():
        raise FloatingPointError(
            f"subject {name}: the network's answer is not finite, so nothing was "
            "written; its checkpoint is of no use."
        )
    return images


def _write(
    work: Work,
    results: Sequence[Result],
    prepared: Prepared,
    z: Array,
    images: Images,
) -> None:
    """The target holds the `results` that the slices [S, H, W, M] at `z` are."""
    units = units_of(work.trained, prepared)
    for result in results:
        channel = work.trained.space.modalities.index(result.modality)
        own, slices = units[result.modality], images[..., channel]
        about = result.identity | _about(work, prepared) | {"units": own}
        if result.kind != "sd":
            slices = np.clip(slices, *own["range"])
        volume = volume_of(prepared, z, slices, own["scale"])
        path = work.target / result.path
        write_result(path, volume, prepared.case.geometry, about)


def _check_modalities(subject: Subject, modalities: tuple[str, ...]) -> None:
    """The subject has something that the network knows, and nothing else."""
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


def _check_spacing(trained: Trained, subject: Subject) -> None:
    """Voxels are as large as those trained on, where they are not resampled."""
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


def _about(work: Work, prepared: Prepared) -> dict:
    step = prepared.window.step
    return {
        "checkpoint_step": work.trained.step,
        "not_used": list(work.order.ignored),
        "grid_of": prepared.case.geometry.path.name,
        "voxels_per_pixel": list(step),  # 1, 1: not resampled
    }
