"""Checkpoint + subjects -> NIfTI files on their inputs' own grid.

Every subject stands for itself: one that cannot be completed is reported and the rest
go on; one that is finished is not made again. The next subject is read, and the last
answer written, while one is computed.
"""

import csv
import io
import pathlib
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ummcsgm.config import build, build_data
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.naming import Layout, Subject
from ummcsgm.data.subjects import PreparedSubject, prepare_subject
from ummcsgm.distributed import devices
from ummcsgm.inference.acquisition_value import expected_gains, told
from ummcsgm.inference.budget import within_budget
from ummcsgm.inference.intake import check_modalities, check_spacing, find_lacking
from ummcsgm.inference.outputs import preview_of, units_of, volume_of
from ummcsgm.inference.overlap import prefetch
from ummcsgm.inference.predictor import (
    TrainedModel,
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    read_calibration,
    sampler_facts,
)
from ummcsgm.inference.results import (
    CompletionOptions,
    OutputFile,
    check_order,
    finished,
    output_files,
    write_result,
)
from ummcsgm.inference.subject_posterior import Posterior, Question, answers, question_of
from ummcsgm.reporting.figures import check_preview, write_preview
from ummcsgm.types import Config, Images, InputError
from ummcsgm.utils.atomic_io import write_atomic
from ummcsgm.utils.console import print_table
from ummcsgm.utils.progress import progress_bar

FAILED = "FAILED"
ITS_OWN = (InputError, FloatingPointError, OSError)  # errors that stay with a subject


@dataclass(frozen=True)
class Work:
    """All that completing one subject after another needs."""

    trained: TrainedModel
    posterior: Posterior
    facts: dict  # of the sampler: its steps, the seed
    fits: dict[str, dict]  # by modality: the factor on the spread of its draws
    order: CompletionOptions
    layout: Layout  # of the subjects
    target: pathlib.Path


class Intake(NamedTuple):
    """One subject that was read, and what of it is to be answered."""

    subject: Subject
    results: Sequence[OutputFile]
    prepared: PreparedSubject
    question: Question


def complete(
    workdir: pathlib.Path,
    config: Config | None,
    folders: tuple[str | None, str | None],
    order: CompletionOptions,
    part: tuple[int, int],
) -> bool:
    """Every missing modality of the subjects in a source lies under a target.

    `folders` are (source, target); the source is one subject's folder or a folder of
    subjects, of which this process takes every n-th from the k-th on, `part` being
    (k, n). A subject's missing modalities are those without a file, and those of
    `order.missing`. Each is written on the input's grid, with its affine, header and
    type, background 0, with a JSON file beside it; previews/SUBJECT.png shows a slice.
    The seed and the steps of a draw are told by `config`, if it is given, else by the
    config in the checkpoint. Draws are respread by the factors, and their slices go
    together by the rho, that `evaluate` fitted for this checkpoint, if it did.

    Where `order.advise`, nothing is drawn for keeps: a table, and advice/SUBJECT.csv in
    the target, tell what acquiring each missing modality is expected to do.

    Returns whether every subject has what it should; a table tells which have not.

    Raises:
        InputError: the flags or the checkpoint do not allow it, or no subject lacks
            a modality.
    """
    source, target = folders
    if not source or not target:
        raise InputError(f"--{'output' if source else 'input'} is missing.")
    trained = load_trained_model(workdir)
    check_order(order, trained.space.modalities)
    scoring = build.build_evaluation_options(
        build_data.compatible_config(config, trained.config, workdir)
    )
    found = find_lacking(trained, pathlib.Path(source), order)
    subjects = found.subjects[part[0] :: part[1]]
    if order.seconds is not None and found.subjects:
        known = (trained, scoring, found.subjects, pathlib.Path(target))
        order = _bought(order, *known)
    work = _set_to(workdir, trained, scoring, order, found.layout, pathlib.Path(target))
    rows = _all(work, subjects)
    if part[0] == 0:  # what no process can complete is told by the first
        rows += [_failed(name, "", why) for name, why in found.refused.items()]
    what = "Advice" if order.advise else "Completed subjects"
    print_table(what, ("subject", "given", "result"), rows)
    return not any(done.startswith(FAILED) for _, _, done in rows)


def _bought(order: CompletionOptions, *known: Any) -> CompletionOptions:
    """`within_budget`, which the first process of a job measures for all."""
    asked = order if devices.is_main() else replace(order, overwrite=False)
    bought = devices.main_process_first(lambda: within_budget(asked, *known))
    return replace(bought, overwrite=order.overwrite)


def _set_to(
    workdir: pathlib.Path,
    trained: TrainedModel,
    scoring: EvaluationOptions,
    order: CompletionOptions,
    layout: Layout,
    target: pathlib.Path,
) -> Work:
    fits, rho = read_calibration(workdir, trained, order.sampler, scoring)
    factors = [fits[m]["factor"] if m in fits else 1.0 for m in trained.space.modalities]
    mean, draws = make_mean_predictor(trained, scoring), None
    if order.sampler != "mean":
        draws = make_sampler(trained, order.sampler, scoring, rho=rho)
    own = sampler_facts(order.sampler, trained, scoring, rho)
    facts = {"seed": scoring.seed, **own}
    posterior = Posterior(mean, draws, np.array(factors))
    return Work(trained, posterior, facts, fits, order, layout, target)


def _all(work: Work, subjects: Sequence[Subject]) -> list[tuple]:
    """Name, what was given and what came of it, of each subject."""
    rows = []
    with (
        progress_bar("completing") as report,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):

        def settle(subject: Subject, outcome: Future) -> None:
            rows.append(_row(work, subject, outcome))
            report(len(rows), len(subjects))

        waiting: deque[tuple[Subject, Future]] = deque()
        reads = prefetch(reader, partial(_read_one, work), subjects)
        for subject, read in zip(subjects, reads, strict=True):
            waiting.append((subject, _outcome(work, read, writer)))
            while len(waiting) > 1 or (waiting and waiting[0][1].done()):
                settle(*waiting.popleft())
        for subject, outcome in waiting:
            settle(subject, outcome)
    return rows


def _outcome(work: Work, read: Future, writer: Executor) -> Future:
    """A future of what was done for a subject, in a few words: with the last of its
    answers still to be written."""
    outcome: Future = Future()
    try:
        taken = read.result()
        if taken is None:
            outcome.set_result("there already")
        elif work.order.advise:
            outcome.set_result(_advise_one(work, taken))
        else:
            return _complete_one(work, taken, writer)
    except ITS_OWN as error:
        outcome.set_exception(error)
    return outcome


def _row(work: Work, subject: Subject, outcome: Future) -> tuple[str, str, str]:
    own = [name for name in work.layout.words if name in subject.files]
    given = ", ".join(own)
    try:
        return subject.name, given, outcome.result()
    except ITS_OWN as error:
        return _failed(subject.name, given, str(error))


def _failed(name: str, given: str, why: str) -> tuple[str, str, str]:
    print(f"ummcsgm: {why}", file=sys.stderr, flush=True)
    return name, given, f"{FAILED}: {why}"


def _read_one(work: Work, subject: Subject) -> Intake | None:
    """What `subject` asks, read from its files; None if its answers are there."""
    trained = work.trained
    check_modalities(trained, subject)
    results = ()
    if not work.order.advise:
        facts = (work.facts, work.fits)
        results = output_files(trained, work.layout, subject, work.order, *facts)
        preview = _preview(work, subject)
        check_preview(preview)
        if finished(work.target, results, work.order.overwrite) and preview.is_file():
            return None
    check_spacing(trained, subject)
    prepared = prepare_subject(subject, trained.space.modalities, trained.space.view)
    question = question_of(subject.name, prepared, trained.space.modalities)
    return Intake(subject, results, prepared, question)


def _preview(work: Work, subject: Subject) -> pathlib.Path:
    return work.target / "previews" / f"{subject.name}.png"


def _complete_one(work: Work, taken: Intake, writer: Executor) -> Future:
    """The target will hold the answers of a subject: the future says so, in words.

    An answer is written while the next one is computed, and not before the one before
    it was written.
    """
    modalities = dict.fromkeys(result.modality for result in taken.results)
    words, last = "synthesised " + ", ".join(modalities), None
    for kind, images in answers(work.posterior, taken.question, work.order):
        if last is not None:
            last.result()
        shown = last is None  # what is answered first
        last = writer.submit(_write, work, taken, kind, images, shown, words)
    return last


def _write(work: Work, taken: Intake, kind: str, images: Images, shown: bool, words: str) -> str:
    """`words`, when the target holds the results of a `kind`, which the answers
    [S, H, W, M] are; and the preview of them, if they are `shown`."""
    subject, results, prepared, question = taken
    if shown:
        about = (work.trained, subject, prepared, images, question.z)
        write_preview(_preview(work, subject), preview_of(*about))
    units = units_of(work.trained, prepared)
    for result in (one for one in results if one.kind == kind):
        channel = work.trained.space.modalities.index(result.modality)
        own, slices = units[result.modality], images[..., channel]
        about = result.identity | _about(work, prepared) | {"units": own}
        if result.kind != "sd":
            slices = np.clip(slices, *own["range"])
        volume = volume_of(prepared, question.z, slices, own["scale"])
        path = work.target / result.path
        write_result(path, volume, prepared.case.geometry, about)
    return words


def _about(work: Work, prepared: PreparedSubject) -> dict:
    step = prepared.window.step
    return {
        "checkpoint_step": work.trained.step,
        "not_used": list(work.order.ignored),
        "grid_of": prepared.case.geometry.path.name,
        "voxels_per_pixel": list(step),  # 1, 1: not resampled
    }


def _advise_one(work: Work, taken: Intake) -> str:
    """Which scan to acquire: advice/SUBJECT.csv in the target has a row for each."""
    modalities = work.trained.space.modalities
    subject, _, prepared, question = taken
    if question.missing.sum() < 2:
        (only,) = set(modalities) - set(prepared.scales)
        return f"{only} alone is missing: nothing to choose from"
    known = (work.posterior, question, prepared, modalities)
    gains = expected_gains(*known, work.order.draws)
    text, (title, *rows) = io.StringIO(), told(gains)
    csv.writer(text).writerows([title, *rows])
    write_atomic(work.target / "advice" / f"{subject.name}.csv", text.getvalue())
    print_table(f"What acquiring one tells of {subject.name}", title, rows)
    best = gains[0]
    return f"{best.acquired} first: {best.share:.0%} of the variance is expected to go"
