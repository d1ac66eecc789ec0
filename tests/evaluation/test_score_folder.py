"""The command `score`: matching, known errors, messages, the exit code, and that it has
the scorer of `evaluate`."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from tiny_run import (
    AFFINE,
    MODALITIES,
    SHAPE,
    TOKENS,
    brain,
    files_under,
    image,
    path_of,
    run_main,
    tiny_config,
    write_config,
    write_subjects,
)

from ummcsgm.data.crop import ImageSpace, SliceView, uncrop
from ummcsgm.data.layouts import known
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.nifti import is_synthetic, read_geometry, write_like, write_new
from ummcsgm.evaluation.metrics import NoErrorError
from ummcsgm.evaluation.protocols import PROFILES, profile_hash
from ummcsgm.evaluation.score_subject import Prediction, score_subject
from ummcsgm.evaluation.subject import read_subject, score_prediction
from ummcsgm.reporting.document import escape_markdown

NAMES = ("P1", "P2", "P3")
LEVELS = 40  # what a prediction is too bright by, in the truth's units


def lesion(name):
    """P2 is tumour-free, P3 was not segmented."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:9, 8:12, 2:4] = {"P1": 4, "P2": 0}[name]
    labels[6, 8:12, 2:4] = {"P1": 1, "P2": 0}[name]
    return labels


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = write_subjects(tmp_path_factory.mktemp("score") / "truth", NAMES)
    for name in ("P1", "P2"):
        write_new(path_of(folder, name, "t1").parent / f"{name}_seg.nii.gz", lesion(name), AFFINE)
    return folder


def wrong(name, modality):
    """[X, Y, Z] int16: too bright by LEVELS, in the brain."""
    scan = image(name, modality)
    return np.where(brain(), scan + LEVELS, 0).astype(np.int16)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Processes take longer to begin than these subjects to be scored."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture
def predicted(tmp_path):
    """T1c and T2 of every subject, at the truth's paths."""
    for name in NAMES:
        for modality in ("t1c", "t2"):
            path = path_of(tmp_path / "predicted", name, modality)
            write_new(path, wrong(name, modality), AFFINE)
    return tmp_path / "predicted"


def score(predictions, truth, *flags):
    return run_main("--mode", "score", "--predictions", predictions, "--truth", truth, *flags)


def written(folder):
    """The value by subject, modality, kind, profile and metric, and scores.json."""
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    about = ("subject", "modality", "kind", "profile", "metric")
    values = {tuple(row[key] for key in about): float(row["value"]) for row in rows}
    assert len(values) == len(rows)
    hashes = {profile.name: profile_hash(profile) for profile in PROFILES}
    assert all(row["profile_hash"] == hashes[row["profile"]] for row in rows)
    return values, json.loads((folder / "scores.json").read_text())


def expected(name, modality):
    """MAE and PSNR over the brain, in grey levels, from the arrays themselves."""
    scan = image(name, modality)[brain()].astype(float)
    union = np.logical_or.reduce([image(name, one) != 0 for one in MODALITIES])
    assert np.array_equal(union, brain())
    grey = 255 / np.percentile(scan, 99.9)
    error = np.minimum((scan + LEVELS) * grey, 255) - np.minimum(scan * grey, 255)
    return np.abs(error).mean(), 10 * np.log10(255**2 / np.mean(error**2))


def test_several_processes_write_what_one_does(predicted, truth, tmp_path, monkeypatch):
    assert score(predicted, truth, "--output", tmp_path / "one") == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert score(predicted, truth, "--output", tmp_path / "two") == 0
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
    assert len(files_under(tmp_path / "one")) == 3


def test_a_known_error_has_the_known_score(predicted, truth, tmp_path, capsys):
    assert score(predicted, truth, "--output", tmp_path / "scores") == 0
    values, content = written(tmp_path / "scores")
    for name in NAMES:
        for modality in ("t1c", "t2"):
            mae, psnr = expected(name, modality)
            key = (name, modality, "", "brain-only")
            assert values[(*key, "mae")] == pytest.approx(mae, rel=1e-5)
            assert values[(*key, "psnr")] == pytest.approx(psnr, rel=1e-5)
            frame = brain().mean()  # one slice of six has no brain
            whole = values[name, modality, "", "volume-3d", "mae"]
            assert whole == pytest.approx(mae * frame, rel=1e-5)
            table1 = values[name, modality, "", "umm-csgm-table1", "mae"]
            assert table1 == pytest.approx(mae * frame * 6 / 5, rel=1e-5)
    rows = [row for row in content["summary"] if row["profile"] == "brain-only"]
    mae = next(r for r in rows if (r["modality"], r["metric"]) == ("t2", "mae"))
    values = [expected(name, "t2")[0] for name in NAMES]
    assert mae["mean"] == pytest.approx(np.mean(values), rel=1e-5)
    assert mae["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    assert (mae["subjects"], mae["skipped"]) == (3, {})
    out = capsys.readouterr().out
    table = re.sub(" +", " ", (tmp_path / "scores" / "scores.md").read_text())
    for profile in PROFILES:
        assert f"t1c | {profile.name} | {profile_hash(profile)} | " in out
        assert f"| t1c | {profile.name} | {profile_hash(profile)} | " in table
        assert content["profiles"][profile.name] == profile.text
        assert escape_markdown(profile.text) in table
    assert f"mae {mae['mean']:.2f} ± {mae['sd']:.2f} | 3 | " in out


def test_a_subject_without_a_tumour_is_skipped_and_counted(predicted, truth, tmp_path, capsys):
    assert score(predicted, truth, "--output", tmp_path / "scores") == 0
    values, content = written(tmp_path / "scores")
    rows = {key[0] for key in values if key[1:] == ("t2", "", "tumour", "mae")}
    assert rows == {"P1"}
    x, y, z = np.nonzero(lesion("P1"))
    scan = image("P1", "t2").astype(float)
    grey = 255 / np.percentile(scan[brain()], 99.9)
    error = np.minimum((scan + LEVELS) * grey, 255) - np.minimum(scan * grey, 255)
    mae = values["P1", "t2", "", "tumour", "mae"]
    assert mae == pytest.approx(error[x, y, z].mean(), rel=1e-5)
    outside = brain() & (lesion("P1") == 0)
    healthy = values["P1", "t2", "", "healthy", "mae"]
    assert healthy == pytest.approx(error[outside].mean(), rel=1e-5)
    whole = values["P2", "t2", "", "brain-only", "psnr"]
    assert values["P2", "t2", "", "healthy", "psnr"] == whole
    skipped = {
        (row["profile"], row["metric"]): row["skipped"]
        for row in content["summary"]
        if row["modality"] == "t2"
    }
    both = {"tumour-free": 1, "no segmentation": 1}
    assert skipped["tumour", "psnr"] == both
    assert skipped["healthy", "psnr"] == {"no segmentation": 1}
    reasons = {
        row["subject"]: row["reason"]
        for row in content["skipped"]
        if (row["profile"], row["metric"]) == ("tumour", "ssim")
    }
    assert reasons == {"P2": "tumour-free", "P3": "no segmentation"}
    # Six slices have no room for windows of 11, and all else was measured.
    assert list(skipped["volume-3d", "ssim"].values()) == [3]
    assert skipped["volume-3d", "psnr"] == {}
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("t2 | tumour | "))
    assert "1 tumour-free; 1 no segmentation" in line


@pytest.mark.parametrize(
    "pattern",
    [
        "{group}/{name}/{name}_{token}.nii",
        "all/{name}_{token}.nii.gz",
        "{name}-{brasyn}.nii.gz",
        "deep/down/{name}-{modality}.nii.gz",
        "{name}_{modality}.nii.gz",
        "{name}_{token}_mean.nii.gz",
    ],
)
def test_predictions_are_found_by_path_name_or_what_they_are_called(
    pattern, truth, predicted, tmp_path
):
    words = {"t1c": "T1C", "t2": "t2w"}
    for name in NAMES:
        for modality in ("t1c", "t2"):
            path = pattern.format(
                group="HGG" if name != "P2" else "LGG",
                name=name,
                token=TOKENS[modality],
                brasyn=words[modality],
                modality=modality,
            )
            write_new(tmp_path / "other" / path, wrong(name, modality), AFFINE)
    assert score(tmp_path / "other", truth, "--output", tmp_path / "one") == 0
    assert score(predicted, truth, "--output", tmp_path / "two") == 0
    one, two = (written(tmp_path / each)[0] for each in ("one", "two"))
    kind = "mean" if "_mean" in pattern else ""
    assert one == {(s, m, kind, p, n): v for (s, m, _, p, n), v in two.items()}


def test_what_complete_wrote_is_read_and_its_draws_are_one_number(truth, tmp_path):
    geometry = read_geometry(path_of(truth, "P1", "t1c"))
    folder = tmp_path / "answers" / "HGG" / "P1"
    zyx = image("P1", "t1c").transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.float32)
    inside = zyx > 0
    adds = {"mean": 9, "draw-01": 20, "draw-02": 40, "sd": 5, "q05": 3, "q97p5": 1}
    for kind, extra in adds.items():
        path = folder / f"P1_t1ce_{kind}.nii.gz"
        write_like(path, zyx + extra * inside, geometry)
        assert is_synthetic(path)
    assert score(tmp_path / "answers", truth, "--output", tmp_path / "scores") == 0
    values, content = written(tmp_path / "scores")
    mae = {k[2]: v for k, v in values.items() if k[3:] == ("brain-only", "mae")}
    assert mae.keys() == {"mean", "draw-01", "draw-02"}
    scan = image("P1", "t1c")[brain()]
    assert mae["mean"] == pytest.approx(9 * 255 / np.percentile(scan, 99.9), rel=0.02)
    rows = {
        row["kind"]: row
        for row in content["summary"]
        if (row["profile"], row["metric"]) == ("brain-only", "mae")
    }
    assert rows.keys() == {"mean", "draw"}
    assert rows["draw"]["mean"] == np.mean([mae["draw-01"], mae["draw-02"]])
    assert rows["draw"]["subjects"] == 1 and rows["draw"]["sd"] is None
    assert any("3 files that are maps of uncertainty" in note for note in content["notes"])
    assert any("no prediction for 2 of 3" in note for note in content["notes"])


def test_exchanged_modalities_are_seen_under_every_profile(truth, tmp_path):
    noise = np.random.default_rng(1).normal(0, 8, SHAPE) * brain()
    for name in NAMES:
        for one, other in (("t1", "flair"), ("flair", "t1")):
            for folder, modality in (("right", one), ("exchanged", other)):
                scan = (image(name, modality) + noise).astype(np.float32)
                write_new(path_of(tmp_path / folder, name, one), scan, AFFINE)
    for folder in ("right", "exchanged"):
        assert score(tmp_path / folder, truth, "--output", tmp_path / f"s{folder}") == 0
    right, exchanged = (written(tmp_path / each)[0] for each in ("sright", "sexchanged"))
    assert right.keys() == exchanged.keys()
    seen = set()
    for key, value in right.items():
        if key[-1] == "psnr":
            assert exchanged[key] < value - 5, key
            seen.add(key[3])
        elif key[-1].startswith("ssim"):
            assert exchanged[key] < value - 0.003, key
            seen.add(key[3])
    # Too flat for the windows of the official script: its tests are on volumes.
    assert seen == {profile.name for profile in PROFILES} - {"brasyn-official"}


def test_unmatched_files_are_reported_and_the_rest_is_scored(predicted, truth, tmp_path, capsys):
    stranger = predicted / "P9_t1ce.nii.gz"
    write_new(stranger, wrong("P1", "t1c"), AFFINE)
    write_new(predicted / "again" / "P1_t2.nii.gz", wrong("P1", "t2"), AFFINE)
    assert score(predicted, truth, "--output", tmp_path / "scores") == 1
    out = capsys.readouterr().out
    unknown = f"no scan in {truth} has this path or this name."
    assert f"\n{stranger}: {unknown}\n" in f"\n{out}"
    assert "both predict t2 of P1: keep one of them.\n" in out
    values, content = written(tmp_path / "scores")
    assert {key[:2] for key in values} == {
        (name, modality) for name in NAMES for modality in ("t1c", "t2")
    } - {("P1", "t2")}
    assert len(content["failures"]) == 2


def test_a_prediction_on_another_grid_or_with_nan_is_reported(predicted, truth, tmp_path, capsys):
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    write_new(path_of(predicted, "P1", "t2"), wrong("P1", "t2"), shifted)
    write_new(path_of(predicted, "P2", "t2"), wrong("P2", "t2")[:, :, :5], AFFINE)
    holes = wrong("P3", "t2").astype(np.float32)
    holes[7, 9, 2:4] = np.nan
    write_new(path_of(predicted, "P3", "t2"), holes, AFFINE)
    assert score(predicted, truth, "--output", tmp_path / "scores") == 1
    _, content = written(tmp_path / "scores")
    one, two, three = sorted(content["failures"], key=lambda text: "NaN" in text)
    assert "has the affine" in one and str(path_of(predicted, "P1", "t2")) in one
    assert "(16, 20, 5)" in two and "one grid" in two
    assert f"{path_of(predicted, 'P3', 't2')}: 2 of 1920 voxels are NaN" in three
    assert one in capsys.readouterr().out.splitlines()
    assert {r["modality"] for r in content["rows"]} == {"t1c"}


def test_scans_beside_the_predictions_are_no_predictions(predicted, truth, tmp_path, capsys):
    for modality in ("t1", "flair"):
        source = path_of(truth, "P1", modality)
        shutil.copy(source, path_of(predicted, "P1", modality))
    shutil.copy(path_of(truth, "P1", "t1").parent / "P1_seg.nii.gz", predicted)
    assert score(predicted, truth) == 0
    out = capsys.readouterr().out
    assert "2 files that are the scan itself" in out
    assert "t1 | " not in out.replace("t1c | ", "") and "inf" not in out
    assert "1 files that are maps of uncertainty, segmentations or masks, such as" in out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--truth", "{truth}"], "--predictions is missing"),
        (["--predictions", "{truth}"], "--truth is missing"),
        (["--predictions", "{truth}/nothing", "--truth", "{truth}"], "no such folder"),
        (["--predictions", "{truth}", "--truth", "{truth}"], "the same folder"),
        (["--predictions", "{truth}/HGG/P1", "--truth", "{truth}"], "nothing to score"),
        (["--predictions", "{truth}", "--truth", "{empty}"], "no subject found"),
        (["--predictions", "{empty}", "--truth", "{truth}"], "nothing to score"),
    ],
)
def test_where_nothing_can_be_scored_the_exit_code_is_2(flags, sentence, truth, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = [flag.format(truth=truth, empty=tmp_path / "empty") for flag in flags]
    assert run_main("--mode", "score", *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_config_names_patterns_modalities_and_the_brain(tmp_path, capsys):
    """Own names, one of them ambiguous by itself, and a mask smaller than the scans."""
    small = brain().copy()
    small[:, :9] = False
    for name in ("A", "B"):
        for modality in ("t1", "adc"):
            scan = image(name, "t1" if modality == "t1" else "t2")
            write_new(tmp_path / f"data/{modality}/{name}.nii.gz", scan, AFFINE)
        write_new(tmp_path / f"data/mask/{name}.nii.gz", small.astype(np.uint8), AFFINE)
        path = tmp_path / f"predicted/adc/{name}.nii.gz"
        write_new(path, wrong(name, "t2"), AFFINE)
    config = tiny_config(
        tmp_path / "data",
        data__modalities=("t1", "adc"),
        data__layout="flat",
        data__pattern="t1=t1/{subject}.nii.gz; adc=adc/{subject}.nii.gz; "
        "mask=mask/{subject}.nii.gz",
        data__mask="mask",
    )
    config = write_config(tmp_path / "config.py", config)
    flags = ("--config", config, "--output", tmp_path / "scores")
    assert score(tmp_path / "predicted", tmp_path / "data", *flags) == 0
    values, _ = written(tmp_path / "scores")
    scan = image("A", "t2")[small].astype(float)
    grey = 255 / np.percentile(scan, 99.9)
    error = np.minimum((scan + LEVELS) * grey, 255) - np.minimum(scan * grey, 255)
    mae = values["A", "adc", "", "brain-only", "mae"]
    assert mae == pytest.approx(error.mean(), rel=1e-5)
    # Without its folder a file could be of either modality.
    capsys.readouterr()
    write_new(tmp_path / "predicted/A.nii.gz", wrong("A", "t2"), AFFINE)
    assert score(tmp_path / "predicted", tmp_path / "data", *flags) == 1
    assert "its name is that of a mask of A and adc of A and t1 of A" in capsys.readouterr().out


@pytest.mark.parametrize("gain", [1.1, 1.0])
def test_evaluate_and_score_agree_where_slices_have_no_error(gain, tmp_path):
    """T2 is dark in two slices of the brain, where the estimate is too; a gain of 1 is
    without any error, as of a constant image nothing is rounded."""
    folder = write_subjects(tmp_path / "truth", ["P1"])
    dark = image("P1", "t2") if gain > 1 else np.where(brain(), 512, 0).astype(np.int16)
    dark[:, :, 2:4] = 0
    write_new(path_of(folder, "P1", "t2"), dark, AFFINE)
    (subject,) = find_subjects(folder, known.named_layouts()).subjects
    space = ImageSpace(MODALITIES, SliceView((20, 16), 0.0, False, 0))
    channel = MODALITIES.index("t2")
    evaluated_subject = read_subject(subject, space, np.eye(4, dtype=bool))
    z = evaluated_subject.z
    images = evaluated_subject.truth(z) * np.float32(gain)
    evaluated = score_prediction(
        evaluated_subject, z, evaluated_subject.missing[channel], channel, images
    )
    prepared = evaluated_subject.prepared
    estimate = np.full(prepared.brain.shape, 1e-3, np.float32)  # 0 outside the brain
    slices = uncrop(prepared.window, images[..., channel] * evaluated_subject.brain(z))
    estimate[z] = slices * prepared.scales["t2"]
    path = tmp_path / "P1_t2.nii"
    write_new(path, estimate[:, ::-1, ::-1].transpose(2, 1, 0), AFFINE)
    scored = score_subject(False, (subject, (Prediction(path, "P1", "t2", ""),)))
    rows = [*scored.rows, *scored.skipped]
    scores = {
        row["metric"]: row.get("value", row.get("reason"))
        for row in rows
        if row["profile"] == "umm-csgm-table1"
    }
    if gain == 1:
        assert scores.pop("psnr") == str(NoErrorError()) and evaluated["psnr"] is None
    else:
        assert 20 < scores["psnr"] < 30
    assert scores == {name: evaluated[name] for name in scores}
    assert {"ssim_global", "ssim_wang", "mae"} <= scores.keys()
