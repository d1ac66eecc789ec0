"""All methods of a study before the segmentation network, on a run made small."""

import json

import numpy as np
import pytest
from test_downstream import tumour
from tiny_run import AFFINE, MODALITIES, brain, tiny_config, write_subjects

from ummcsgm.config import build, preparation
from ummcsgm.config.courses import SEGMENTER, method_folder
from ummcsgm.data.nifti import read_volume, write_new
from ummcsgm.diffusion.missingness import missing_patterns
from ummcsgm.evaluation.contest import Contest
from ummcsgm.inference.predictor import load_trained_model
from ummcsgm.study import usefulness
from ummcsgm.study.downstream import load_segmenter
from ummcsgm.study.rivals import load_rival
from ummcsgm.study.train_methods import train_method
from ummcsgm.study.usefulness import Trial, downstream_of, filled_by

pytestmark = pytest.mark.usefixtures("quick_compile")

LACKING = "P5"  # has no segmentation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, config, contest): the mm-CSN, regression and segmenter, all trained;
    one of the test subjects has no segmentation."""
    root = tmp_path_factory.mktemp("study")
    folder = write_subjects(root / "subjects")
    config = tiny_config(
        folder,
        data__labels=True,
        data__split=(2, 0, 3),
        train__steps=4,
        study__segmenter_steps=4,
        study__methods=("regression",),
        study__width_scale=(1.0,),
        study__lr_scale=(1.0,),
        study__patterns_per_image=(1,),
        evaluate__draw_subjects=3,
        evaluate__draw_slices=1,
    )
    workdir = root / "run"
    cohort, _ = preparation.prepare(without_labels(config), root / "split")
    tested = cohort.split["test"]
    for name in sum(cohort.split.values(), []):
        if name != tested[-1]:
            group = "HGG" if int(name[1:]) % 2 else "LGG"
            path = folder / group / name / f"{name}_seg.nii.gz"
            write_new(path, tumour(), AFFINE)
    train_method(config, workdir)
    train_method(config, workdir, method="regression")
    train_method(config, workdir, method=SEGMENTER)
    cohort, _ = preparation.prepare(config, workdir)
    subjects = [cohort.subjects[name] for name in tested]
    table = missing_patterns(len(MODALITIES), proper=True)
    scoring, space = build.build_evaluation_options(config), build.build_space(config)
    single = table[table.sum(axis=1) == 1]
    return workdir, config, Contest(space, scoring, single, subjects, 2)


def without_labels(config):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({"data.labels": False, "study.segmenter_steps": 0})
    return config


@pytest.fixture(scope="module")
def found(run):
    workdir, config, contest = run
    return downstream_of(workdir, config, contest, load_trained_model(workdir))


def test_every_method_is_there_with_every_modality_and_region(found):
    """Of three test subjects two have a segmentation."""
    keys = [(r["method"], r["modality"], r["region"]) for r in found["rows"]]
    assert keys == [
        (method, modality, region)
        for method in ("mm-csn", "regression", "zeros", "truth")
        for modality in MODALITIES
        for region in ("WT", "TC", "ET")
    ]
    assert {row["subjects"] for row in found["rows"]} == {2}
    json.dumps(found)


def test_the_truth_is_the_same_whatever_it_replaces(found):
    dices = {}
    for row in found["rows"]:
        dices.setdefault((row["method"], row["region"]), set()).add(row["dice"])
    assert all(len(own) == 1 for key, own in dices.items() if key[0] == "truth")


def test_a_method_s_records_are_of_its_own_answers(run, found):
    """As computed here by hand, for one subject and one modality."""
    workdir, config, contest = run
    segment = load_segmenter(workdir, config)
    rival = load_rival(method_folder(workdir, "regression"))
    subject = contest.subjects[0]
    trial = Trial(workdir, contest, segment)
    prepared, patient = trial.seen(subject)
    answer = filled_by(rival.answer, prepared, patient)(2)
    assert np.array_equal(answer[..., 0], patient.images[..., 0])
    assert not np.array_equal(answer[..., 2], patient.images[..., 2])
    images = patient.images.copy()
    images[..., 2] = answer[..., 2] * patient.brain
    whole = 1 - segment(images)[..., 0] > 0.5
    (record,) = (
        r
        for r in found["records"]
        if (r["subject"], r["method"]) == (subject.name, "regression")
        and (r["modality"], r["region"]) == (MODALITIES[2], "WT")
    )
    assert abs(record["predicted"] - whole.sum()) <= 1  # 0.5 is met by rounding
    assert record["voxels"] == 3 * 30


def test_the_maps_of_the_first_subject_are_written_and_no_others(run, found):
    workdir, _, contest = run
    files = sorted((workdir / "study" / "segmentation").glob("*.nii.gz"))
    first = contest.subjects[0]
    assert [f.name for f in files] == sorted(
        f"{first.name}_without-{modality}_{region}-probability.nii.gz"
        for modality in MODALITIES
        for region in ("WT", "TC", "ET")
    )
    volumes = [read_volume(file)[0] for file in files]
    for et, tc, wt in zip(volumes[::3], volumes[1::3], volumes[2::3], strict=True):
        assert 0 < wt.max() <= 1
        assert (tc <= wt + 2e-3).all() and (et <= tc + 2e-3).all()


def test_maps_are_judged_of_the_draws_the_mean_and_the_truth(found):
    """In one slice of either subject, though the first is drawn in all five."""
    keys = {(r["map"], r["modality"], r["region"]) for r in found["maps"]}
    assert len(keys) == len(found["maps"]) == 3 * len(MODALITIES) * 3
    assert {row["subjects"] for row in found["maps"]} == {2}
    in_a_slice = brain()[..., 1].sum()
    for row in found["maps"]:
        voxels = sum(each["voxels"] for each in row["table"])
        assert voxels == (1 + 1) * in_a_slice
        assert 0 <= row["brier"] <= 1


def test_what_is_known_is_not_asked_again(run, found, monkeypatch):
    workdir, config, contest = run

    def refuse(*_):
        raise AssertionError("a finished subject was asked again")

    monkeypatch.setattr(usefulness, "examine", refuse)
    monkeypatch.setattr(usefulness, "examine_maps", refuse)
    again = downstream_of(workdir, config, contest, load_trained_model(workdir))
    assert json.dumps(again) == json.dumps(found)


def test_without_a_segmenter_there_is_nothing(run, tmp_path, capsys):
    workdir, config, contest = run
    trained = load_trained_model(workdir)
    assert downstream_of(tmp_path, config, contest, trained) is None
    assert "segmenter is not in" in capsys.readouterr().out
    none = without_labels(config)
    assert downstream_of(workdir, none, contest, trained) is None
