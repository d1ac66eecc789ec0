"""Subjects are found wherever one points, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest

from ummcsgm.data.layouts import (
    Subject,
    brats19,
    file_name,
    find_subjects,
    flat,
    require_all,
)
from ummcsgm.data.nifti import read_volume, write_like, write_new
from ummcsgm.types import InputError

OPEN_MS = Path(__file__).parents[1] / "../shared/data/open_ms"
BRATS = ("flair", "t1", "t1c", "t2")
FLAT = "{subject}/{subject}-{modality}.nii.gz"


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def brats_files(group, name, tokens=("flair", "t1", "t1ce", "t2", "seg")):
    above = f"{group}/" if group else ""
    return [f"{above}{name}/{name}_{token}.nii.gz" for token in tokens]


@pytest.fixture
def brats(tmp_path):
    root = tmp_path / "train"
    touch(root, *brats_files("LGG", "BraTS19_A_1"), *brats_files("HGG", "BraTS19_Z_1"))
    touch(root, *brats_files("HGG", "BraTS19_B_1", ("t1", "t2")))
    return root


def names(subjects):
    return [(subject.group, subject.name) for subject in subjects]


def test_brats19_is_found_by_name_with_groups_tokens_and_segmentation(brats):
    subjects = find_subjects(brats, brats19(BRATS))
    found = [("LGG", "BraTS19_A_1"), ("HGG", "BraTS19_B_1"), ("HGG", "BraTS19_Z_1")]
    assert names(subjects) == found
    folder = brats / "LGG/BraTS19_A_1"
    assert list(subjects[0].files) == list(BRATS)
    assert subjects[0].files["t1c"] == folder / "BraTS19_A_1_t1ce.nii.gz"
    assert subjects[0].segmentation == folder / "BraTS19_A_1_seg.nii.gz"
    assert list(subjects[1].files) == ["t1", "t2"]
    assert subjects[1].segmentation is None


def test_the_order_of_the_modalities_is_the_users(brats):
    first = find_subjects(brats, brats19(("t2", "flair")))[0]
    assert list(first.files) == ["t2", "flair"]
    assert first.files["t2"].name == "BraTS19_A_1_t2.nii.gz"


def test_a_group_or_a_subject_may_be_the_folder_itself(brats):
    layout = brats19(BRATS)
    found = names(find_subjects(brats / "HGG", layout))
    assert found == [("HGG", "BraTS19_B_1"), ("HGG", "BraTS19_Z_1")]
    own = find_subjects(brats / "HGG/BraTS19_Z_1", layout)
    assert names(own) == [("HGG", "BraTS19_Z_1")]
    whole = find_subjects(brats, layout)
    assert own[0].files == whole[2].files and own[0].segmentation


def test_subjects_outside_any_group_are_found_as_in_the_validation_set(tmp_path):
    touch(tmp_path / "validation", *brats_files("", "A"), *brats_files("", "B"))
    layout = brats19(BRATS)
    found = find_subjects(tmp_path / "validation", layout)
    assert names(found) == [("", "A"), ("", "B")]
    assert names(find_subjects(tmp_path / "validation/A", layout)) == [("", "A")]
    assert file_name(layout, found[0], "t1c") == Path("A/A_t1ce.nii.gz")


def test_a_folder_is_known_by_its_name_also_when_one_stands_in_it(brats, monkeypatch):
    monkeypatch.chdir(brats / "LGG/BraTS19_A_1")
    found = names(find_subjects(Path("."), brats19(BRATS)))
    assert found == [("LGG", "BraTS19_A_1")]


def test_a_link_to_a_folder_counts_under_its_own_name(tmp_path):
    touch(tmp_path, "stored/3f2a/P-t1.nii.gz")
    (tmp_path / "P").symlink_to(tmp_path / "stored/3f2a")
    assert names(find_subjects(tmp_path / "P", flat(["t1"], FLAT))) == [("", "P")]


def test_only_files_that_read_completely_as_the_pattern_count(tmp_path):
    touch(tmp_path, "S/S-t1.nii.gz", "S/S-t1.nii.gz.part", "S/xS-t1.nii.gz")
    touch(tmp_path, "S/S-t1x.nii.gz", "S/S-t2.json", "S/S-t2.nii.gz.bak")
    touch(tmp_path, "Q/P-t1.nii.gz", "._S/._S-t1.nii.gz", "R/deep/R-t1.nii.gz")
    (tmp_path / "S/S-t2xnii.gz").touch()
    subjects = find_subjects(tmp_path, flat(["t1", "t2"], FLAT))
    assert names(subjects) == [("", "S")]
    assert subjects[0].files == {"t1": tmp_path / "S/S-t1.nii.gz"}


def test_a_modality_whose_name_ends_anothers_takes_no_file_from_it(tmp_path):
    touch(tmp_path, "S_t1.nii.gz", "S_w_t1.nii.gz")
    layout = flat(["t1", "w_t1"], "{subject}_{modality}.nii.gz")
    (subject,) = find_subjects(tmp_path, layout)
    assert subject.files["t1"].name == "S_t1.nii.gz"
    assert subject.files["w_t1"].name == "S_w_t1.nii.gz"


def test_a_folder_for_each_modality_is_a_pattern_too(tmp_path):
    touch(tmp_path, "t1/a.nii.gz", "t2/a.nii", "t2/b.nii.gz", "seg/b.nii.gz")
    subjects = find_subjects(
        tmp_path, flat(["t2", "t1"], "{modality}/{subject}.nii.gz")
    )
    assert names(subjects) == [("", "a"), ("", "b")]
    assert [path.name for path in subjects[0].files.values()] == ["a.nii", "a.nii.gz"]
    assert subjects[1].segmentation == tmp_path / "seg/b.nii.gz"


def test_a_modality_whose_name_begins_anothers_takes_no_file_from_it(tmp_path):
    touch(tmp_path, "t1_S.nii.gz", "t1_w_S.nii.gz")
    layout = flat(["t1", "t1_w"], "{modality}_{subject}.nii.gz")
    (subject,) = find_subjects(tmp_path, layout)
    assert subject.files["t1"].name == "t1_S.nii.gz"
    assert subject.files["t1_w"].name == "t1_w_S.nii.gz"


def test_signs_in_names_and_patterns_stand_for_themselves(tmp_path):
    touch(tmp_path, "S(1)/S(1)+t(1)*.nii.gz", "S(1)/S(1)t(1).nii.gz")
    layout = flat(["t(1)*"], "{subject}/{subject}+{modality}.nii.gz")
    (subject,) = find_subjects(tmp_path, layout)
    assert subject.files == {"t(1)*": tmp_path / "S(1)/S(1)+t(1)*.nii.gz"}


@pytest.mark.parametrize("name", ["a+b", "c/d", "e,f", "g h", "{i}", ""])
def test_names_that_tables_flags_or_paths_would_split_are_refused(name):
    with pytest.raises(InputError, match="config.data.modalities has"):
        flat(["t1", name], FLAT)


def test_an_earlier_answer_is_not_a_scan(tmp_path):
    for modality in ("t1", "t2"):
        path = tmp_path / f"S/S-{modality}.nii.gz"
        volume = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
        write_new(path, volume, np.eye(4))
    values, geometry = read_volume(path)
    write_like(path, values, geometry)
    (subject,) = find_subjects(tmp_path, flat(["t1", "t2"], FLAT))
    assert list(subject.files) == ["t1"]


def test_a_plain_nii_is_taken_and_two_of_one_image_are_refused(tmp_path):
    touch(tmp_path, "S/S-t1.nii")
    layout = flat(["t1"], FLAT)
    assert find_subjects(tmp_path, layout)[0].files["t1"].name == "S-t1.nii"
    touch(tmp_path, "S/S-t1.nii.gz")
    with pytest.raises(InputError, match=r"S-t1\.nii and .*S-t1\.nii\.gz"):
        find_subjects(tmp_path, layout)


def test_one_name_in_two_groups_is_refused_with_both_files(brats):
    touch(brats, *brats_files("LGG", "BraTS19_Z_1"))
    with pytest.raises(InputError, match=r"HGG/BraTS19_Z_1/.*LGG/BraTS19_Z_1/"):
        find_subjects(brats, brats19(BRATS))


def test_no_folder_and_no_subject_are_told_apart_and_say_what_was_seen(tmp_path):
    layout = brats19(BRATS)
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        find_subjects(tmp_path / "nowhere", layout)
    with pytest.raises(InputError, match="saw no files"):
        find_subjects(tmp_path, layout)
    touch(tmp_path, "S/S-t1n.nii.gz")
    with pytest.raises(InputError) as error:
        find_subjects(tmp_path, layout)
    for word in (layout.pattern, "flair, t1, t1ce, t2", "S/S-t1n.nii.gz"):
        assert word in str(error.value)


def test_a_segmentation_alone_is_no_subject(tmp_path):
    touch(tmp_path, "A/A-seg.nii.gz")
    with pytest.raises(InputError, match="no subject found"):
        find_subjects(tmp_path, flat(["t1"], FLAT))
    touch(tmp_path, "B/B-t1.nii.gz")
    assert names(find_subjects(tmp_path, flat(["t1"], FLAT))) == [("", "B")]


def test_file_names_are_where_found_files_lie(brats):
    layout = brats19(BRATS)
    for subject in find_subjects(brats, layout):
        for modality, path in subject.files.items():
            assert brats / file_name(layout, subject, modality) == path
    absent = Subject("S", "HGG", {}, None)
    assert file_name(layout, absent, "t1c") == Path("HGG/S/S_t1ce.nii.gz")


def test_training_wants_every_file_and_names_the_first_that_is_missing(brats):
    layout = brats19(BRATS)
    subjects = find_subjects(brats, layout)
    require_all([subjects[0], subjects[2]], layout)
    with pytest.raises(InputError) as error:
        require_all(subjects, layout)
    assert "BraTS19_B_1 has no flair" in str(error.value)
    assert "HGG/BraTS19_B_1/BraTS19_B_1_flair.nii.gz" in str(error.value)


@pytest.mark.parametrize("modalities", [("flair", "t1ce"), ("pd",), ()])
def test_brats19_knows_four_modalities(modalities):
    with pytest.raises(InputError, match="config.data.modalities"):
        brats19(modalities)


@pytest.mark.parametrize("modalities", [("a", "a"), ("a", "seg"), ()])
def test_modalities_stand_once_and_are_not_the_segmentation(modalities):
    with pytest.raises(InputError, match="config.data.modalities"):
        flat(modalities, FLAT)


@pytest.mark.parametrize(
    "pattern, word",
    [
        ("{subject}/image.nii.gz", "lacks {modality}"),
        ("all/{modality}.nii.gz", "lacks {subject}"),
        ("{subject}/{session}/{modality}.nii.gz", "{session}"),
        ("{subject}/{modality}.png", "must end in .nii.gz"),
        ("{subject/{modality}.nii.gz", "config.data.pattern"),
        ("{}/{subject}/{modality}.nii.gz", "the field {}"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern, word):
    with pytest.raises(InputError) as error:
        flat(["t1"], pattern)
    assert word in str(error.value) and pattern in str(error.value)


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="shared/data/open_ms is absent")
def test_real_open_ms_subjects_are_found_skipped_where_shared_data_is_absent():
    layout = flat(["t1n", "t1c", "t2w", "t2f"], FLAT)
    subjects = find_subjects(OPEN_MS, layout)
    assert [subject.name for subject in subjects] == ["patient07", "patient19"]
    require_all(subjects, layout)
    (own,) = find_subjects(OPEN_MS / "patient19", layout)
    assert own.name == "patient19" and list(own.files) == ["t1n", "t1c", "t2w", "t2f"]
    assert own.segmentation.name == "patient19-seg.nii.gz"
