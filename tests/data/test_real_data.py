"""Real scans in four disguises: what goes in under any name comes out the same."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from disguises import DISGUISES, OPEN_MS, SUFFIXES, WRITERS, original
from tiny_run import files_under, run_main, tiny_config, write_config
from tiny_slices import open_store

from ummcsgm.data.nifti import read_volume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not OPEN_MS.is_dir(), reason="the real data, shared/data/open_ms, is absent"
    ),
]
SAME = ("brats23", "bids", "msd")  # no voxel is another


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The disguises of the one that is completed, and a network trained on the other.

    By the name of a disguise: its subject's folder, and the folder of its answers.
    """
    root = tmp_path_factory.mktemp("real")
    config = tiny_config(
        WRITERS["brats23"](root / "train", "patient07").parent,
        data__split=(1, 0, 0),
        data__grid=(192, 160),
        data__spacing=1.0,
        data__processes=1,
        train__steps=60,
        train__batch=2,
        train__warmup=2,
    )
    file = write_config(root / "c.py", config)
    workdir = ("--config", file, "--workdir", root / "run")
    assert run_main(*workdir, "--mode", "train") == 0
    folders = {}
    for disguise, write in WRITERS.items():
        source = write(root / disguise, "patient19")
        target = root / f"{disguise}-out"
        order = ("--input", source, "--output", target, "--missing", "t1c")
        code = run_main("--workdir", root / "run", "--mode", "complete", *order)
        assert code == 0, disguise
        folders[disguise] = (source, target)
    return root, folders


def answer(world, disguise):
    written = world[1][disguise][1].rglob("*.nii.gz")
    (path,) = (path for path in written if "_sd." not in path.name)
    return path


def test_the_answers_agree_where_no_voxel_is_another_skipped_without_real_data(world):
    first = nib.load(answer(world, "brats23"))
    values = np.asarray(first.dataobj)
    assert np.count_nonzero(values) > 1e6 and values.std() > 0
    for disguise in SAME[1:]:
        other = nib.load(answer(world, disguise))
        assert np.array_equal(np.asarray(other.dataobj), values), disguise
        assert np.array_equal(other.affine, first.affine)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_the_answer_is_like_the_scan_that_was_left_out_skipped_without_real_data(world, disguise):
    """T1c in its own place and units, after a short training on the other subject."""
    if disguise == "pir":
        source = WRITERS["pir"](world[0] / "again", "patient19")
        (path,) = source.glob("*-t1c.nii.gz")
        truth, _ = read_volume(path)
    else:
        truth, _ = read_volume(OPEN_MS / "patient19" / "patient19-t1c.nii.gz")
    made, _ = read_volume(answer(world, disguise))
    brain = (truth != 0) & (made != 0)
    alike = np.corrcoef(truth[brain], made[brain])[0, 1]
    mirrored = np.corrcoef(truth[brain], made[..., ::-1][brain])[0, 1]
    assert alike > 0.6 and alike > mirrored + 0.1
    assert 0.6 < np.median(made[brain]) / np.median(truth[brain]) < 1.6
    low, high = np.percentile(truth[brain], [0.05, 99.95])
    assert made.min() > low - 0.3 * high and made.max() < 1.6 * high


@pytest.mark.parametrize("disguise", DISGUISES)
def test_the_grid_is_the_inputs_and_the_background_0_skipped_without_real_data(world, disguise):
    source, _ = world[1][disguise]
    made = nib.load(answer(world, disguise))
    given = nib.load(sorted(source.rglob("*.nii.gz"))[0])
    assert made.shape == given.shape[:3]
    assert np.array_equal(made.affine, given.affine)
    assert made.get_data_dtype() == np.float32
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert made.header[field] == given.header[field]
    seen = [np.asarray(nib.load(p).dataobj) for p in sorted(source.rglob("*.nii.gz"))]
    if disguise == "msd":
        seen = list(np.moveaxis(seen[0], -1, 0))
        del seen[list(SUFFIXES).index("t1c")]
    else:
        seen = [s for s, p in zip(seen, sorted(source.rglob("*.nii.gz")), strict=True)]
        names = [p.name for p in sorted(source.rglob("*.nii.gz"))]
        drop = [i for i, n in enumerate(names) if "t1c" in n or "ce-" in n or "seg" in n]
        seen = [s for i, s in enumerate(seen) if i not in drop]
    assert len(seen) == 3
    brain = np.any([values != 0 for values in seen], axis=0)
    assert not np.asarray(made.dataobj)[~brain].any()
    assert np.count_nonzero(np.asarray(made.dataobj)[brain]) > 0.99 * brain.sum()


def test_thick_sagittal_slices_are_resampled_and_come_back_skipped_without_real_data(world):
    """Against the answer on the thin ones, averaged over three as the input was."""
    record = json.loads(answer(world, "pir").with_suffix("").with_suffix(".json").read_text())
    steps = record["voxels_per_pixel"]
    assert steps == [1.0, pytest.approx(1 / 3)]
    thick, _ = read_volume(answer(world, "pir"))
    thin, _ = read_volume(answer(world, "brats23"))
    count = thick.shape[2]
    threes = thin[..., : 3 * count].reshape(*thin.shape[:2], count, 3)
    both = (threes != 0).all(-1) & (thick != 0)
    alike = np.corrcoef(threes.mean(-1)[both], thick[both])[0, 1]
    assert both.sum() > 3e5 and alike > 0.97


def test_prepared_slices_are_the_same_bytes_skipped_without_real_data(world, tmp_path):
    root, _ = world
    reference = open_store(root / "run" / "prepared", "train")
    whole, _ = reference.read(np.arange(len(reference)))
    for disguise in SAME[1:]:
        source = WRITERS[disguise](tmp_path / disguise, "patient07")
        config = tiny_config(
            source, data__split=(1, 0, 0), data__grid=(192, 160), data__spacing=1.0
        )
        file = write_config(tmp_path / "c.py", config)
        workdir = tmp_path / f"run-{disguise}"
        code = run_main("--config", file, "--workdir", workdir, "--mode", "prepare")
        assert code == 0
        store = open_store(workdir / "prepared", "train")
        assert np.array_equal(store.read(np.arange(len(store)))[0], whole)
        shutil.rmtree(workdir)


def test_each_has_a_preview_skipped_without_real_data(world):
    for _, target in world[1].values():
        assert [name for name in files_under(target) if name.endswith(".png")]


def test_the_real_scan_is_what_the_disguise_holds_skipped_without_real_data(world):
    source, _ = world[1]["msd"]
    (path,) = source.rglob("*.nii.gz")
    for index, modality in enumerate(SUFFIXES):
        values, _ = read_volume(path, index)
        expected, _ = read_volume(OPEN_MS / "patient19" / f"patient19-{SUFFIXES[modality]}.nii.gz")
        assert np.array_equal(values, expected)
    assert original("patient19", "t1").shape == (182, 218, 182)
