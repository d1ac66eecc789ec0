"""What is read of a study's workdir, and what may be absent."""

import json
import math
import shutil

import numpy as np
import pytest
from made_study import METHODS, study_results, write_study

from ummcsgm.reporting.study_results import read_studies, read_study
from ummcsgm.types import InputError


def test_everything_in_the_workdir_is_read(tmp_path):
    study = read_study(write_study(tmp_path / "one"))
    assert study.name == "one" and study.titles() == METHODS
    assert list(study.galleries) == ["P005", "P011"]
    assert list(study.logs) == ["mm-csn", "mmgan", "pix2pix"]
    assert study.logs["mm-csn"].shape == (80, 2)  # the line cut short is no record
    assert study.logs["mmgan"][[0, -1]].tolist() == [[25, 40], [2000, 18]]
    pictures = ["reliability", "ranks", "structure", "lesions", "two_sample", "uncertainty"]
    assert [p.name for p in study.pictures] == [f"{name}.png" for name in pictures]
    assert study.structure == study_results()["structure"]
    assert study.lesions == study_results()["lesions"]
    assert study.two_sample == study_results()["two_sample"]
    assert study.dial == tmp_path / "one" / "dial" / "dial.png"
    assert study.figure == tmp_path / "one" / "evaluation" / "figure.png"
    assert study.training_titles()["mm-csn"] == "mm-CSN"


def test_what_is_no_longer_in_the_study_has_no_curve(tmp_path):
    folder = write_study(tmp_path)
    for name in ("left", "segmenter"):
        shutil.copytree(folder / "methods" / "mmgan", folder / "methods" / name)
    assert list(read_study(folder).logs) == ["mm-csn", "mmgan", "pix2pix", "segmenter"]
    bare = write_study(tmp_path / "bare", downstream=None)
    shutil.copytree(bare / "methods" / "mmgan", bare / "methods" / "segmenter")
    assert list(read_study(bare).logs) == ["mm-csn", "mmgan", "pix2pix"]


def test_numbers_that_json_lacks_are_nan(tmp_path):
    rows = study_results()["rows"]
    rows[0] |= {"mean": None, "sd": None}
    study = read_study(write_study(tmp_path, rows=rows))
    assert math.isnan(study.rows[0]["mean"]) and math.isnan(study.rows[0]["sd"])
    assert study.rows[1]["mean"] == rows[1]["mean"]
    assert math.isnan(study.paper[1]["sd"])


def test_only_the_results_must_be_there(tmp_path):
    (tmp_path / "study").mkdir()
    results = {"methods": [], "rows": study_results()["rows"]}
    (tmp_path / "study" / "results.json").write_text(json.dumps(results))
    study = read_study(tmp_path)
    assert len(study.rows) == len(results["rows"])
    assert (study.crps, study.tests, study.paper, study.downstream) == ([], [], [], None)
    assert study.structure == study.two_sample == [] and study.lesions == {}
    assert (study.galleries, study.logs, study.pictures) == ({}, {}, {})
    assert (study.dial, study.figure, study.facts) == (None, None, {})


def test_a_log_of_no_losses_is_no_curve(tmp_path):
    folder = write_study(tmp_path)
    (folder / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": NaN}\n[]\n')
    assert list(read_study(folder).logs) == ["mmgan", "pix2pix"]


@pytest.mark.parametrize("text", ["[", "[]", "{}"])
def test_a_folder_without_whole_results_is_refused_in_a_sentence(tmp_path, text):
    with pytest.raises(InputError, match="holds no study/results.json"):
        read_study(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        read_study(tmp_path)


def test_names_tell_runs_apart(tmp_path):
    first = write_study(tmp_path / "a" / "run")
    second = shutil.copytree(first, tmp_path / "b" / "run")
    third = shutil.copytree(first, tmp_path / "c")
    names = [study.name for study in read_studies([first, third])]
    assert names == ["run", "c"]
    assert [study.name for study in read_studies([first, second])] == ["a/run", "b/run"]
    with pytest.raises(InputError, match="twice"):
        read_studies([first, tmp_path / "c" / ".." / "a" / "run"])


def test_a_curve_is_what_its_log_says(tmp_path):
    study = read_study(write_study(tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()[:-1]
    losses = [json.loads(line)["loss"] for line in lines]
    np.testing.assert_array_equal(study.logs["mm-csn"][:, 1], losses)
