"""The command `score`: a folder of predictions against truths under every profile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ummcsgm.config import build_data
from ummcsgm.data.layouts.find import SearchResult, find_subjects
from ummcsgm.evaluation import scoreboard
from ummcsgm.evaluation.pairs import Pairing, Prediction, pair
from ummcsgm.evaluation.subject_scores import Job, Outcome, score_subject
from ummcsgm.types import Config, InputError
from ummcsgm.utils.pool import map_in_processes
from ummcsgm.utils.progress import progress_bar


def score_folder(config: Config | None, folders: tuple[str | None, str | None, str | None]) -> bool:
    """Prints what predictions are worth under every profile; whether all of them
    matched and could be scored.

    `folders` are those of the predictions and the truth, and the one in which the
    scores are written, if any.

    Raises:
        InputError: a folder is not there, they are one, or nothing could be scored.
    """
    folder, source = _folder("predictions", folders[0]), _folder("truth", folders[1])
    if folder.resolve() == source.resolve():
        raise InputError("--predictions and --truth are the same folder.")
    if config is None:
        found = find_subjects(source, build_data.named_layouts())
    else:
        found = build_data.find_anywhere(config, source)
    pairing = pair(found, source, folder)
    processes = os.cpu_count() if config is None else build_data.build_processes(config)
    whole = _scored(_jobs(found, pairing), bool(found.layout.mask), processes)
    whole.failures[:0] = [f"{text}." for text in found.problems.values()]
    whole.failures[:0] = pairing.unmatched
    notes = _notes(found, pairing, whole)
    for sentence in [*whole.failures, *notes]:
        print(sentence, flush=True)
    if not whole.rows:
        raise InputError(
            f"nothing to score: no prediction in {folder} could be compared with a "
            f"scan in {source}."
        )
    summary = scoreboard.summarise(whole.rows, whole.skipped)
    scoreboard.show(f"Scores of {folder}", summary)
    if folders[2]:
        content = scoreboard.Board(whole.rows, whole.skipped, summary, whole.failures)
        scoreboard.write(Path(folders[2]), content, notes)
    return not whole.failures


def _folder(flag: str, value: str | None) -> Path:
    if not value:
        raise InputError(f"--{flag} is missing: name a folder of NIfTI files.")
    if not Path(value).is_dir():
        raise InputError(f"--{flag} is {value!r}: there is no such folder.")
    return Path(value)


def _jobs(found: SearchResult, pairing: Pairing) -> list[Job]:
    """The subjects that have predictions, each with these."""
    own: dict[str, list[Prediction]] = {}
    for prediction in pairing.predictions:
        own.setdefault(prediction.subject, []).append(prediction)
    return [(one, tuple(own[one.name])) for one in found.subjects if one.name in own]


def _scored(jobs: Sequence[Job], masked: bool, processes: int) -> Outcome:
    whole = Outcome()
    with progress_bar("scoring") if jobs else contextlib.nullcontext() as report:
        done = 0
        for one in map_in_processes(partial(score_subject, masked), jobs, processes):
            done += 1
            report(done, len(jobs))
            whole.rows += one.rows
            whole.skipped += one.skipped
            whole.failures += one.failures
            whole.copies += one.copies
    return whole


def _notes(found: SearchResult, pairing: Pairing, whole: Outcome) -> list[str]:
    """What is to be known and is no failure, a sentence each."""
    predicted = {one.subject for one in pairing.predictions}
    names = [one.name for one in found.subjects if one.name not in predicted]
    notes = []
    if names:
        some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        notes.append(f"no prediction for {len(names)} of {len(found.subjects)} subjects: {some}.")
    if whole.copies:
        notes.append(
            f"not scored: {len(whole.copies)} files that are the scan itself, voxel for"
            f" voxel, such as {whole.copies[0]}."
        )
    if pairing.others:
        notes.append(
            f"not scored: {len(pairing.others)} files that tell of a spread, or are no "
            f"scans, such as {pairing.others[0]}."
        )
    return notes
