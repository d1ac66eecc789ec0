"""The Python interface computes what the command writes, and refuses in one sentence."""

import doctest
import pkgutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from tiny_run import MODALITIES, path_of, run_main

import ummcsgm
from ummcsgm.inference import api
from ummcsgm.types import InputError

pytest_plugins = ["tiny_study"]

GIVEN = ("flair", "t1", "t2")


@pytest.fixture(scope="module")
def predictor(study, quick_compile):
    return ummcsgm.load(study / "run")


@pytest.fixture(scope="module")
def paths(study):
    return {name: path_of(study / "subjects", "P1", name) for name in MODALITIES}


@pytest.fixture(scope="module")
def images(paths):
    return {name: nib.load(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def arrays(images):
    """As the arrays of RAS+ images, which the subject's files are not."""
    return {
        name: np.asarray(nib.as_closest_canonical(image).dataobj) for name, image in images.items()
    }


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """written(*flags): by kind, what the command writes of P1's t1c."""

    def command(*flags):
        target = tmp_path_factory.mktemp("out")
        words = ("--workdir", study / "run", "--mode", "complete", "--missing", "t1c")
        words += ("--input", study / "subjects" / "HGG" / "P1", "--output", target)
        assert run_main(*words, *flags) == 0
        return {
            path.name.removeprefix("P1_t1ce").removesuffix(".nii.gz").strip("_"): nib.load(path)
            for path in target.rglob("P1_t1ce*.nii.gz")
        }

    return command


def assert_same(volume, stored):
    """Equal to a file's voxels, up to the rounding of its int16."""
    assert np.abs(volume - np.asarray(stored.dataobj)).max() <= 0.5


def test_the_numbers_are_those_that_the_command_writes(predictor, images, written):
    """A nibabel image on the input's own grid, for the mean, its sd, and draws."""
    mean = predictor.mean(images, missing=("t1c",))
    files = written()
    assert mean.missing == ("t1c",) and not mean.draws
    image = mean.mean["t1c"]
    assert np.array_equal(image.affine, images["t1"].affine) and image.shape == images["t1"].shape
    assert b"synthetic" in bytes(image.header["descrip"])
    assert_same(image.get_fdata(), files[""])
    assert_same(mean.sd["t1c"].get_fdata(), files["sd"])
    files = written("--sampler", "warm", "--draws", "4", "--quantiles", "0.2,0.95")
    drawn = predictor.sample(images, draws=4, missing=("t1c",), name="P1")
    assert_same(drawn.mean["t1c"].get_fdata(), files["mean"])
    assert_same(drawn.sd["t1c"].get_fdata(), files["sd"])
    assert_same(drawn.quantile(0.2)["t1c"].get_fdata(), files["q20"])
    assert_same(drawn.quantile(0.95)["t1c"].get_fdata(), files["q95"])
    for index, draw in enumerate(drawn.draws):
        assert_same(draw["t1c"].get_fdata(), files[f"draw-{index + 1:02d}"])


def test_arrays_paths_images_and_a_folder_give_the_same_numbers(
    predictor, study, arrays, images, paths
):
    def draw(volumes, **changes):
        options = {"draws": 1, "seed": 1, "steps": 1, "missing": ("t1c",), "name": "P1"}
        return predictor.sample(volumes, **options | changes)

    expected = draw(images).draws[0]["t1c"]
    array = draw(arrays, spacing=(2, 3, 4)).draws[0]["t1c"]
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert np.array_equal(array, nib.as_closest_canonical(expected).get_fdata())
    for volumes in (paths, study / "subjects" / "HGG" / "P1"):
        image = draw(volumes).draws[0]["t1c"]
        assert np.array_equal(image.get_fdata(), expected.get_fdata())
        assert np.array_equal(image.affine, expected.affine)
    given = {name: images[name] for name in GIVEN}  # what is not given is missing
    assert np.array_equal(draw(given, missing=()).draws[0]["t1c"].get_fdata(), expected.get_fdata())
    for other in ({"seed": 2}, {"name": "P2"}, {"steps": 2}):
        changed = draw(images, **other).draws[0]["t1c"]
        assert not np.array_equal(changed.get_fdata(), expected.get_fdata()), other


def test_what_cannot_be_completed_is_refused_in_a_sentence(predictor, study, arrays, images):
    given = {name: arrays[name] for name in GIVEN}
    cases = [
        (given | {"pd": arrays["t1"]}, {}, "has flair, t1, t2, pd, .* was trained on"),
        (arrays, {}, "no modality is missing: leave one out"),
        (arrays, {"missing": ("pd",)}, "missing names 'pd'; this network knows flair"),
        (arrays, {"missing": MODALITIES}, "no modality is given"),
        ({}, {}, "no modality is given"),
        (given | {"t1": arrays["t1"][:-1]}, {}, "one grid"),
        (given | {"t1": arrays["t1"][0]}, {}, r"t1 is an array of shape .*wanted \[X, Y, Z\]"),
        (given | {"t1": images["t1"]}, {}, "arrays and images: give one kind"),
        (given | {"t1": 0 * arrays["t1"]}, {}, "volumes: t1.nii: .*every voxel is 0"),
        (given, {"spacing": (1, 1, 1)}, "axial pixels of 1 x 1 mm"),
        (study / "subjects", {"missing": ("t1c",)}, "5 subjects .* the folder of one"),
        (study / "subjects" / "HGG" / "P1", {}, "no modality of any subject is missing"),
    ]
    for volumes, options, message in cases:
        with pytest.raises(InputError, match=message):
            predictor.mean(volumes, **options)
    with pytest.raises(InputError, match="sampler is 'mean'; wanted one of euler_maruyama"):
        predictor.sample(given, sampler="mean")
    with pytest.raises(InputError, match="draws is 0; wanted at least 1"):
        predictor.sample(given, draws=0)
    with pytest.raises(InputError, match="a quantile needs at least 2 draws"):
        predictor.mean(given).quantile(0.5)


def test_the_example_in_the_documentation_runs(study, arrays):
    example = doctest.DocTestFinder().find(
        api.Predictor, "Predictor", globs={"workdir": study / "run", "volumes": arrays}
    )
    runner = doctest.DocTestRunner()
    for test in example:
        runner.run(test)
    assert runner.tries >= 7 and runner.failures == 0


def test_every_public_name_is_there_and_documented():
    for name in ummcsgm.__all__:
        assert getattr(ummcsgm, name).__doc__, name
    modules = {module.name for module in pkgutil.iter_modules(ummcsgm.__path__)}
    assert not modules & set(ummcsgm.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ummcsgm.nothing
    code = "import ummcsgm, sys; sys.exit('jax' in sys.modules or 'nibabel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
