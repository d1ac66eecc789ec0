"""Every missing modality is written under its own name, on the input's own grid.

The outputs come from a stand-in for the network: on missing channel c it is (c + 1) / 8
everywhere, so that a modality in another's place, or a voxel outside the brain, shows.
"""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import threading
import types

import nibabel as nib
import numpy as np
import pytest
from scipy.special import stdtrit
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
    write_subjects,
)

from ummcsgm.config import build
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.nifti import is_synthetic, write_new
from ummcsgm.inference import complete, inputs, outputs, predictor, subject_posterior
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.types import Estimate, InputError
from ummcsgm.utils import atomic_io
from ummcsgm.utils.provenance import code_digest, versions

pytest_plugins = ["tiny_study"]

LEVELS = (np.arange(4, dtype=np.float32) + 1) / 8  # of each channel
SCALES = {"flair": 400.0, "t1": 800.0, "t1c": 1600.0, "t2": 3200.0}  # the cohort's


class Calls(list):
    """(images, missing) of every mean that was predicted, the config of the network, and
    the samplers that were made, by name, with their rho."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rho = {}
        self.network = types.SimpleNamespace(predict_variance=False)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Takes the network's place; returns the calls that it got."""
    config = tiny_config(tmp_path)
    calls, spacing = Calls(config), (3.0, 2.0)

    def load(workdir):
        space = build.build_space(config)
        known = (SCALES, dict.fromkeys(MODALITIES, (-1.0, 4.0)), spacing)
        sde = build.build_sde(config)
        model = types.SimpleNamespace(sde=sde, network=calls.network)
        scales = {"t1c": 0.6, "flair": 0.4}
        return predictor.TrainedModel(config, space, model, None, 42, *known, "abc", "def", scales)

    def make_mean(trained, options):
        def mean(images, missing):
            calls.append((np.array(images), np.array(missing)))
            filled = np.where(missing[:, None, None], LEVELS, images)
            variance = np.where(missing[:, None, None], LEVELS**4, 0 * images)
            return Estimate(filled, variance if calls.network.predict_variance else None)

        return mean

    def make_sample(trained, sampler, options, *, rho=0.0):
        calls.rho[sampler] = rho

        def sample(images, missing, addresses, estimate):
            filled = np.where(missing[:, None, None], LEVELS, images)
            assert np.array_equal(estimate.mean, filled)
            for address in addresses:
                noise = address[:, 2, None, None, None] / 64  # each draw its own
                yield np.where(missing[:, None, None], filled + noise, images)

        return sample

    monkeypatch.setattr(complete, "load_trained_model", load)
    monkeypatch.setattr(subject_posterior, "make_mean_predictor", make_mean)
    monkeypatch.setattr(subject_posterior, "make_sampler", make_sample)
    # Voxels of any size: what is refused of them has a test of its own.
    monkeypatch.setattr(inputs, "TOLERANCE", 100.0)
    return calls


def failure(capsys, *arguments, **options):
    """The one sentence on the one subject that could not be completed."""
    assert make(*arguments, **options) is False
    said = capsys.readouterr().err
    assert said.startswith("ummcsgm: ") and said.count("\n") == 1, said
    return said


def make(source, target, *missing, draws=1, sampler="mean", part=(0, 1), **changes):
    options = CompletionOptions(missing, draws=draws, sampler=sampler, **changes)
    run = pathlib.Path(target).parent / "run"
    return complete.complete(run, None, (str(source), str(target)), options, part)


def read(path):
    loaded = nib.load(path)
    return np.asarray(loaded.dataobj), loaded


def gain_of(name, missing):
    """How a subject's seen scales compare with the cohort's."""
    seen = [m for m in MODALITIES if m not in missing]
    return float(np.median([fit_scale(image(name, m)) / SCALES[m] for m in seen]))


@pytest.mark.parametrize("missing", [("t1c",), ("flair", "t2"), ("flair", "t1", "t2")])
def test_each_modality_is_written_under_its_own_name(stand_in, tmp_path, missing):
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    make(folder, tmp_path / "out", *reversed(missing))
    for name in ("P1", "P2"):
        for modality in missing:
            stored, _ = read(path_of(tmp_path / "out", name, modality))
            level = LEVELS[MODALITIES.index(modality)]
            value = level * SCALES[modality] * gain_of(name, missing)
            (written,) = set(np.unique(stored)) - {0}
            assert abs(written - value) < 0.51  # rounded, in single precision
            assert np.array_equal(stored != 0, brain())
    images = [path for path in files_under(tmp_path / "out") if "nii" in path]
    assert len(images) == 2 * len(missing)


@pytest.mark.parametrize("missing", [("flair", "t2")], ids="+".join)
def test_each_modality_is_seen_in_its_own_channel(stand_in, tmp_path, missing):
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", *missing)
    ((images, computed),) = stand_in
    assert len(images) == SHAPE[2] - 1
    for channel, modality in enumerate(MODALITIES):
        assert (computed[:, channel] == (modality in missing)).all()
        if modality in missing:
            assert (images[..., channel] == 0).all()
            continue
        volume = image("P1", modality) / fit_scale(image("P1", modality))
        inside = volume.transpose(2, 1, 0)[1:, ::-1, ::-1]
        found = images[..., channel]
        assert np.allclose(found[found != 0], inside[inside != 0], rtol=1e-5)


def test_an_absent_file_is_completed_without_being_named(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1", "P2", "P3"))
    path_of(folder, "P1", "t1c").unlink()
    path_of(folder, "P2", "flair").unlink()
    make(folder, tmp_path / "out")
    assert [path for path in files_under(tmp_path / "out") if "nii" in path] == [
        "HGG/P1/P1_t1ce.nii.gz",
        "LGG/P2/P2_flair.nii.gz",
    ]
    stored, _ = read(tmp_path / "out/HGG/P1/P1_t1ce.nii.gz")
    value = LEVELS[2] * SCALES["t1c"] * gain_of("P1", ("t1c",))
    assert abs(stored.max() - value) < 0.51


def test_what_is_done_without_is_not_even_read(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "a", "t1c")
    path_of(folder, "P1", "t1c").write_bytes(b"damaged")
    make(folder, tmp_path / "b", "t1c")
    assert files_under(tmp_path / "a") == files_under(tmp_path / "b")


def test_a_folder_a_group_and_a_subject_lead_to_the_same_file(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    for index, below in enumerate(("", "HGG", "HGG/P1")):
        make(folder / below, tmp_path / f"out{index}", "t2")
        assert path_of(tmp_path / f"out{index}", "P1", "t2").is_file()


ORIENTATIONS = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": AFFINE,
    "PSR": np.array([[0, 0, 3.0, 5], [-2, 0, 0, 9], [0, 1.5, 0, -4], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, 0.1, 0, 3], [-0.1, 0.9, 0.05, -2], [0, 0, 2, 1], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize(
    "orientation, dtype",
    [("RAS", "int16"), ("LPS", "uint8"), ("PSR", "float32"), ("oblique", "int16")],
)
def test_grid_affine_header_and_type_are_the_inputs(stand_in, tmp_path, orientation, dtype):
    """PSR: the brain's axial slices lie along another axis of the file."""
    affine = ORIENTATIONS[orientation]
    turned = (1, 2, 0) if orientation == "PSR" else (0, 1, 2)
    folder = tmp_path / "in"
    for modality in ("flair", "t1", "t2"):
        values = image("P1", modality).transpose(np.argsort(turned))
        values = np.minimum(values / 8, 250).astype(dtype)
        given = nib.Nifti1Image(values, affine)
        given.header.set_xyzt_units("mm", "sec")
        given.set_sform(affine, code=4)
        path = path_of(folder, "P1", modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(given, path)
    make(folder, tmp_path / "out")
    stored, written = read(path_of(tmp_path / "out", "P1", "t1c"))
    _, given = read(path_of(folder, "P1", "flair"))
    assert written.shape == given.shape and stored.dtype == np.dtype(dtype)
    assert np.array_equal(written.affine, given.affine)
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "datatype"):
        assert np.array_equal(written.header[field], given.header[field]), field
    inside = np.any([read(p)[0] for p in folder.rglob("*.nii.gz")], axis=0)
    assert np.array_equal(stored != 0, inside)
    assert b"synthetic" in bytes(written.header["descrip"])


def test_values_beyond_the_type_are_scaled_and_not_clipped(stand_in, tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "t1c", 1e9)
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1c")
    values, loaded = read(path_of(tmp_path / "out", "P1", "t1c"))
    assert loaded.get_data_dtype() == np.int16
    expected = LEVELS[2] * 1e9 * gain_of("P1", ("t1c",))
    assert sorted(np.unique(values)) == [0, pytest.approx(expected, rel=1e-3)]


def test_the_sidecar_says_what_it_is_and_how_it_came_about(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    options = {"draws": 2, "sampler": "euler_maruyama"}
    make(folder, tmp_path / "out", "t1c", "t2", **options)
    path = tmp_path / "out" / "HGG" / "P1" / "P1_t1ce_draw-02.json"
    made = json.loads(path.read_text())
    assert "training cohort's median scale" in made["units"]["how"]
    assert made == {
        "synthetic": True,
        "note": outputs.RESEARCH,
        "subject": "P1",
        "modality": "t1c",
        "inputs": {
            name: {
                "file": path_of(folder, "P1", name).name,
                "sha256": hashlib.sha256(path_of(folder, "P1", name).read_bytes()).hexdigest(),
            }
            for name in ("flair", "t1")
        },
        "not_used": [],
        "grid_of": "P1_flair.nii.gz",
        "voxels_per_pixel": [1.0, 1.0],
        "units": {
            "how": made["units"]["how"],
            "cohort_scale": SCALES["t1c"],
            "ratios": {
                name: fit_scale(image("P1", name)) / SCALES[name] for name in ("flair", "t1")
            },
            "range": [-1.0, 4.0],
            "scale": pytest.approx(SCALES["t1c"] * gain_of("P1", ("t1c", "t2"))),
        },
        "volume_sha256": hashlib.sha256(
            path.with_name("P1_t1ce_draw-02.nii.gz").read_bytes()
        ).hexdigest(),
        "checkpoint_step": 42,
        "parameters_sha256": "abc",
        "sampler": "euler_maruyama",
        "steps": 3,
        "evaluations": 3,
        "rho": 0.0,
        "kind": "draw-02",
        "draws": 2,
        "seed": 0,
        "versions": versions(),
    }
    make(folder, tmp_path / "mean", "t1c")
    alone = json.loads((tmp_path / "mean/HGG/P1/P1_t1ce.json").read_text())
    assert (alone["sampler"], alone["kind"], alone["draws"]) == ("mean", "mean", 0)
    assert (alone["steps"], alone["evaluations"]) == (1, 1)


def test_slices_go_together_as_calibrated_and_the_sidecar_tells(stand_in, tmp_path, capsys):
    folder = write_subjects(tmp_path / "in", ("P1",))

    def calibrate(rho):
        saved = {"parameters_sha256": "abc", "code_sha256": code_digest(), "rho": rho}
        atomic_io.write_atomic(tmp_path / "run" / "calibration.json", json.dumps(saved))

    calibrate(0.625)
    make(folder, tmp_path / "out", "t1c", draws=2, sampler="warm")
    assert stand_in.rho == {"warm": 0.625}
    make(folder, tmp_path / "mean", "t1c")
    for kind in ("draw-01", "sd"):
        about = tmp_path / f"out/HGG/P1/P1_t1ce_{kind}.json"
        assert json.loads(about.read_text())["rho"] == 0.625
    for name in ("out/HGG/P1/P1_t1ce_mean.json", "mean/HGG/P1/P1_t1ce.json"):
        saved = json.loads((tmp_path / name).read_text())
        assert "rho" not in saved
        assert (saved["sampler"], saved["evaluations"], saved["draws"]) == ("mean", 1, 0)
    calibrate(0.5)
    assert make(folder, tmp_path / "mean", "t1c")
    said = failure(capsys, folder, tmp_path / "out", "t1c", draws=2, sampler="warm")
    assert "was made with another rho" in said


def test_each_draw_has_a_file_and_an_address_of_its_own(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1c", "t2", draws=3, sampler="euler_maruyama")
    images = [path for path in files_under(tmp_path / "out") if "nii" in path]
    kinds = ("draw-01", "draw-02", "draw-03", "mean", "q05", "q50", "q95", "sd")
    assert images == [
        f"HGG/P1/P1_{token}_{kind}.nii.gz" for token in ("t1ce", "t2") for kind in kinds
    ]
    gain = gain_of("P1", ("t1c", "t2"))
    for draw in (1, 2, 3):
        stored, _ = read(tmp_path / "out" / "HGG" / "P1" / f"P1_t2_draw-0{draw}.nii.gz")
        level = LEVELS[3] + (draw - 1) / 64
        assert abs(stored.max() - level * SCALES["t2"] * gain) < 0.51


def test_the_spread_of_the_draws_is_written_beside_them(stand_in, tmp_path):
    """Draws are LEVEL + 0, 1, .. 3 / 64: mean, sd and quantiles follow by hand."""
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1c", draws=4, sampler="warm", quantiles=(0.2, 0.5, 0.9))
    unit = SCALES["t1c"] * gain_of("P1", ("t1c",))
    steps = np.arange(4) / 64
    interval = stdtrit(3, 0.9) * np.sqrt(1 + 1 / 4) * steps.std(ddof=1)
    expected = {
        "mean": LEVELS[2],  # the network's own, and not that of the draws
        "sd": steps.std(ddof=1),
        "q20": LEVELS[2] + steps[0],  # the first of four
        "q50": LEVELS[2] + steps.mean(),
        "q90": LEVELS[2] + steps.mean() + interval,  # farther than four draws reach
    }
    for kind, value in expected.items():
        stored, _ = read(tmp_path / "out/HGG/P1" / f"P1_t1ce_{kind}.nii.gz")
        assert abs(stored.max() - value * unit) < 0.51, kind
        assert np.array_equal(stored != 0, brain())
    about = tmp_path / "out/HGG/P1/P1_t1ce_sd.json"
    assert json.loads(about.read_text())["kind"] == "sd"


@pytest.mark.parametrize("kind", ["volume", "sidecar"])
def test_a_real_file_is_never_overwritten(stand_in, tmp_path, capsys, kind):
    folder = write_subjects(tmp_path / "in", ("P2",))
    path = path_of(folder, "P2", "t1c")
    if kind == "sidecar":  # a scanner's, whose volume was left out
        path.unlink()
        path.with_name("P2_t1ce.json").write_text('{"EchoTime": 0.01}')
    before = files_under(folder)
    said = failure(capsys, folder, folder, "t1c", overwrite=True)
    assert "P2_t1ce" in said and "choose another --output" in said
    assert files_under(folder) == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_no_second_image_of_a_modality_is_put_beside_a_real_one(stand_in, tmp_path, capsys, suffix):
    folder = write_subjects(tmp_path / "in", ("P1",))
    real = path_of(folder, "P1", "t1c")
    if suffix == ".nii":
        nib.save(nib.load(real), real.with_suffix(""))
        real.unlink()
    before = files_under(folder)
    assert "choose another --output" in failure(capsys, folder, folder, "t1c")
    assert files_under(folder) == before


def test_a_synthetic_file_is_made_again_and_never_read_as_a_real_one(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    path_of(folder, "P1", "t1c").unlink()
    make(folder, folder)
    first = files_under(folder)
    assert "HGG/P1/P1_t1ce.json" in first
    make(folder, folder, overwrite=True)  # though the file is there now
    assert files_under(folder) == first
    ((_, computed), (_, again)) = stand_in
    assert np.array_equal(computed, again) and computed[0].tolist() == [0, 0, 1, 0]
    make(folder, tmp_path / "out", "t2")
    inputs = json.loads((tmp_path / "out/HGG/P1/P1_t2.json").read_text())["inputs"]
    assert sorted(inputs) == ["flair", "t1"]


def test_nothing_is_ever_half_written(stand_in, tmp_path, capsys, monkeypatch):
    folder = write_subjects(tmp_path / "in", ("P1",))
    rename = os.replace

    def fail(source, target):
        if str(target).endswith("_t2.nii.gz"):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(atomic_io.os, "replace", fail)
    assert "disk full" in failure(capsys, folder, tmp_path / "out", "t1c", "t2")
    left = files_under(tmp_path / "out")
    assert sorted(left) == ["HGG/P1/P1_t1ce.json", "HGG/P1/P1_t1ce.nii.gz", "previews/P1.png"]
    read(tmp_path / "out" / "HGG" / "P1" / "P1_t1ce.nii.gz")


def test_a_volume_says_itself_that_it_is_synthetic(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1c")
    path = path_of(tmp_path / "out", "P1", "t1c")
    path.with_name("P1_t1ce.json").unlink()
    assert is_synthetic(path) and not is_synthetic(path_of(folder, "P1", "t1c"))


def test_a_sidecar_alone_does_not_make_a_real_scan_synthetic(stand_in, tmp_path, capsys):
    folder = write_subjects(tmp_path / "in", ("P1",))
    real = path_of(folder, "P1", "t1c")
    real.with_name("P1_t1ce.json").write_text('{"synthetic": true}')
    before = real.read_bytes()
    said = failure(capsys, folder, folder, "t1c", overwrite=True)
    assert "is there and is not synthetic" in said
    assert real.read_bytes() == before


def test_an_output_that_is_not_finite_is_not_written(stand_in, tmp_path, capsys, monkeypatch):
    folder = write_subjects(tmp_path / "in", ("P1",))

    def broken(trained, options):
        return lambda images, missing: Estimate(np.full_like(images, np.nan), None)

    monkeypatch.setattr(subject_posterior, "make_mean_predictor", broken)
    assert "not finite" in failure(capsys, folder, tmp_path / "out", "t1c")
    assert not files_under(tmp_path / "out")


def test_the_gain_brings_another_scanner_to_the_cohorts_units(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "a", "t1c")
    for modality in ("flair", "t1", "t2"):
        path = path_of(folder, "P1", modality)
        values, given = read(path)
        nib.save(nib.Nifti1Image(values * 3, given.affine, given.header), path)
    make(folder, tmp_path / "b", "t1c")
    one, three = (read(path_of(tmp_path / at, "P1", "t1c"))[0].max() for at in "ab")
    assert three == pytest.approx(3 * one, abs=2)


# Many subjects.


def times(folder):
    return {n: (folder / n).stat().st_mtime_ns for n in files_under(folder)}


def test_what_is_finished_is_skipped_and_what_is_not_is_made(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    out = tmp_path / "out"
    assert make(folder, out, "t1c", "t2") is True
    before, calls = times(out), len(stand_in)
    assert make(folder, out, "t1c", "t2") is True
    assert times(out) == before and len(stand_in) == calls == 2
    for kind, gone in (("volume", "P1_t2.nii.gz"), ("sidecar", "P2_t1ce.json")):
        (path,) = out.rglob(gone)
        path.unlink()
        assert make(folder, out, "t1c", "t2") is True
        assert path.is_file() and len(stand_in) == calls + 1, kind
        calls += 1


CHANGES = {  # what the second command changes; what the message must say
    "sampler": (lambda folder: {"sampler": "euler_maruyama"}, "another sampler"),
    "input": (
        lambda folder: write_new(path_of(folder, "P1", "t1"), image("P1", "t1") * 2, AFFINE),
        "another inputs",
    ),
    "fewer": (lambda folder: path_of(folder, "P1", "t1").unlink(), "another inputs"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_output_made_otherwise_is_refused_and_redone_with_overwrite(
    stand_in, tmp_path, capsys, case
):
    folder, out = write_subjects(tmp_path / "in", ("P1",)), tmp_path / "out"
    make(folder, out, "t1c")
    before = files_under(out)
    change, words = CHANGES[case]
    options = change(folder) or {}
    said = failure(capsys, folder, out, "t1c", **options)
    assert words in said and "--overwrite" in said and "P1_t1ce.nii.gz" in said
    assert files_under(out) == before
    assert make(folder, out, "t1c", overwrite=True, **options) is True
    assert make(folder, out, "t1c", **options) is True
    assert files_under(out) != before


def test_a_kill_between_volume_and_sidecar_leaves_no_finished_output(
    stand_in, tmp_path, capsys, monkeypatch
):
    """A new volume never has the sidecar of the old one."""
    folder, out = write_subjects(tmp_path / "in", ("P1",)), tmp_path / "out"
    make(folder, out, "t1c")
    before = files_under(out)
    whole = outputs.write_atomic

    def fail(path, content):
        raise OSError("killed")

    monkeypatch.setattr(outputs, "write_atomic", fail)
    options = {"sampler": "euler_maruyama", "overwrite": True}
    assert "killed" in failure(capsys, folder, out, "t1c", **options)
    monkeypatch.setattr(outputs, "write_atomic", whole)
    calls = len(stand_in)
    assert make(folder, out, "t1c") is True and len(stand_in) == calls + 1
    assert files_under(out) == before


@pytest.mark.parametrize("damage", ["half", "nothing"])
def test_a_damaged_output_is_made_again(stand_in, tmp_path, damage):
    folder, out = write_subjects(tmp_path / "in", ("P1",)), tmp_path / "out"
    make(folder, out, "t1c")
    before = files_under(out)
    path = path_of(out, "P1", "t1c")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "half" else b"\0" * 5)
    assert make(folder, out, "t1c") is True
    assert files_under(out) == before


def test_a_users_picture_is_never_replaced_and_a_lost_preview_is_made(stand_in, tmp_path, capsys):
    folder, out = write_subjects(tmp_path / "in", ("P1",)), tmp_path / "out"
    make(folder, out, "t1c")
    picture = out / "previews" / "P1.png"
    ours = picture.read_bytes()
    picture.unlink()
    assert make(folder, out, "t1c") is True and picture.read_bytes() == ours
    picture.write_bytes(b"precious")
    said = failure(capsys, folder, out, "t1c", overwrite=True)
    assert "P1.png is there and is no preview" in said
    assert picture.read_bytes() == b"precious"


def test_values_stay_in_the_range_of_the_training_cohort(stand_in, tmp_path, monkeypatch):
    """T1's level is 1/4 and T2's 1/2: bounds above the one and below the other."""
    load = complete.load_trained_model

    def bounded(workdir):
        ranges = dict.fromkeys(MODALITIES, (0.3, 0.4))
        return dataclasses.replace(load(workdir), ranges=ranges)

    monkeypatch.setattr(complete, "load_trained_model", bounded)
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1", "t2")
    for modality, level in (("t1", 0.3), ("t2", 0.4)):
        stored, _ = read(path_of(tmp_path / "out", "P1", modality))
        expected = level * SCALES[modality] * gain_of("P1", ("t1", "t2"))
        assert abs(stored.max() - expected) < 0.51
        assert set(np.unique(stored)) == {0, stored.max()}


def test_one_bad_subject_is_reported_and_the_rest_go_on(stand_in, tmp_path, capsys):
    folder = write_subjects(tmp_path / "in", ("P1", "P2", "P3"))
    bad = path_of(folder, "P2", "t2")
    bad.write_bytes(bad.read_bytes()[:-90])
    assert make(folder, tmp_path / "out", "t1c") is False
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(bad) in said.err
    table = said.out.splitlines()
    assert table[-4] == "Completed subjects: subject | given | result"
    assert table[-3] == "P1 | flair, t1, t2 | synthesised t1c"
    assert table[-2].startswith(f"P2 | flair, t1, t2 | FAILED: {bad}: ")
    assert table[-1] == "P3 | flair, t1, t2 | synthesised t1c"
    made = [name for name in files_under(tmp_path / "out") if "nii" in name]
    assert made == ["HGG/P1/P1_t1ce.nii.gz", "HGG/P3/P3_t1ce.nii.gz"]


def test_an_ambiguous_subject_is_reported_and_the_rest_go_on(stand_in, tmp_path, capsys):
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    twice = path_of(folder, "P2", "t1")
    nib.save(nib.load(twice), twice.with_suffix(""))
    (folder / "HGG" / "P1" / "notes.nii.gz").write_bytes(b"x")
    assert make(folder, tmp_path / "out", "t1c") is False
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "P2_t1.nii and" in said.err and "P2_t1.nii.gz" in said.err
    assert "not read: 1 files" in said.out and "notes.nii.gz" in said.out
    assert path_of(tmp_path / "out", "P1", "t1c").is_file()
    assert "FAILED" in said.out.splitlines()[-1]


@pytest.mark.parametrize("count", [3])
def test_processes_divide_the_subjects_without_overlap_or_gap(stand_in, tmp_path, count):
    names = [f"P{number}" for number in range(1, 6)]
    folder, whole = write_subjects(tmp_path / "in", names), tmp_path / "whole"
    make(folder, whole, "t1c")
    parts = [tmp_path / f"part{k}" for k in range(count)]
    for k, part in enumerate(parts):
        make(folder, part, "t1c", part=(k, count))
    made = [files_under(part) for part in parts if part.is_dir()]
    assert sum(map(len, made)) == len(files_under(whole))  # no overlap
    together = {name: content for part in made for name, content in part.items()}
    assert together == files_under(whole)  # no gap


def test_other_modalities_than_those_trained_on_are_named_with_them(stand_in, tmp_path, capsys):
    """A BIDS folder with PD, which the network does not know, and one of PD alone."""
    for name, words in {"sub-1": ("T1w", "T2w", "PDw"), "sub-2": ("PDw",)}.items():
        for word, modality in zip(words, ("t1", "t2", "flair"), strict=False):
            path = tmp_path / "in" / name / "anat" / f"{name}_{word}.nii.gz"
            write_new(path, image("P1", modality), AFFINE)
    assert make(tmp_path / "in", tmp_path / "out") is False
    first, second = capsys.readouterr().err.splitlines()
    assert "subject sub-1 has t1, t2, pd, and this network was trained on" in first
    assert "flair, t1, t1c, t2: leave the rest out with --ignore pd" in first
    assert "subject sub-2 has pd, and this network was trained on flair" in second
    assert not (tmp_path / "out").exists()
    assert make(tmp_path / "in/sub-1", tmp_path / "out", ignored=("pd",)) is True
    about = tmp_path / "out/sub-1/anat/sub-1_ce-gadolinium_T1w.json"
    assert json.loads(about.read_text())["not_used"] == ["pd"]


def test_voxels_of_another_size_are_refused_unless_they_are_resampled(
    stand_in, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(inputs, "TOLERANCE", 1.2)
    folder = write_subjects(tmp_path / "in", ("P1",))
    assert make(folder, tmp_path / "a", "t1c") is True
    affine = AFFINE @ np.diag([2.0, 1, 1, 1])
    for modality in MODALITIES:
        write_new(path_of(folder, "P1", modality), image("P1", modality), affine)
    said = failure(capsys, folder, tmp_path / "b", "t1c")
    assert "3 x 4 mm" in said and "3 x 2 mm" in said and "config.data.spacing" in said


def test_a_mask_file_says_what_is_brain(stand_in, tmp_path, capsys):
    """Images with a skull: outside the mask nothing is read, nothing is written."""
    stand_in.config.data.mask = "mask"
    folder = write_subjects(tmp_path / "in", ("P1",))
    inside = brain()
    for modality in MODALITIES:
        values = np.where(inside, image("P1", modality), 9).astype(np.int16)
        write_new(path_of(folder, "P1", modality), values, AFFINE)
    said = failure(capsys, folder, tmp_path / "out", "t1c")
    assert "subject P1 has no brain mask" in said and "config.data.mask" in said
    mask = path_of(folder, "P1", "t1").with_name("P1_mask.nii.gz")
    write_new(mask, inside.astype(np.uint8), AFFINE)
    assert make(folder, tmp_path / "out", "t1c") is True
    stored, _ = read(path_of(tmp_path / "out", "P1", "t1c"))
    assert np.array_equal(stored != 0, inside)
    ((images, _),) = stand_in
    assert np.count_nonzero(images[..., 1]) == inside.sum()


def test_a_preview_shows_what_was_given_and_what_was_made(stand_in, tmp_path, monkeypatch):
    """The slice with the most brain: each modality in its place, marked if made."""
    shown, write = {}, complete.write_preview

    def note(path, preview):
        shown[path.name] = preview
        write(path, preview)

    monkeypatch.setattr(complete, "write_preview", note)
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    make(folder, tmp_path / "out", "t1c")
    assert sorted(shown) == ["P1.png", "P2.png"]
    for name, preview in shown.items():
        content = (tmp_path / "out" / "previews" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert preview.modalities == MODALITIES
        assert preview.synthetic == (False, False, True, False)
        made = preview.images[2]
        assert set(np.unique(made)) == {0, LEVELS[2]}
        for channel in (0, 1, 3):
            given = preview.images[channel]
            assert np.array_equal(given != 0, made != 0) and len(np.unique(given)) > 50


def test_a_predicted_sd_lies_beside_the_mean(stand_in, tmp_path):
    stand_in.network.predict_variance = True
    folder = write_subjects(tmp_path / "in", ("P1",))
    assert make(folder, tmp_path / "out", "t1c", "flair")
    files = files_under(tmp_path / "out")
    for channel, name in ((0, "flair"), (2, "t1c")):
        path = path_of(tmp_path / "out", "P1", name)
        sd, _ = read(path.with_name(path.name.replace(".nii", "_sd.nii")))
        scale = SCALES[name] * gain_of("P1", ("flair", "t1c"))
        assert np.all(np.abs(sd[brain()] - LEVELS[channel] ** 2 * scale) < 0.51)
        assert not sd[~brain()].any()
        saved = path.name.replace(".nii.gz", "_sd.json")
        (about,) = (json.loads(v) for k, v in files.items() if k.endswith(saved))
        assert (about["kind"], about["sampler"], about["draws"]) == ("sd", "mean", 0)
    before = len(stand_in)
    assert make(folder, tmp_path / "out", "t1c", "flair")
    assert len(stand_in) == before == 1  # one evaluation, which is there already


# Reading ahead and writing behind: events show what waits for what.

PATIENCE = 20  # seconds: what does not come by then never comes


def when(monkeypatch, module, name, before):
    """`before(*arguments)` is called ahead of a function of the module."""
    real = getattr(module, name)

    def call(*arguments, **options):
        before(*arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, call)


def test_the_next_subject_is_read_before_the_last_is_computed_and_none_after_it(
    stand_in, tmp_path, monkeypatch
):
    read_of = {name: threading.Event() for name in ("P1", "P2", "P3", "P4")}
    when(monkeypatch, inputs, "prepare_subject", lambda s, *_: read_of[s.name].set())
    ahead = []

    def compute(posterior, subject, options):
        following = read_of.get(f"P{int(subject.name[1]) + 1}")
        ahead.append(following is None or following.wait(PATIENCE))
        later = [n for n in read_of if n > f"P{int(subject.name[1]) + 1}"]
        ahead.append(not any(read_of[n].is_set() for n in later))

    when(monkeypatch, complete, "posterior_outputs", compute)
    folder = write_subjects(tmp_path / "in", read_of)
    assert make(folder, tmp_path / "out", "t1c")
    assert ahead == [True] * 8


def test_an_output_is_written_while_the_next_is_computed(stand_in, tmp_path, monkeypatch):
    """The first subject's only volume is not written before the second is computed;
    of several kinds each waits for the one before it."""
    computed, waited, writing = threading.Event(), [], []
    when(monkeypatch, complete, "posterior_outputs",
         lambda _, subject, options: subject.name == "P2" and computed.set())  # fmt: skip

    def write(path, *_):
        if "P1" in path.name:
            waited.append(computed.wait(PATIENCE))
        writing.append(path.name)
        assert threading.current_thread() is not threading.main_thread()

    when(monkeypatch, complete, "write_output", write)
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    assert make(folder, tmp_path / "out", "t1c")
    assert waited == [True]
    assert writing == ["P1_t1ce.nii.gz", "P2_t1ce.nii.gz"]


def test_subjects_wait_for_the_writer(stand_in, tmp_path, monkeypatch):
    """The third is not computed before the first is written: memory has a bound."""
    computed = {name: threading.Event() for name in ("P1", "P2", "P3")}
    when(
        monkeypatch,
        complete,
        "posterior_outputs",
        lambda _, subject, options: computed[subject.name].set(),
    )
    early = []

    def write(path, *_):
        if "P1" in path.name:
            computed["P2"].wait(PATIENCE)
            early.append(computed["P3"].wait(1))  # never, however long

    when(monkeypatch, complete, "write_output", write)
    folder = write_subjects(tmp_path / "in", computed)
    assert make(folder, tmp_path / "out", "t1c")
    assert early == [False] and computed["P3"].is_set()


def test_no_more_than_one_output_waits_to_be_written(stand_in, tmp_path, monkeypatch):
    """Each kind is computed while the one before it is written, and no earlier."""
    events, real = [], complete.posterior_outputs

    def answers(*computed):
        for kind, images in real(*computed):
            events.append(("computed", kind))
            yield kind, images

    monkeypatch.setattr(complete, "posterior_outputs", answers)
    when(monkeypatch, complete, "_write_kind",
         lambda work, taken, kind, *_: events.append(("written", kind)))  # fmt: skip
    folder = write_subjects(tmp_path / "in", ("P1",))
    make(folder, tmp_path / "out", "t1c", draws=6, sampler="warm")
    kinds = ["mean", *(f"draw-0{k}" for k in range(1, 7)), "sd", "q05", "q50", "q95"]
    assert [kind for what, kind in events if what == "written"] == kinds
    for behind, kind in zip(kinds, kinds[2:], strict=False):
        assert events.index(("written", behind)) < events.index(("computed", kind))


def test_each_failure_stays_with_its_subject_and_is_reported_in_order(
    stand_in, tmp_path, capsys, monkeypatch
):
    """P2 cannot be read, P3 not computed, P4 not written; 1 and 5 are whole."""
    folder = write_subjects(tmp_path / "in")
    path_of(folder, "P2", "t2").write_bytes(b"damaged")
    when(monkeypatch, complete, "posterior_outputs", lambda _, subject, options: (
        broken("P3 is not finite", FloatingPointError) if subject.name == "P3" else 0
    ))  # fmt: skip
    when(monkeypatch, outputs, "write_like", lambda path, *_: (
        broken("P4: disk full", OSError) if "P4" in path.name else 0
    ))  # fmt: skip
    assert make(folder, tmp_path / "out", "t1c") is False
    said = capsys.readouterr()
    words = ("P2_t2.nii.gz", "P3 is not finite", "P4: disk full")
    errors = said.err.splitlines()
    assert len(errors) == 3
    assert all(word in line for word, line in zip(words, errors, strict=True))
    ends = [line.split(" | ")[-1][:6] for line in said.out.splitlines()[-5:]]
    assert ends == ["synthe", "FAILED", "FAILED", "FAILED", "synthe"]
    made = [name for name in files_under(tmp_path / "out") if "nii" in name]
    assert made == ["HGG/P1/P1_t1ce.nii.gz", "HGG/P5/P5_t1ce.nii.gz"]


def broken(why, kind):
    raise kind(why)


def test_a_volume_that_cannot_be_written_ends_its_subject(stand_in, tmp_path, capsys, monkeypatch):
    """The kinds that follow are not written, and at most one of them is computed."""
    when(monkeypatch, outputs, "write_like", lambda path, *_: (
        broken("disk full", OSError) if "draw-02" in path.name else 0
    ))  # fmt: skip
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    options = {"draws": 5, "sampler": "warm"}
    assert make(folder, tmp_path / "out", "t1c", **options) is False
    made = [name for name in files_under(tmp_path / "out") if "nii" in name]
    kinds = ("draw-01", "mean")
    assert made == [f"{group}/{name}/{name}_t1ce_{kind}.nii.gz"
                    for group, name in (("HGG", "P1"), ("LGG", "P2"))
                    for kind in kinds]  # fmt: skip
    assert capsys.readouterr().err.count("disk full") == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_it_and_nothing_is_half_written(stand_in, tmp_path, monkeypatch, stop):
    """What is being written is finished; the subjects that follow are not begun."""
    read = []
    when(monkeypatch, inputs, "prepare_subject", lambda s, *_: read.append(s.name))
    when(monkeypatch, complete, "posterior_outputs", lambda _, subject, options: (
        broken("stop", stop) if subject.name == "P2" else 0
    ))  # fmt: skip
    folder = write_subjects(tmp_path / "in")
    with pytest.raises(stop):
        make(folder, tmp_path / "out", "t1c")
    assert sorted(files_under(tmp_path / "out")) == [
        "HGG/P1/P1_t1ce.json", "HGG/P1/P1_t1ce.nii.gz", "previews/P1.png"
    ]  # fmt: skip
    assert read in (["P1", "P2"], ["P1", "P2", "P3"])
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]


# From here on with the study's own network.


def completed(study, tmp_path, name, *flags, microbatch=None):
    """The volumes that the command line writes for P1, by file."""
    workdir, target = study / "run", tmp_path / name
    options = ("--input", study / "subjects" / "HGG" / "P1", "--output", target)
    with pytest.MonkeyPatch.context() as patch:
        if microbatch:
            scoring = build.build_evaluation_options
            patch.setattr(
                build,
                "build_evaluation_options",
                lambda config: dataclasses.replace(scoring(config), microbatch=microbatch),
            )
        code = run_main("--workdir", workdir, "--mode", "complete", *options, *flags)
    assert code == 0
    return {
        path.name: np.asarray(nib.load(path).dataobj, float)
        for path in sorted(target.rglob("*.nii.gz"))
    }


DRAWN = ("--missing", "t1c,flair", "--sampler", "euler_maruyama")


def test_draws_differ_are_the_same_again_and_do_not_depend_on_the_microbatch(study, tmp_path):
    first = completed(study, tmp_path, "a", *DRAWN, "--draws", "2")
    kinds = ("draw-01", "draw-02", "mean", "q05", "q50", "q95", "sd")
    assert sorted(first) == [
        f"P1_{token}_{kind}.nii.gz" for token in ("flair", "t1ce") for kind in kinds
    ]
    assert files_under(tmp_path / "a")
    again = completed(study, tmp_path, "b", *DRAWN, "--draws", "2")
    assert files_under(tmp_path / "a") == files_under(tmp_path / "b")
    other = completed(study, tmp_path, "c", *DRAWN, "--draws", "2", microbatch=3)
    alone = completed(study, tmp_path, "d", *DRAWN)
    for token in ("flair", "t1ce"):
        one, two = (first[f"P1_{token}_draw-0{draw}.nii.gz"] for draw in (1, 2))
        inside = brain()
        spread = one[inside].std()
        assert np.abs(one - two)[inside].mean() > 0.2 * spread > 0
        assert np.array_equal(again[f"P1_{token}_draw-01.nii.gz"], one)
        assert np.abs(other[f"P1_{token}_draw-01.nii.gz"] - one).max() <= 1  # rounding
        assert np.array_equal(alone[f"P1_{token}.nii.gz"], one)
        assert not one[~inside].any() and np.count_nonzero(one[inside]) > 0


def test_the_mean_of_the_network_is_written_for_every_token(study, tmp_path):
    written = completed(study, tmp_path, "a", "--missing", "flair,t1,t2")
    made = [TOKENS[m] for m in ("flair", "t1", "t2")]
    names = [f"P1_{token}{end}.nii.gz" for token in made for end in ("", "_sd")]
    assert sorted(written) == names
    shutil.rmtree(tmp_path / "a")
    again = completed(study, tmp_path, "a", "--missing", "t2,flair,t1")
    for name, values in written.items():
        assert np.array_equal(values, again[name])
        assert not values[~brain()].any()


@pytest.mark.parametrize("rho", [None, 1.5])
def test_a_damaged_calibration_is_reported(stand_in, tmp_path, rho):
    saved = {"parameters_sha256": "abc", "code_sha256": code_digest(), "rho": rho}
    atomic_io.write_atomic(tmp_path / "run" / "calibration.json", json.dumps(saved))
    folder = write_subjects(tmp_path / "in", ("P1",))
    with pytest.raises(InputError, match=r"calibration.json is damaged"):
        make(folder, tmp_path / "out", "t1c", draws=4, sampler="warm")


def test_draws_need_not_be_kept(stand_in, tmp_path):
    folder = write_subjects(tmp_path / "in", ("P1",))
    options = {"draws": 4, "sampler": "warm"}
    make(folder, tmp_path / "all", "t1c", **options)
    for computed in (2, 2):  # the second time all of it is there already
        make(folder, tmp_path / "few", "t1c", **options, keep_draws=False)
        assert len(stand_in) == computed
    kinds = ("mean", "q05", "q50", "q95", "sd")
    names = [f"HGG/P1/P1_t1ce_{kind}.nii.gz" for kind in kinds]
    few = files_under(tmp_path / "few")
    assert [path for path in few if "nii" in path] == names
    for name in names:
        assert np.array_equal(read(tmp_path / "few" / name)[0],
                              read(tmp_path / "all" / name)[0])  # fmt: skip


def test_advice_tells_what_to_acquire_and_writes_no_volume(stand_in, tmp_path, capsys):
    folder = write_subjects(tmp_path / "in", ("P1", "P2"))
    path_of(folder, "P1", "t1c").unlink()
    path_of(folder, "P1", "t2").unlink()
    path_of(folder, "P2", "t2").unlink()
    options = {"draws": 3, "sampler": "warm", "rank_acquisitions": True}
    assert make(folder, tmp_path / "out", **options)
    assert files_under(tmp_path / "out").keys() == {"advice/P1.csv"}
    with (tmp_path / "out" / "advice" / "P1.csv").open() as file:
        titles, *rows = csv.reader(file)
    assert titles == ["acquire", "all", "t1c", "t2"]
    # The stand-in's mean is the same whatever is seen: a scan tells of itself alone.
    assert sorted(rows) == [["t1c", "0.500", "1.000", "0.000"],
                            ["t2", "0.500", "0.000", "1.000"]]  # fmt: skip
    said = capsys.readouterr().out
    assert "P2" in said and "t2 alone is missing" in said


def test_each_level_has_a_name_of_its_own():
    levels = (0.05, 0.0501, 0.025, 0.5, 0.975, 0.9999, 0.0004)
    kinds = [outputs.quantile_kind(level) for level in levels]
    names = ["q05", "q05p01", "q02p5", "q50", "q97p5", "q99p99", "q00p04"]
    assert kinds == names
