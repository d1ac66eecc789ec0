"""The command `complete`: a checkpoint and subjects -> NIfTI files on the subjects' own grid.

A subject that cannot be completed is reported and the rest go on; a finished one is not
made again. The next subject is read, and the last output written, while one is computed.
"""

import csv
import io
import pathlib
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ummcsgm.config import build, build_data
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.layout import Layout, Subject
from ummcsgm.data.subjects import PreparedSubject, network_brain
from ummcsgm.distributed import processes
from ummcsgm.inference.acquisition_value import expected_gains, gains_table
from ummcsgm.inference.budget import within_budget
from ummcsgm.inference.inputs import SubjectInputs, check_modalities, find_incomplete, load_inputs
from ummcsgm.inference.outputs import (
    CompletionOptions,
    OutputFile,
    all_finished,
    check_options,
    output_files,
    output_units,
    output_volume,
    write_output,
)
from ummcsgm.inference.predictor import TrainedModel, load_trained_model, sampler_facts
from ummcsgm.inference.subject_posterior import SubjectPosterior, load_posterior, posterior_outputs
from ummcsgm.reporting.figures import Preview, check_preview, write_preview
from ummcsgm.types import Config, Images, InputError
from ummcsgm.utils.atomic_io import write_atomic
from ummcsgm.utils.progress import print_table, progress_bar

FAILED = "FAILED"
SUBJECT_ERRORS = (InputError, FloatingPointError, OSError)  # fail one subject, not the run


@dataclass(frozen=True)
class CompletionJob:
    """What completing every subject needs."""

    trained: TrainedModel
    posterior: SubjectPosterior
    sampling: EvaluationOptions  # decides how draws are made
    options: CompletionOptions
    layout: Layout  # of the subjects
    target: pathlib.Path


class LoadedSubject(NamedTuple):
    """A subject that was read, and the files to write for it."""

    subject: Subject
    files: Sequence[OutputFile]
    prepared: PreparedSubject
    inputs: SubjectInputs


def complete(
    workdir: pathlib.Path,
    config: Config | None,
    folders: tuple[str | None, str | None],
    options: CompletionOptions,
    part: tuple[int, int],
) -> bool:
    """Writes every missing modality of the subjects in a source folder to a target folder.

    `folders` are (source, target); the source is one subject's folder or a folder of
    subjects, of which this process takes every n-th from the k-th on, `part` being (k, n).
    A subject's missing modalities are those without a file, and `options.missing`. Each is
    written on the input's grid, with its affine, header and type, background 0, with a
    JSON file beside it; previews/SUBJECT.png shows a slice. The seed and the steps of a
    draw come from `config`, or from the checkpoint's if it is None; the rho of draws is
    the one that `evaluate` fitted for this checkpoint, if it did.

    With `options.rank_acquisitions` no volume is written: a table, and advice/SUBJECT.csv in the
    target, say what acquiring each missing modality is expected to do.

    Returns whether every subject is completed; a table says which are not.

    Raises:
        InputError: the flags or the checkpoint do not allow it, or no subject lacks
            a modality.
    """
    source, target = folders
    if not source or not target:
        raise InputError(f"--{'output' if source else 'input'} is missing.")
    target = pathlib.Path(target)
    trained = load_trained_model(workdir)
    check_options(options, trained.space.modalities)
    config = build_data.compatible_config(config, trained.config, workdir)
    sampling = build.build_evaluation_options(config)
    unused = (*options.missing, *options.ignored)
    found = find_incomplete(trained, pathlib.Path(source), unused)
    if options.budget_seconds is not None and found.subjects:
        # The first process of a job measures for all.
        requested = options if processes.is_main() else replace(options, overwrite=False)
        chosen = processes.main_process_first(
            lambda: within_budget(requested, trained, sampling, found.subjects, target)
        )
        options = replace(chosen, overwrite=options.overwrite)
    posterior = load_posterior(workdir, trained, options.sampler, sampling)
    job = CompletionJob(trained, posterior, sampling, options, found.layout, target)
    results = _complete_all(job, found.subjects[part[0] :: part[1]])
    if part[0] == 0:  # the first process reports what no process can complete
        results += [_failed(name, "", why) for name, why in found.problems.items()]
    title = "Advice" if options.rank_acquisitions else "Completed subjects"
    print_table(title, ("subject", "given", "result"), results)
    return not any(result.startswith(FAILED) for _, _, result in results)


def _complete_all(job: CompletionJob, subjects: Sequence[Subject]) -> list[tuple[str, str, str]]:
    """(name, modalities given, result) of each subject."""
    results = []
    with (
        progress_bar("completing") as report,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        reading: deque[Future] = deque()
        writing: deque[tuple[Subject, Future]] = deque()

        def finish_first() -> None:
            results.append(_result(job, *writing.popleft()))
            report(len(results), len(subjects))

        for index, subject in enumerate(subjects):
            ahead = subjects[index + len(reading) : index + 2]
            reading += [reader.submit(_load_subject, job, following) for following in ahead]
            writing.append((subject, _complete_subject(job, reading.popleft(), writer)))
            while len(writing) > 1 or (writing and writing[0][1].done()):
                finish_first()
        while writing:
            finish_first()
    return results


def _result(job: CompletionJob, subject: Subject, outcome: Future) -> tuple[str, str, str]:
    given = ", ".join(name for name in job.layout.suffixes if name in subject.files)
    try:
        return subject.name, given, outcome.result()
    except SUBJECT_ERRORS as error:
        return _failed(subject.name, given, str(error))


def _failed(name: str, given: str, why: str) -> tuple[str, str, str]:
    print(f"ummcsgm: {why}", file=sys.stderr, flush=True)
    return name, given, f"{FAILED}: {why}"


def _load_subject(job: CompletionJob, subject: Subject) -> LoadedSubject | None:
    """The subject, read from its files; None if all its outputs are finished."""
    trained, options, files = job.trained, job.options, []
    check_modalities(trained, subject.name, subject.files)
    if not options.rank_acquisitions:
        facts = _sampler_facts(job, subject)
        files = output_files(trained, job.layout, subject, options, facts)
        preview = _preview_path(job, subject)
        check_preview(preview)
        if all_finished(job.target, files, options.overwrite) and preview.is_file():
            return None
    return LoadedSubject(subject, files, *load_inputs(trained, subject))


def _sampler_facts(job: CompletionJob, subject: Subject) -> dict:
    """The seed, and how the subject's missing modalities are drawn."""
    missing = np.array([name not in subject.files for name in job.trained.space.modalities])
    rho = job.posterior.rho
    facts = sampler_facts(job.options.sampler, job.trained, job.sampling, rho, missing)
    return {"seed": job.sampling.seed, **facts}


def _complete_subject(job: CompletionJob, loading: Future, writer: Executor) -> Future:
    """Computes a subject's outputs; returns the future of what was done, in words.

    An output is written while the next one is computed, and after the one before it.
    """
    outcome: Future = Future()
    try:
        loaded = loading.result()
        if loaded is None:
            outcome.set_result("there already")
        elif job.options.rank_acquisitions:
            outcome.set_result(_rank_acquisitions(job, loaded))
        else:
            last = None
            for kind, images in posterior_outputs(job.posterior, loaded.inputs, job.options):
                if last is not None:
                    last.result()
                last = writer.submit(_write_kind, job, loaded, kind, images, last is None)
            return last
    except SUBJECT_ERRORS as error:
        outcome.set_exception(error)
    return outcome


def _write_kind(
    job: CompletionJob, loaded: LoadedSubject, kind: str, images: Images, preview: bool
) -> str:
    """Writes the subject's outputs [S, H, W, M] of one kind, and their preview if asked."""
    trained, prepared, z = job.trained, loaded.prepared, loaded.inputs.z
    if preview:
        write_preview(_preview_path(job, loaded.subject), _preview(trained, loaded, images))
    units = output_units(trained, prepared)
    for file in loaded.files:
        if file.kind != kind:
            continue
        slices = images[..., trained.space.modalities.index(file.modality)]
        volume = output_volume(prepared, z, slices, units[file.modality], kind)
        facts = file.identity | {
            "checkpoint_step": trained.step,
            "not_used": list(job.options.ignored),
            "grid_of": prepared.geometry.path.name,
            "voxels_per_pixel": list(prepared.window.step),  # 1, 1: not resampled
            "units": units[file.modality],
        }
        write_output(job.target / file.path, volume, prepared.geometry, facts)
    return "synthesised " + ", ".join(dict.fromkeys(file.modality for file in loaded.files))


def _preview_path(job: CompletionJob, subject: Subject) -> pathlib.Path:
    return job.target / "previews" / f"{subject.name}.png"


def _preview(trained: TrainedModel, loaded: LoadedSubject, images: Images) -> Preview:
    """The axial slice with the most brain, of all modalities."""
    prepared, z = loaded.prepared, loaded.inputs.z
    index = int(np.argmax(prepared.brain[z].sum(axis=(1, 2))))
    brain = network_brain(prepared, z[index : index + 1])[0]
    shown = np.moveaxis(images[index] * brain[..., None], -1, 0)
    title = f"{loaded.subject.name}, axial slice {z[index]}"
    return Preview(title, trained.space.modalities, shown, tuple(loaded.inputs.missing.tolist()))


def _rank_acquisitions(job: CompletionJob, loaded: LoadedSubject) -> str:
    """Writes advice/SUBJECT.csv: which missing modality to acquire first."""
    modalities, inputs, name = job.trained.space.modalities, loaded.inputs, loaded.subject.name
    if inputs.missing.sum() < 2:
        (only,) = np.array(modalities)[inputs.missing]
        return f"{only} alone is missing: nothing to choose from"
    brain = network_brain(loaded.prepared, inputs.z)
    gains = expected_gains(job.posterior, inputs, brain, modalities, job.options.draws)
    text, (title, *rows) = io.StringIO(), gains_table(gains)
    csv.writer(text).writerows([title, *rows])
    write_atomic(job.target / "advice" / f"{name}.csv", text.getvalue())
    print_table(f"What acquiring one tells of {name}", title, rows)
    return f"{gains[0].acquired} first: {gains[0].share:.0%} of the variance is expected to go"
