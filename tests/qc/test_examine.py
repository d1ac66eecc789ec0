"""The doctor finds each planted fault and no other, and has no word for sound data."""

import dataclasses
from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ummcsgm.data import nifti
from ummcsgm.data.build_store import build_stores
from ummcsgm.data.crop import SliceView
from ummcsgm.data.layouts.find import SearchResult
from ummcsgm.data.layouts.known import brats
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import read_volume, write_new
from ummcsgm.data.phantom.make import FIELD_OF_VIEW, make_subject
from ummcsgm.data.store import StoreSettings
from ummcsgm.qc import scans
from ummcsgm.qc.cohort_checks import check_search
from ummcsgm.qc.examine import examine_cohort, examine_subject
from ummcsgm.qc.findings import SEVERITIES
from ummcsgm.types import InputError

OPEN_MS = Path(__file__).parents[3] / "shared/data/open_ms"
MODALITIES = ("flair", "t1", "t1c", "t2")
SHAPE = (64, 64, 40)  # 3.75 mm
COARSE = (32, 32, 20)  # 7.5 mm: too coarse to align, so that the other checks take no time
ENHANCING = (3, 8)  # a seed and an index whose tumour takes up gadolinium


def affine_of(shape):
    size = np.array(FIELD_OF_VIEW) / shape[:3]
    affine = np.diag([-size[0], -size[1], size[2], 1.0])
    affine[1, 3] = FIELD_OF_VIEW[1] - size[1]
    return affine


@pytest.fixture(scope="session")
def images():
    """One healthy subject's images, float32 [X, Y, Z] by modality."""
    phantom = make_subject(*ENHANCING, SHAPE)
    return {m: phantom.images[m].astype(np.float32) for m in MODALITIES}


@pytest.fixture(scope="session")
def coarse():
    """The same subject's images in voxels that are too large to align."""
    phantom = make_subject(*ENHANCING, COARSE)
    return {m: phantom.images[m].astype(np.float32) for m in MODALITIES}


@pytest.fixture(scope="session")
def two(coarse):
    """The coarse T1 and T2, for the checks of one volume."""
    return {"t1": coarse["t1"], "t2": coarse["t2"]}


def written(folder, images, name="a", affines=None, **fields):
    """A subject with `images` in files, with `affines` for some, and other fields."""
    files = {}
    for modality, image in images.items():
        files[modality] = folder / name / f"{name}_{modality}.nii"
        given = affines and affines.get(modality)
        affine = affine_of(image.shape) if given is None else given
        write_new(files[modality], np.asarray(image, np.float32), affine)
    defaults = {"segmentation": None, "mask": None, "volume_indices": {}, "patient": name}
    return Subject(name=name, group="", files=files, **(defaults | fields))


def seen_in(findings):
    """The pairs of modality and code; every sentence names its file or its subject."""
    for finding in findings:
        assert str(finding.path or finding.subject) in finding.sentence
        assert finding.severity in SEVERITIES
        assert finding.sentence.count("\n") == 0 and ";" * 2 not in finding.sentence
    return {(finding.modality, finding.code) for finding in findings}


def found(subject):
    return seen_in(examine_subject(subject, tuple(subject.files)))


def only(subject, modality, code, severity, *words):
    """The subject has one finding, this one, whose sentence has the words."""
    (finding,) = examine_subject(subject, tuple(subject.files))
    assert seen_in([finding]) == {(modality, code)} and finding.severity == severity
    for word in words:
        assert word in finding.sentence, finding.sentence
    return finding.sentence


def rest_slow(cases):
    """The first case as it is, the others marked slow."""
    first, *others = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [first, *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]


def within(image, values):
    return np.where(image != 0, values, 0)


# ------------------------------------------------------------------- sound data


@pytest.mark.parametrize(
    ("seed", "index", "shape"),
    rest_slow(
        [(0, 0, (32, 32, 8)), (7, 2, (120, 120, 78)), (1, 0, (48, 48, 30))]
        + [(0, index, SHAPE) for index in range(5)]
    ),
)
def test_a_sound_phantom_is_passed_in_silence(tmp_path, seed, index, shape):
    phantom = make_subject(seed, index, shape)
    label = tmp_path / "seg.nii"
    write_new(label, phantom.segmentation, affine_of(shape))
    images = {m: phantom.images[m] for m in MODALITIES}
    assert found(written(tmp_path, images, segmentation=label)) == set()


@pytest.mark.slow
def test_two_modalities_or_names_of_no_contrast_are_passed_in_silence(tmp_path, images):
    for pair in combinations(MODALITIES, 2):
        subject = written(tmp_path, {m: images[m] for m in pair}, "_".join(pair))
        assert found(subject) == set()
    strange = {"a": images["t2"], "b": images["t1"], "c": images["flair"]}
    assert found(written(tmp_path, strange)) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: ndimage.gaussian_filter(image, 0.8),
        lambda image: image * np.exp(np.linspace(-0.5, 0.5, 40, dtype=np.float32)),
        lambda image: 1000 * np.sqrt(image),
    ],
    ids=["blur", "shading", "gamma"],
)
@pytest.mark.slow
def test_blur_shading_and_gamma_are_no_fault(tmp_path, images, damage):
    image = within(images["t1"], damage(images["t1"]))
    assert found(written(tmp_path, images | {"t1": image})) == set()


# ------------------------------------------------------------------- files


def test_files_that_cannot_be_read_are_reported_and_the_others_examined(tmp_path, coarse):
    twice = coarse | {"t2": coarse["flair"]}
    subject = written(tmp_path, twice)
    whole = subject.files["t1"].read_bytes()
    subject.files["t1"].write_bytes(whole[: len(whole) // 2])
    subject.files["t1c"].unlink()
    assert found(subject) == {("t1", "unreadable"), ("t1c", "unreadable"), ("t2", "duplicate")}


def spoiled(image, index, value):
    image = image.copy()
    image[index] = value
    return image


@pytest.mark.parametrize(
    ("code", "spoil", "words"),
    [
        ("not_finite", lambda image: spoiled(image, (15, 15, 10), np.nan), "1 of 20"),
        ("not_finite", lambda image: spoiled(image, (15, 15), np.inf), "20 of 20"),
        ("empty", lambda image: 0 * image, "every voxel is 0"),
        ("constant", lambda image: 0 * image + 7, "7 everywhere"),
        ("constant", lambda image: within(image, 3), "3 in all of the brain"),
        ("four_d", lambda image: np.stack([image, image], axis=3), "2 volumes"),
        ("not_3d", lambda image: image[:, :, 10], "(32, 32)"),
    ],
)
def test_a_volume_that_is_none_stops(tmp_path, two, code, spoil, words):
    affines = {"t2": affine_of(COARSE)}
    subject = written(tmp_path, two | {"t2": spoil(two["t2"])}, affines=affines)
    only(subject, "t2", code, "stop", str(subject.files["t2"]), words)


def test_the_class_of_an_error_decides_and_not_its_words(tmp_path, two, monkeypatch):
    """Reworded messages, also with the words of another error, change no finding."""

    subject = written(tmp_path, {"t2": two["t2"]})
    for error, code in (
        (nifti.NiftiError, "unreadable"),
        (nifti.NotFiniteError, "not_finite"),
        (nifti.EmptyVolumeError, "empty"),
        (nifti.ConstantVolumeError, "constant"),
        (nifti.VolumeCountError, "four_d"),
        (nifti.UnplacedError, "unplaced"),
        (nifti.NotAVolumeError, "not_3d"),
        (nifti.ValueTypeError, "not_real"),
    ):
        words = "is empty everywhere, 2 volumes, an array of NaN or infinite"
        fail = Mock(side_effect=error(subject.files["t2"], words))
        monkeypatch.setattr(scans, "read_volume", fail)
        monkeypatch.setattr(scans, "read_volumes", fail)
        only(subject, "t2", code, "stop", "is empty everywhere")


def write_4d(path, images, shape):
    """A 4-D file of `images`, and the subject whose modalities lie in it."""
    write_new(path, np.stack(list(images.values()), axis=3), affine_of(shape))
    indices = {modality: index for index, modality in enumerate(images)}
    return Subject("a", "", "a", dict.fromkeys(images, path), indices, None, None)


def test_the_volumes_of_a_4d_file_are_examined_by_themselves(tmp_path, images, coarse):
    order = ("t1", "t2", "t1c", "flair")
    subject = write_4d(tmp_path / "sound.nii", {m: coarse[m] for m in order}, COARSE)
    assert found(subject) == set()
    broken = {m: coarse[m] for m in order} | {"t1c": spoiled(coarse["t1c"], (15, 15, 10), np.nan)}
    assert found(write_4d(tmp_path / "nan.nii", broken, COARSE)) == {("t1c", "not_finite")}
    subject = write_4d(tmp_path / "swapped.nii", {m: images[m] for m in order}, SHAPE)
    wrong = dict(subject.volume_indices, t1=1, t2=0)
    findings = examine_subject(dataclasses.replace(subject, volume_indices=wrong), MODALITIES)
    assert seen_in(findings) == {("t1", "swapped"), ("t2", "swapped")}
    assert "volume 1: is called t1 but looks like t2" in findings[0].sentence


# ------------------------------------------------------------------- grids


def test_a_shape_unlike_the_others_stops_and_is_blamed_on_the_odd_one(tmp_path, coarse):
    images = coarse | {"flair": coarse["flair"][:, :, :-2]}
    subject = written(tmp_path, images, affines={"flair": affine_of(COARSE)})
    only(subject, "flair", "grid", "stop", "(32, 32, 18)", "(32, 32, 20)")


@pytest.mark.parametrize(
    ("index", "add", "words"), [((2, 3), 5.0, "5 mm off"), ((2, 2), 0.2, "7.5 x 7.5 x 7.95 mm")]
)
def test_an_origin_or_spacing_unlike_the_others_stops(tmp_path, coarse, index, add, words):
    affine = affine_of(COARSE)
    affine[index] += add
    only(written(tmp_path, coarse, affines={"t1": affine}), "t1", "grid", "stop", words)


def test_an_oblique_grid_is_reported_once(tmp_path, two):
    for degrees, codes in ((10, set()), (20, {("", "oblique")})):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
        affines = dict.fromkeys(two, turn @ affine_of(COARSE))
        assert found(written(tmp_path, two, affines=affines)) == codes


def test_thick_slices_are_reported_once_and_only_above_three_to_one(tmp_path, two):
    for step, codes in ((2, set()), (4, {("", "anisotropic")})):
        thick = {m: image[:, :, ::step] for m, image in two.items()}
        affine = affine_of(COARSE)
        affine[2, 2] *= step
        affines = dict.fromkeys(two, affine)
        assert found(written(tmp_path, thick, affines=affines)) == codes


# ------------------------------------------------------------------- alignment


def moved(image, spacing, *, shift=(0, 0, 0), turn=(0, 0, 0), outline):
    """`image`, its content shifted (mm) and turned (degrees), with its outline or not.

    Where the outline stays and content left, there is the median.
    """
    turned = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    middle = np.array(image.shape) / 2
    offset = middle - turned @ (middle + np.array(shift) / spacing)
    content = ndimage.affine_transform(image, turned, offset, order=1)
    inside = ndimage.affine_transform((image != 0).astype(float), turned, offset, order=0)
    if outline:
        return content * (inside > 0.5)
    typical = np.median(image[image != 0])
    return within(image, np.where((inside > 0.5) & (content != 0), content, typical))


@pytest.mark.parametrize(
    ("modality", "shift", "turn", "outline"),
    rest_slow(
        (*move, outline)
        for outline in (True, False)
        for move in (
            ("t2", (0, 0, 8), (0, 0, 0)),
            ("t1", (-6, 5, 0), (0, 0, 0)),
            ("t2", (0, 0, 0), (0, 0, 10)),
        )
    ),
)
def test_a_modality_that_was_moved_is_found(tmp_path, images, modality, shift, turn, outline):
    image = moved(images[modality], 3.75, shift=shift, turn=turn, outline=outline)
    subject = written(tmp_path, images | {modality: image})
    only(subject, modality, "misregistered", "stop", " mm off ", "register")


@pytest.mark.slow
def test_the_sentence_tells_how_far_which_way_and_turned_how(tmp_path, images):
    # Stored to the left and to the back: 7.5 mm along them is 7.5 to the right.
    image = moved(images["t2"], 3.75, shift=(-7.5, 0, 0), outline=True)
    sentence = examine_subject(written(tmp_path, images | {"t2": image}), MODALITIES)
    words = sentence[0].sentence.split("off t1 on average (")[1]
    assert abs(float(words.split(" mm to the right")[0]) - 7.5) < 1
    assert "turned by 0 degrees" in words


@pytest.mark.slow
def test_t1_is_blamed_where_the_others_agree(tmp_path, images):
    image = moved(images["t1"], 3.75, shift=(0, 9, 4), outline=True)
    subject = written(tmp_path, images | {"t1": image})
    only(subject, "t1", "misregistered", "stop", "off t1c")


@pytest.mark.slow
def test_a_shift_far_beyond_a_voxel_with_its_outline_is_found(tmp_path, images):
    image = moved(images["t2"], 3.75, shift=(0, 30, 0), outline=True)
    assert ("t2", "misregistered") in found(written(tmp_path, images | {"t2": image}))


@pytest.mark.parametrize(("modality",), rest_slow(MODALITIES))
def test_a_modality_with_left_and_right_exchanged_is_reported_and_not_to_be_registered(
    tmp_path, images, modality
):
    subject = written(tmp_path, images | {modality: images[modality][::-1]})
    sentence = only(subject, modality, "mirrored", "stop", "left and right", "orientation")
    assert "register the" not in sentence


@pytest.mark.slow
def test_a_turn_that_no_step_undoes_is_not_taken_for_a_mirror(tmp_path, images):
    image = moved(images["flair"], 3.75, shift=(8, 6, 4), turn=(0, 8, 8), outline=False)
    every = {m: volume[::-1, ::-1] for m, volume in (images | {"flair": image}).items()}
    subject = written(tmp_path, every)
    assert found(subject) == {("flair", "misregistered")}


@pytest.mark.slow
def test_of_two_modalities_that_are_mirrored_to_one_another_the_second_is_reported(
    tmp_path, images
):
    for pair in combinations(MODALITIES, 2):
        both = {pair[0]: images[pair[0]], pair[1]: images[pair[1]][::-1]}
        ((_, code),) = found(written(tmp_path, both, "_".join(pair)))
        assert code == "mirrored", pair


@pytest.mark.slow
def test_what_is_mirrored_and_moved_is_mirrored_and_what_all_share_is_no_fault(tmp_path, images):
    image = moved(images["t2"][::-1], 3.75, shift=(8, 0, 4), outline=True)
    assert found(written(tmp_path, images | {"t2": image})) == {("t2", "mirrored")}
    every = {m: image[::-1] for m, image in images.items()}
    assert found(written(tmp_path, every, "every")) == set()


@pytest.mark.slow
def test_what_lies_nowhere_better_is_not_called_misregistered(tmp_path, images):
    two = {"t1": images["t1"], "t2": images["t2"]}
    waves = np.random.default_rng(3).normal(size=SHAPE)
    strange = 100 + 300 * ndimage.gaussian_filter(waves, 2)
    image = within(two["t2"], strange)
    assert found(written(tmp_path, two | {"t2": image})) == set()


# ------------------------------------------------------------------- contrasts


@pytest.mark.parametrize(("first", "second"), rest_slow(combinations(MODALITIES, 2)))
def test_each_exchange_of_two_of_four_modalities_is_found(tmp_path, images, first, second):
    subject = written(tmp_path, images | {first: images[second], second: images[first]})
    findings = examine_subject(subject, MODALITIES)
    assert seen_in(findings) == {(first, "swapped"), (second, "swapped")}
    sentences = " ".join(finding.sentence for finding in findings)
    assert f"called {first} but looks like {second}" in sentences
    assert f"called {second} but looks like {first}" in sentences
    assert {finding.severity for finding in findings} == {"stop"}


@pytest.mark.parametrize(
    ("first", "second"), rest_slow([("T1w", "T2W"), ("t1", "t2"), ("t1n", "t2w")])
)
def test_t1_and_t2_alone_are_distinguished_under_all_their_names(tmp_path, images, first, second):
    names = (first, second)
    sound = dict(zip(names, (images["t1"], images["t2"]), strict=True))
    wrong = dict(zip(names, (images["t2"], images["t1"]), strict=True))
    assert found(written(tmp_path, sound, "sound")) == set()
    assert found(written(tmp_path, wrong)) == {(n, "swapped") for n in names}


@pytest.mark.slow
def test_where_t1_and_t1c_look_alike_the_fewest_names_are_wrong(tmp_path):
    images = make_subject(0, 0, SHAPE).images  # without enhancement
    subject = written(tmp_path, images | {"t1": images["t2"], "t2": images["t1"]})
    assert found(subject) == {("t1", "swapped"), ("t2", "swapped")}


@pytest.mark.slow
def test_three_modalities_in_a_circle_are_named_as_they_are(tmp_path, images):
    wrong = {"t1": images["t2"], "t2": images["flair"], "flair": images["t1"]}
    subject = written(tmp_path, images | wrong)
    sentences = {f.modality: f.sentence for f in examine_subject(subject, MODALITIES)}
    assert {m: s.split("looks like ")[1][:5] for m, s in sentences.items()} == {
        "t1": "t2: e",
        "t2": "flair",
        "flair": "t1: e",
    }


@pytest.mark.parametrize("change", [lambda image: image, lambda image: image * 0.5])
def test_an_image_that_is_there_twice_is_found_also_if_it_was_scaled(tmp_path, images, change):
    subject = written(tmp_path, images | {"t2": change(images["flair"])})
    only(subject, "t2", "duplicate", "stop", "same image as flair")


# ------------------------------------------------------------------- intensities


def noise(image):
    return np.random.default_rng(0).uniform(0.5, 2, image.shape).astype(np.float32)


def test_background_that_is_noise_is_no_skull_stripping(tmp_path, two):
    image = np.where(two["t1"] != 0, two["t1"], noise(two["t1"]))
    subject = written(tmp_path, two | {"t1": image})
    only(subject, "t1", "not_stripped", "stop", "8928 ml", "100% of the frame")


def test_a_head_around_the_brain_is_no_skull_stripping(tmp_path, two):
    brain = two["t1"] != 0
    head = ndimage.binary_dilation(brain, iterations=3) & ~brain
    heads = {m: image + head * 200 * noise(image) for m, image in two.items()}
    assert found(written(tmp_path, heads)) == {(m, "not_stripped") for m in two}
    mask = tmp_path / "mask.nii"
    write_new(mask, brain.astype(np.uint8), affine_of(COARSE))
    assert found(written(tmp_path, heads, mask=mask)) == set()


def scored(image):
    values = image[image != 0]
    return (image - values.mean()) / values.std()


def test_a_z_scored_brain_is_reported(tmp_path, two):
    image = within(two["t1"], scored(two["t1"]))
    subject = written(tmp_path, two | {"t1": image})
    only(subject, "t1", "normalised", "warn", "z-scored", "negative")


def test_a_background_that_is_not_zero_is_reported_with_its_value(tmp_path, two):
    image = two["t2"] - 100
    subject = written(tmp_path, two | {"t2": image})
    only(subject, "t2", "background", "stop", "-100, not 0")
    whole = (two["t2"] - two["t2"].mean()) / two["t2"].std()
    assert found(written(tmp_path, two | {"t2": whole})) == {
        ("t2", "background"),
        ("t2", "normalised"),
    }


@pytest.mark.parametrize(("low", "words"), [(0, "to 0."), (-1, "to -0.57")])
def test_intensities_scaled_to_one_are_reported(tmp_path, two, low, words):
    image = two["t1"] / two["t1"].max()
    subject = written(tmp_path, two | {"t1": within(image, low + (1 - low) * image)})
    only(subject, "t1", "normalised", "warn", "normalised already", words)


def bytes_of(image, largest=255):
    return within(image, np.rint(1 + (largest - 1) * image / image.max()))


@pytest.mark.parametrize("pick", [bytes_of, lambda image: 255 * image / image.max()])
def test_intensities_scaled_to_255_are_reported(tmp_path, two, pick):
    subject = written(tmp_path, two | {"t1": pick(two["t1"])})
    only(subject, "t1", "normalised", "warn", "0 ... 255", "originals")


@pytest.mark.slow
def test_an_image_stored_in_8_bits_is_reported_and_one_in_16_is_not(tmp_path, two):
    few = bytes_of(two["t1"], 180)
    subject = written(tmp_path, two | {"t1": few})
    assert found(subject) == set()
    write_new(subject.files["t1"], few.astype(np.int16), affine_of(COARSE))
    assert found(subject) == set()
    write_new(subject.files["t1"], few.astype(np.uint8), affine_of(COARSE))
    only(subject, "t1", "normalised", "warn", "stored in 8 bits", "180")


def test_values_below_0_or_beyond_255_are_no_8_bits(tmp_path, two):
    beyond = within(two["t1"], np.where(two["t1"] == two["t1"].max(), 256, 100))
    beyond = np.where(bytes_of(two["t1"]) > 254, beyond, bytes_of(two["t1"]))
    assert found(written(tmp_path, two | {"t1": beyond})) == set()
    below = bytes_of(two["t1"])
    below[tuple(np.argwhere(below > 0)[0])] = -1
    assert found(written(tmp_path, two | {"t1": below})) == set()


def test_an_image_without_a_positive_value_stops(tmp_path, two):
    subject = written(tmp_path, two | {"t1": two["t1"] - 30000 * (two["t1"] != 0)})
    only(subject, "t1", "negative", "stop", "no positive value")


def test_clipped_intensities_are_reported_with_their_share(tmp_path, two):
    for percentile, codes in ((99.9, set()), (98, {("t2", "saturated")})):
        limit = np.percentile(two["t2"][two["t2"] != 0], percentile)
        clipped = np.minimum(two["t2"], limit)
        assert found(written(tmp_path, two | {"t2": clipped})) == codes


@pytest.mark.parametrize("slices", [[10], [9, 10, 11]])
def test_empty_slices_amid_the_brain_are_reported_by_number(tmp_path, two, slices):
    image = two["t2"].copy()
    image[:, :, slices] = 0
    subject = written(tmp_path, two | {"t2": image})
    only(subject, "t2", "empty_slices", "warn", f"{len(slices)} of", f"z = {slices[0]} ")


# ------------------------------------------------------------------- other files


def test_a_segmentation_or_mask_on_another_grid_is_reported(tmp_path, two):
    path = tmp_path / "label.nii"
    write_new(path, (two["t1"] != 0)[:, :, 1:].astype(np.uint8), affine_of(COARSE))
    subject = written(tmp_path, two, segmentation=path)
    only(subject, "segmentation", "grid", "warn", str(path), "(32, 32, 19)")
    subject = written(tmp_path, two, mask=path)
    only(subject, "mask", "grid", "stop", str(path), "(32, 32, 19)")


def test_a_segmentation_without_a_lesion_is_sound_and_a_broken_one_is_reported(tmp_path, two):
    path = tmp_path / "label.nii"
    write_new(path, np.zeros(COARSE, np.uint8), affine_of(COARSE))
    assert found(written(tmp_path, two, segmentation=path)) == set()
    path.write_bytes(path.read_bytes()[:-1])
    subject = written(tmp_path, two, segmentation=path)
    only(subject, "segmentation", "unreadable", "warn", "cut short")


def test_a_mask_of_nothing_stops(tmp_path, two):
    path = tmp_path / "mask.nii"
    write_new(path, np.zeros(COARSE, np.uint8), affine_of(COARSE))
    only(written(tmp_path, two, mask=path), "mask", "empty", "stop")
    corner = np.zeros(COARSE, np.uint8)
    corner[:2, :2, :2] = 1
    write_new(path, corner, affine_of(COARSE))
    assert ("mask", "empty") in found(written(tmp_path, two, mask=path))


# ------------------------------------------------------------------- cohorts


@pytest.fixture(scope="session")
def others():
    return [make_subject(5, index, COARSE).images for index in range(3)]


def examined(subjects, modalities=MODALITIES, processes=1, settings=None):
    steps = []
    findings = examine_cohort(
        subjects,
        modalities,
        settings,
        processes=processes,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(k + 1, len(subjects)) for k in range(len(subjects))]
    return findings


def summary(findings):
    return {(f.subject, f.modality, f.code, f.severity) for f in findings}


def test_a_sound_cohort_is_passed_in_silence(tmp_path, others):
    subjects = [written(tmp_path, images, f"s{k}") for k, images in enumerate(others)]
    assert examined(subjects) == []


def test_missing_modalities_are_noted_by_subject_and_counted(tmp_path, others):
    parts = (MODALITIES, ("t1", "t2"), ("t1",))
    subjects = [
        written(tmp_path, {m: images[m] for m in part}, f"s{k}")
        for k, (images, part) in enumerate(zip(others, parts, strict=True))
    ]
    findings = examined(subjects, (*MODALITIES, "pd"))
    by_subject = {("s1", m) for m in ("flair", "t1c", "pd")}
    by_subject |= {("s2", m) for m in ("flair", "t1c", "t2", "pd")} | {("s0", "pd")}
    cohort = {("", m, "missing", "note") for m in ("flair", "t1c", "t2")}
    assert summary(findings) == {(s, m, "missing", "note") for s, m in by_subject} | (
        cohort | {("", "pd", "missing", "stop"), ("s2", "", "too_few", "warn")}
    )
    sentences = " ".join(finding.sentence for finding in findings)
    assert "2 of 3 subjects have no t1c" in sentences and "no subject has pd" in sentences


def test_a_cohort_in_which_nothing_can_be_used_stops(tmp_path, others):
    subject = written(tmp_path, others[0])
    for path in subject.files.values():
        path.write_bytes(b"")
    expected = {("a", m, "unreadable", "stop") for m in MODALITIES}
    expected |= {("a", "", "too_few", "warn"), ("", "", "unusable", "stop")}
    assert summary(examined([subject])) == expected


def test_an_image_of_two_patients_is_a_leak_and_one_of_one_patient_is_not(tmp_path, others):
    # In another frame, and on the other side: it is the same image still.
    copy = np.pad(others[0]["t2"], ((1, 2), (0, 3), (2, 2)))[::-1]
    affine = affine_of(others[0]["t2"].shape)
    first = written(tmp_path, others[0], "s0")
    copied = {"t1": others[1]["t1"], "t2": others[1]["t2"]}
    lone = {"t2": copy}
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    second = written(tmp_path, copied, "s1")
    third = written(tmp_path, lone, "s2", affines={"t2": mirrored})
    pair = ("t2",)
    leaks = [f for f in examined([first, second, third], pair) if f.code == "leakage"]
    assert summary(leaks) == {("s2", "t2", "leakage", "stop")}
    for path in (first.files["t2"], third.files["t2"]):
        assert str(path) in leaks[0].sentence
    same = dataclasses.replace(third, patient="s0")
    assert "leakage" not in {f.code for f in examined([first, second, same], pair)}


def zoomed(affine, y, x):
    """The affine of voxels `y` and `x` times as large as in `affine`."""
    return affine @ np.diag([x, y, 1, 1])


@pytest.mark.parametrize(
    ("zoom", "is_found"), [((1.15, 1), False), ((1.25, 1), True), ((1, 0.8), True)]
)
def test_pixels_that_differ_between_subjects_are_reported_with_the_ends(
    tmp_path, others, zoom, is_found
):
    subjects = []
    for k, images in enumerate(others):
        affine = zoomed(affine_of(images["t1"].shape), *(zoom if k == 1 else (1, 1)))
        two = {m: images[m] for m in ("t1", "t2")}
        subjects.append(written(tmp_path, two, f"s{k}", dict.fromkeys(two, affine)))
    findings = examined(subjects, ("t1", "t2"))
    assert summary(findings) == ({("", "", "spacing", "warn")} if is_found else set())
    if is_found:
        odd = f"{7.5 * zoom[1]:.3g} x {7.5 * zoom[0]:.3g} mm in subject s1"
        ends = [odd, "7.5 x 7.5 mm in subject s0"]
        ends = ends[::-1] if max(zoom) > 1 else ends
        assert f"from {ends[0]} to {ends[1]}" in findings[0].sentence
        assert "config.data.spacing" in findings[0].sentence
    # The run resamples all of them to one size.
    settings = StoreSettings(("t1", "t2"), SliceView((64, 64), 6.0, False, 0), 0.0)
    assert examined(subjects, ("t1", "t2"), settings=settings) == []
    settings = StoreSettings(("t1", "t2"), SliceView((64, 64), 0.0, False, 0), 0.0)
    assert examined(subjects, ("t1", "t2"), settings=settings) == findings


@pytest.mark.slow
def test_oblong_pixels_that_all_subjects_share_are_passed_in_silence(tmp_path, others):
    subjects = []
    for k, images in enumerate(others):
        two = {m: images[m] for m in ("t1", "t2")}
        affine = zoomed(affine_of(images["t1"].shape), 0.7, 1)
        subjects.append(written(tmp_path, two, f"s{k}", dict.fromkeys(two, affine)))
    assert examined(subjects, ("t1", "t2")) == []


def test_what_a_search_refused_stops_and_what_reads_as_nothing_is_counted(tmp_path):
    layout = brats(MODALITIES, "")
    twice, closed = {"a": "a.nii and A.nii are one"}, {str(tmp_path): f"{tmp_path} is shut"}
    paths = tuple(tmp_path / f"{k}.nii" for k in range(8))
    for count, codes in ((0, 0), (4, 4), (5, 5), (6, 6), (8, 6)):
        found = SearchResult(layout, [], twice, closed, paths[:count])
        ambiguous, shut, *unknown = check_search(found)
        assert summary([ambiguous]) == {("a", "", "ambiguous", "stop")}
        assert ambiguous.sentence == twice["a"]
        assert summary([shut]) == {("", "", "unreadable", "stop")}
        assert (shut.path, shut.sentence) == (tmp_path, closed[str(tmp_path)])
        assert len(unknown) == codes
        assert {f.severity for f in unknown} | {"warn"} == {"warn"}
        for finding, path in zip(unknown[:5], paths, strict=False):
            assert finding.path == path and str(path) in finding.sentence
            assert "no scan of the layout brats: rename it" in finding.sentence
    assert unknown[5].path is None and unknown[5].sentence.startswith("3 more files ")


# ------------------------------------------------------------------- a run's own view


def settings_of(grid, *, spacing=0.0, masked=False, min_brain=0.0):
    return StoreSettings(("t1", "t2"), SliceView(grid, spacing, masked, 0), min_brain)


def agreed(folder, subject, settings, *words):
    """The doctor passes what `build_stores` does and stops what it refuses, as it says."""
    findings = examine_subject(subject, ("t1", "t2"), settings)
    try:
        build_stores(
            folder / "prepared",
            {"train": [subject]},
            settings,
            processes=1,
            report=lambda done, total: None,
        )
    except InputError as error:
        (finding,) = findings
        assert finding.severity == "stop" and finding.subject == subject.name
        reason = str(error).removeprefix(f"subject {subject.name}")
        reason = reason.removeprefix(": ").removeprefix(" ")
        assert finding.sentence.startswith(f"subject {subject.name} ")
        assert reason in finding.sentence
        assert words, error
        for word in words:
            assert word in finding.sentence
    else:
        assert not words and findings == []


@pytest.fixture(scope="session")
def extent(two):
    """Rows and columns of the healthy subject's brain."""
    area = ((two["t1"] != 0) | (two["t2"] != 0)).any(axis=2)
    lines = area.any(axis=0), area.any(axis=1)
    return tuple(int(np.ptp(np.flatnonzero(line))) + 1 for line in lines)


def test_a_brain_that_does_not_fit_in_the_grid_stops(tmp_path, two, extent):
    subject = written(tmp_path, two)
    agreed(tmp_path, subject, settings_of(extent))
    words = "does not fit in config.data.grid", "cannot be prepared"
    for grid in ((extent[0] - 1, extent[1]), (extent[0], extent[1] - 1)):
        agreed(tmp_path, subject, settings_of(grid), *words)
    # Twice as large a pixel needs half the grid, one a little smaller does not do.
    half = tuple(size // 2 + 2 for size in extent)
    agreed(tmp_path, subject, settings_of(half, spacing=15.0))
    agreed(tmp_path, subject, settings_of(half, spacing=13.0), *words, "spacing")


def test_a_brain_that_fills_too_little_of_every_slice_stops(tmp_path, two):
    subject = written(tmp_path, two)
    brain = (two["t1"] != 0) | (two["t2"] != 0)
    share = float(np.count_nonzero(brain, axis=(0, 1)).max()) / 32**2
    agreed(tmp_path, subject, settings_of((32, 32), min_brain=share - 1e-6))
    enough = settings_of((32, 32), min_brain=share)
    agreed(tmp_path, subject, enough, "config.data.min_brain_fraction", f"{share:.3f}")
    large = settings_of((32, 32), spacing=15.0, min_brain=share / 2)
    agreed(tmp_path, subject, large, "config.data.min_brain_fraction")


def test_a_mask_that_the_config_asks_for_stops_each_subject_without(tmp_path, others):
    path = tmp_path / "mask.nii"
    shape = others[0]["t1"].shape
    write_new(path, (others[0]["t1"] != 0).astype(np.uint8), affine_of(shape))
    pairs = [{m: other[m] for m in ("t1", "t2")} for other in others]
    bare = [written(tmp_path, two, f"s{k}") for k, two in enumerate(pairs)]
    subjects = [dataclasses.replace(bare[0], mask=path), *bare[1:]]
    pair, settings = ("t1", "t2"), settings_of(shape[:2], masked=True)
    lacking = {(f"s{k}", "mask", "missing", "stop") for k in range(3)}
    assert summary(examined(bare, pair, settings=settings)) == lacking
    lacking.remove(("s0", "mask", "missing", "stop"))
    assert summary(examined(subjects, pair, settings=settings)) == lacking
    assert examined(bare, pair, settings=settings_of(shape[:2])) == []
    assert examined(bare, pair) == []
    agreed(tmp_path, subjects[1], settings, "no brain mask, which config.data.mask asks")
    agreed(tmp_path, subjects[0], settings)


def test_the_brain_is_the_masks_where_the_config_asks_for_one(tmp_path, two, extent):
    brain, path = two["t1"] != 0, tmp_path / "mask.nii"
    head = ndimage.binary_dilation(brain, iterations=2) & ~brain
    heads = {m: image + head * 200 * noise(image) for m, image in two.items()}
    write_new(path, brain.astype(np.uint8), affine_of(COARSE))
    subject = written(tmp_path, heads, mask=path)
    agreed(tmp_path, subject, settings_of(extent, masked=True))
    # A mask larger than what is not 0 counts as it is.
    wide = ndimage.binary_dilation(brain, iterations=1)
    write_new(path, wide.astype(np.uint8), affine_of(COARSE))
    subject = written(tmp_path, two, mask=path)
    agreed(tmp_path, subject, settings_of(extent, masked=True), "does not fit")


def test_a_brain_is_not_called_too_large_for_what_is_no_brain(tmp_path, two, extent):
    filled = {m: np.where(im != 0, im, noise(im)) for m, im in two.items()}
    subject = written(tmp_path, filled)
    codes = {f.code for f in examine_subject(subject, ("t1", "t2"), settings_of(extent))}
    assert codes == {"not_stripped"}
    subject = written(tmp_path, two | {"t2": two["t2"] - 100}, "b")
    codes = {f.code for f in examine_subject(subject, ("t1", "t2"), settings_of(extent))}
    assert codes == {"background"}


def test_what_a_run_leaves_out_does_not_stop_it(tmp_path, two):
    subject = written(tmp_path, {"t1": two["t1"]})
    for settings in (settings_of((8, 8)), settings_of((8, 8), masked=True)):
        findings = examine_subject(subject, ("t1", "t2"), settings)
        assert {f.severity for f in findings} == {"note"}


@pytest.mark.slow
def test_two_processes_find_what_one_finds_in_the_same_order(tmp_path, others):
    subjects = [
        written(tmp_path, {"t1": images["t1"], "t2": images["t1"]}, f"s{k}")
        for k, images in enumerate(others)
    ]
    findings = examined(subjects, ("t1", "t2"))
    assert [f.subject for f in findings] == ["s0", "s1", "s2"]
    assert examined(subjects, ("t1", "t2"), processes=2) == findings


# ------------------------------------------------------------------- real data

WORDS = {"flair": "t2f", "t1": "t1n", "t1c": "t1c", "t2": "t2w"}
real = pytest.mark.skipif(
    not OPEN_MS.is_dir(), reason="the real data, shared/data/open_ms, is absent"
)


def real_subject(name):
    files = {m: OPEN_MS / name / f"{name}-{word}.nii.gz" for m, word in WORDS.items()}
    label = OPEN_MS / name / f"{name}-seg.nii.gz"
    return Subject(name, "", name, files, {}, label, None)


def replaced(folder, subject, **volumes):
    """`subject` with other volumes [Z, Y, X] in new files for some modalities."""
    files = dict(subject.files)
    for modality, volume in volumes.items():
        _, geometry = read_volume(files[modality])
        files[modality] = folder / f"{modality}.nii"
        stored = volume.transpose(2, 1, 0)[::-1]  # to the left, as theirs are
        write_new(files[modality], stored, geometry.affine)
    return dataclasses.replace(subject, files=files)


@real
@pytest.mark.parametrize("name", ["patient07", "patient19"])
@pytest.mark.slow
def test_real_scans_are_passed_in_silence(name):
    assert found(real_subject(name)) == set()


@real
@pytest.mark.parametrize("pair", [("t1c", "flair"), ("t1", "t2")], ids="-".join)
@pytest.mark.slow
def test_an_exchange_of_real_scans_is_found(pair):
    subject = real_subject("patient07")
    first, second = pair
    files = subject.files | {first: subject.files[second], second: subject.files[first]}
    subject = dataclasses.replace(subject, files=files)
    assert found(subject) == {(first, "swapped"), (second, "swapped")}


@real
@pytest.mark.parametrize(
    ("shift", "turn", "outline"),
    [((0, 4, 0), (0, 0, 0), True), ((2.5, 2.5, 2), (0, 0, 0), False)]
    + [((0, 0, 0), (5, 0, 0), False), ((0, 1, 0), (0, 0, 0), True)],
)
@pytest.mark.slow
def test_4_mm_and_5_degrees_between_real_scans_are_found_and_1_mm_is_not(
    tmp_path, shift, turn, outline
):
    subject = real_subject("patient19")
    two = dataclasses.replace(subject, files={m: subject.files[m] for m in ("t2", "flair")})
    volume, _ = read_volume(subject.files["flair"])
    volume = moved(volume, 1.0, shift=shift, turn=turn, outline=outline)
    clear = sum(np.abs(shift)) + sum(turn) > 1
    expected = {("flair", "misregistered")} if clear else set()
    assert found(replaced(tmp_path, two, flair=volume)) == expected


@real
@pytest.mark.parametrize(("name", "modality"), [("patient07", "t2"), ("patient19", "flair")])
@pytest.mark.slow
def test_a_real_scan_with_left_and_right_exchanged_is_found(tmp_path, name, modality):
    subject = real_subject(name)
    volume, _ = read_volume(subject.files[modality])
    subject = replaced(tmp_path, subject, **{modality: volume[:, :, ::-1]})
    assert found(subject) == {(modality, "mirrored")}


@real
@pytest.mark.slow
def test_a_real_scan_that_is_there_twice_is_found():
    subject = real_subject("patient07")
    files = {"t1": subject.files["t1"], "t1c": subject.files["t1"]}
    subject = dataclasses.replace(subject, files=files)
    assert found(subject) == {("t1c", "duplicate")}
