"""What every method of a study is worth downstream: the test subjects' tumours.

Each method fills in one modality at a time in all slices of all test subjects with a
segmentation; of the mm-CSN also the draws of some slices are segmented.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from ummcsgm.config.build import build_downstream
from ummcsgm.config.build_methods import MM_CSN, build_method_names
from ummcsgm.config.courses import SEGMENTER, method_folder
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import PreparedSubject, network_stacks, prepare_subject
from ummcsgm.distributed import devices
from ummcsgm.evaluation.contest import Contest
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.marks import Marks, digest_of, kept
from ummcsgm.evaluation.protocols import TABLE1, scored_slices
from ummcsgm.evaluation.sitting import spread
from ummcsgm.inference.predictor import (
    TrainedModel,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.study.downstream import (
    Fill,
    Patient,
    examine,
    keep,
    load_segmenter,
    patient_of,
    summary,
)
from ummcsgm.study.rivals import Rival, load_rival, mm_csn_mean
from ummcsgm.study.tumour_maps import examine_maps, map_summary, write_maps
from ummcsgm.training import checkpoint
from ummcsgm.types import Array, Config

NOTE = (
    "A segmentation network that was trained on real images of all modalities, with "
    "one of them replaced; in all slices with brain, on the network's grid. Dice is "
    "that of subjects who have the region."
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Who is segmented, by what, and where what comes of it is kept."""

    folder: pathlib.Path
    contest: Contest
    segment: Callable  # a `downstream.Trained`

    @property
    def view(self) -> dict:
        """What the networks are shown of a slice."""
        return dataclasses.asdict(self.contest.space.view)

    def seen(self, subject: Subject) -> tuple[PreparedSubject, Patient | None]:
        """The subject as it is read, and as the segmentation network sees it."""
        space = self.contest.space
        prepared = prepare_subject(subject, space.modalities, space.view)
        return prepared, patient_of(subject, prepared, space.modalities)


def downstream_of(
    workdir: pathlib.Path, config: Config, contest: Contest, trained: TrainedModel
) -> dict | None:
    """The study's `downstream`: rows of `summary` of all methods that were trained in
    the workdir, a note, the `records` they are means of, and the `maps` of
    `map_summary`; None where the config asks for none or the network is not trained.

    WORKDIR/study/segmentation has the maps of one subject.
    """
    place = method_folder(workdir, SEGMENTER)
    if not build_downstream(config):
        return None
    if checkpoint.latest_step(place) is None:
        print(f"study: {SEGMENTER} is not in {place} yet", flush=True)
        return None
    trial = Trial(place / "parts", contest, load_segmenter(workdir, config))
    records = []
    for rival in _rivals(workdir, config, trained):
        fill = functools.partial(filled_by, rival.answer)
        records += try_method(trial, rival.name, rival.digest, fill)
    for name in ("zeros", "truth"):
        records += try_method(trial, name, "", functools.partial(_reference, name))
    maps = try_draws(trial, trained, workdir / "study" / "segmentation")
    told = {"rows": summary(records), "note": NOTE}
    return told | {"records": records, "maps": map_summary(maps)}


def _rivals(workdir: pathlib.Path, config: Config, trained: TrainedModel) -> Iterator[Rival]:
    """All methods that were trained, one in memory at a time."""
    yield mm_csn_mean(trained, MM_CSN, "mm-CSN", "")
    for name in build_method_names(config):
        place = method_folder(workdir, name)
        if checkpoint.latest_step(place) is not None:
            yield load_rival(place)


def _reference(name: str, prepared: PreparedSubject, patient: Patient) -> Fill:
    return patient.references()[name]


def filled_by(answer: Callable, prepared: PreparedSubject, patient: Patient) -> Fill:
    """The slices of a patient as `answer(images, missing)` fills them.

    What the patient was never scanned with is missing, too.
    """
    stacks = network_stacks(prepared, patient.modalities, patient.z)
    return lambda channel: answer(stacks, missing_of(patient, channel))


def missing_of(patient: Patient, channel: int) -> Array:
    """[S, M] what is missing in each slice with one modality left out."""
    missing = ~patient.present
    missing[channel] = True
    return np.tile(missing, (len(patient.z), 1))


def try_method(
    trial: Trial, name: str, digest: str, fill_of: Callable[[PreparedSubject, Patient], Fill]
) -> list[dict]:
    """The records of `downstream.examine` of all test subjects with a segmentation.

    Each subject's are kept, and found there again; the processes of a job share them.
    """
    subjects = trial.contest.subjects

    def one(place: int) -> list[dict]:
        subject = subjects[place]

        def ask() -> list[dict]:
            prepared, patient = trial.seen(subject)
            if patient is None:
                return []
            own = fill_of(prepared, patient)
            return examine(trial.segment, patient, name, own)

        print(f"downstream: {name}, {place + 1}/{len(subjects)}", flush=True)
        path = trial.folder / name / f"{subject.name}.npz"
        own = [trial.segment.digest, name, digest, trial.view]
        return keep(path, own, subject, ask)

    return [record for own in devices.map_across_processes(one, len(subjects)) for record in own]


def try_draws(trial: Trial, trained: TrainedModel, folder: pathlib.Path) -> list[dict]:
    """The records of `tumour_maps.examine_maps`, of as many subjects, slices and draws
    as the mm-CSN's posterior is measured with.

    The first subject with a tumour segmentation is drawn in all slices with brain, and
    its maps are in `folder`, as NIfTI.
    """
    scoring, subjects = trial.contest.scoring, trial.contest.subjects
    known = [one for one in subjects if one.segmentation is not None]
    known = known[: scoring.draw_subjects or None]
    key = digest_of(trial.segment.digest, trained.digest, dataclasses.asdict(scoring), trial.view)
    predict_mean = make_mean_predictor(trained, scoring)
    sample = make_sampler(trained, SAMPLER, scoring)

    def one(place: int) -> Marks:
        subject = known[place]
        ask = functools.partial(_draw, trial, predict_mean, sample, subject, place == 0)
        print(f"downstream: draws, {place + 1}/{len(known)}", flush=True)
        path = trial.folder / "draws" / f"{subject.name}.npz"
        own = [key, place == 0, subject.segmentation.stat().st_mtime_ns]
        return kept(path, own, subject, ask)

    marks = devices.map_across_processes(one, len(known))
    if known and devices.is_main():
        _write(folder, trial, trained, known[0], marks[0].panels)
    return [record for own in marks for record in own.records]


def _draw(
    trial: Trial, predict_mean: Callable, sample: Callable, subject: Subject, whole: bool
) -> Marks:
    """The records of one subject; with `whole`, its maps in all slices, too."""
    prepared, patient = trial.seen(subject)
    z = scored_slices(prepared.brain, TABLE1)
    some = patient.at(spread(z, trial.contest.scoring.draw_slices))
    records, _ = _mapped(trial, predict_mean, sample, prepared, some)
    maps = _mapped(trial, predict_mean, sample, prepared, patient)[1] if whole else {}
    return Marks([], records, maps, {})


def _mapped(
    trial: Trial,
    predict_mean: Callable,
    sample: Callable,
    prepared: PreparedSubject,
    patient: Patient,
) -> tuple[list[dict], dict[str, Array]]:
    """(records, maps by the modality that is replaced) of a patient's slices."""
    scoring = trial.contest.scoring
    stacks = network_stacks(prepared, patient.modalities, patient.z)
    records, panels = [], {}
    for channel in patient.asked():
        missing = missing_of(patient, channel)
        each = [slice_addresses(patient.name, patient.z, draw=k) for k in range(scoring.draws)]
        told = predict_mean(stacks, missing)
        # One draw at a time: each fills its own microbatches.
        draws = (next(sample(stacks, missing, own[None], told)) for own in each)
        own, maps = examine_maps(trial.segment, patient, channel, draws, told.mean)
        records += own
        panels[patient.modalities[channel]] = maps.astype(np.float16)
    return records, panels


def _write(
    folder: pathlib.Path, trial: Trial, trained: TrainedModel, subject: Subject, maps: dict
) -> None:
    prepared, patient = trial.seen(subject)
    scoring = trial.contest.scoring
    about = {
        "sampler": SAMPLER,
        "draws": scoring.draws,
        "seed": scoring.seed,
        "parameters_sha256": trained.digest,
        "segmenter_sha256": trial.segment.digest,
    }
    for missing, own in maps.items():
        write_maps(folder, prepared, patient, own, {"missing": missing} | about)
