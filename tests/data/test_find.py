"""Subjects are found wherever one points, in each layout, and nothing else is."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from ummcsgm.data.layouts.find import NoSubjectError, file_name, find_subjects
from ummcsgm.data.layouts.known import bids, brats, brats23, ixi, msd
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.layouts.pattern import flat
from ummcsgm.data.nifti import read_volume, write_like, write_new
from ummcsgm.types import InputError

OPEN_MS = Path(__file__).parents[3] / "shared/data/open_ms"
FOUR = ("flair", "t1", "t1c", "t2")
FLAT = "{subject}/{subject}-{modality}.nii.gz"
OLD = ("flair", "t1", "t1ce", "t2", "seg")
NEW = ("t2f", "t1n", "t1c", "t2w", "seg")
VOLUMES = {"flair": 0, "t1": 1, "t1c": 2, "t2": 3}


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def touch_brats(folder, name, words=OLD, ending="nii.gz", divider="_"):
    folder_name = name.split("/")[-1]
    touch(folder, *(f"{name}/{folder_name}{divider}{word}.{ending}" for word in words))


def find(folder, layout):
    """The subjects, of which none is ambiguous."""
    found = find_subjects(folder, [layout])
    assert found.layout.name == layout.name and not found.problems
    return found.subjects


def unused(folder, *layouts):
    """The files that belong to no subject, relative to the folder."""
    unused_files = find_subjects(folder, layouts).unused_files
    assert list(unused_files) == sorted(unused_files)
    return [str(path.relative_to(folder)) for path in unused_files]


def refuse(folder, layout, *refused):
    """The sentence on the names that are refused, and on no others."""
    found = find_subjects(folder, [layout])
    assert list(found.problems) == list(refused)
    assert not {subject.name for subject in found.subjects} & set(refused)
    (sentence,) = set(found.problems.values())
    return sentence


def names(subjects):
    return [(subject.group, subject.name) for subject in subjects]


def every_layout():
    made = [make(("t1", "t2"), "") for make in (brats, brats23, msd, ixi)]
    return [*made, bids(("t1", "t2"), "", ())]


def check_round_trip(folder, layout, subjects):
    """The name of each file that was found says where it lies, and so does that of one
    that was not."""
    for subject in subjects:
        for modality, path in subject.files.items():
            assert folder / file_name(layout, subject, modality) == path
        for modality in layout.suffixes:
            assert file_name(layout, subject, modality).name.endswith(".nii.gz")


@pytest.fixture
def grouped(tmp_path):
    """As BraTS 2018 and 2019 train: grades are groups; one subject is incomplete."""
    root = tmp_path / "train"
    touch_brats(root, "LGG/BraTS19_A_1")
    touch_brats(root, "HGG/BraTS19_Z_1")
    touch_brats(root, "HGG/BraTS19_B_1", ("t1", "t2"))
    touch(root, "name_mapping.csv", "survival_data.csv")
    return root


def test_brats_2019_has_groups_suffixes_and_segmentations(grouped):
    subjects = find(grouped, brats(FOUR, ""))
    assert names(subjects) == [
        ("LGG", "BraTS19_A_1"),
        ("HGG", "BraTS19_B_1"),
        ("HGG", "BraTS19_Z_1"),
    ]
    folder = grouped / "LGG/BraTS19_A_1"
    assert subjects[0] == Subject(
        "BraTS19_A_1",
        "LGG",
        "BraTS19_A_1",
        {
            "flair": folder / "BraTS19_A_1_flair.nii.gz",
            "t1": folder / "BraTS19_A_1_t1.nii.gz",
            "t1c": folder / "BraTS19_A_1_t1ce.nii.gz",
            "t2": folder / "BraTS19_A_1_t2.nii.gz",
        },
        {},
        folder / "BraTS19_A_1_seg.nii.gz",
        None,
    )
    assert list(subjects[0].files) == list(FOUR)
    assert list(subjects[1].files) == ["t1", "t2"]
    assert subjects[1].segmentation is None


def test_brats_2018_is_named_as_2019_is(tmp_path):
    touch_brats(tmp_path, "HGG/Brats18_CBICA_AAB_1")
    touch_brats(tmp_path, "LGG/Brats18_TCIA09_141_1")
    found = names(find(tmp_path, brats(FOUR, "")))
    assert found == [("HGG", "Brats18_CBICA_AAB_1"), ("LGG", "Brats18_TCIA09_141_1")]


def test_the_order_and_the_names_of_the_modalities_are_the_users(grouped):
    first = find(grouped, brats(("T2w", "T1gd", "t2f"), ""))[0]
    assert list(first.files) == ["T2w", "T1gd", "t2f"]
    assert [path.name for path in first.files.values()] == [
        "BraTS19_A_1_t2.nii.gz",
        "BraTS19_A_1_t1ce.nii.gz",
        "BraTS19_A_1_flair.nii.gz",
    ]


def test_a_group_or_a_subject_may_be_the_folder_itself(grouped):
    layout = brats(FOUR, "")
    found = find(grouped / "HGG", layout)
    assert names(found) == [("HGG", "BraTS19_B_1"), ("HGG", "BraTS19_Z_1")]
    subjects = find(grouped / "HGG/BraTS19_Z_1", layout)
    assert names(subjects) == [("HGG", "BraTS19_Z_1")]
    assert subjects == find(grouped, layout)[2:] and subjects[0].segmentation
    check_round_trip(grouped, layout, subjects)


def test_a_folder_that_is_no_grade_is_no_group(tmp_path):
    touch_brats(tmp_path, "XGG/A")
    assert names(find(tmp_path / "XGG", brats(FOUR, ""))) == [("", "A")]
    with pytest.raises(NoSubjectError):
        find(tmp_path, brats(FOUR, ""))


def test_subjects_outside_any_group_are_found_as_in_the_validation_set(tmp_path):
    root = tmp_path / "validation"
    touch_brats(root, "BraTS19_A_1", OLD[:4])
    touch_brats(root, "BraTS19_B_1", OLD[:4])
    layout = brats(FOUR, "")
    found = find(root, layout)
    assert names(found) == [("", "BraTS19_A_1"), ("", "BraTS19_B_1")]
    assert all(subject.segmentation is None for subject in found)
    assert names(find(root / "BraTS19_A_1", layout)) == [("", "BraTS19_A_1")]
    check_round_trip(root, layout, found)
    name = file_name(layout, found[0], "t1c")
    assert name == Path("BraTS19_A_1/BraTS19_A_1_t1ce.nii.gz")


def test_subjects_within_and_outside_groups_are_found_together(tmp_path):
    touch_brats(tmp_path, "HGG/A")
    touch_brats(tmp_path, "B")
    layout = brats(FOUR, "")
    found = find(tmp_path, layout)
    assert names(found) == [("HGG", "A"), ("", "B")]
    check_round_trip(tmp_path, layout, found)


def test_brats_2020_is_not_compressed_and_has_one_oddly_named_segmentation(tmp_path):
    touch_brats(tmp_path, "BraTS20_Training_354", ending="nii")
    touch_brats(tmp_path, "BraTS20_Training_355", OLD[:4], ending="nii")
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    first, second = find(tmp_path, brats(FOUR, ""))
    assert first.segmentation.name == "BraTS20_Training_354_seg.nii"
    assert second.segmentation is None and list(second.files) == list(FOUR)
    assert second.files["t1c"].name == "BraTS20_Training_355_t1ce.nii"


def test_brats_2021_is_found(tmp_path):
    touch_brats(tmp_path, "BraTS2021_00000")
    touch_brats(tmp_path, "BraTS2021_00002", OLD[:4])
    layout = brats(FOUR, "")
    found = find(tmp_path, layout)
    assert names(found) == [("", "BraTS2021_00000"), ("", "BraTS2021_00002")]
    assert [bool(subject.segmentation) for subject in found] == [True, False]
    check_round_trip(tmp_path, layout, found)


def test_brats_2023_to_2025_has_several_visits_of_a_patient(tmp_path):
    visits = ("GLI-00005-100", "GLI-00005-101", "GLI-00006-000", "MET-00005-000")
    for visit in visits:
        touch_brats(tmp_path, f"BraTS-{visit}", NEW, divider="-")
    layout = brats23(FOUR, "")
    found = find(tmp_path, layout)
    assert names(found) == [("", f"BraTS-{visit}") for visit in visits]
    assert [subject.patient for subject in found] == [
        "BraTS-GLI-00005",
        "BraTS-GLI-00005",
        "BraTS-GLI-00006",
        "BraTS-MET-00005",
    ]
    words = [path.name.removesuffix(".nii.gz")[-3:] for path in found[0].files.values()]
    assert words == list(NEW[:4])
    assert found[0].segmentation.name == "BraTS-GLI-00005-100-seg.nii.gz"
    check_round_trip(tmp_path, layout, found)
    (subject,) = find(tmp_path / "BraTS-GLI-00005-101", layout)
    assert subject == found[1]


def test_a_number_alone_is_no_visit(tmp_path):
    numbers = ("study-001", "study-002", "BraTS-GLI-00005", "p07", "2023-1")
    for name in numbers:
        touch_brats(tmp_path, name, NEW, divider="-")
    assert {subject.name: subject.patient for subject in find(tmp_path, brats23(FOUR, ""))} == {
        name: name for name in numbers
    }


@pytest.fixture
def decathlon(tmp_path):
    """As Task01_BrainTumour.tar unpacks, with what macOS left in it."""
    root = tmp_path / "Task01_BrainTumour"
    for number in (1, 2, 3):
        touch(root, f"imagesTr/BRATS_{number:03d}.nii.gz")
        touch(root, f"imagesTr/._BRATS_{number:03d}.nii.gz")
        touch(root, f"labelsTr/BRATS_{number:03d}.nii.gz")
    touch(root, "imagesTs/BRATS_485.nii.gz", "imagesTs/._BRATS_485.nii.gz")
    touch(root, "labelsTr/._BRATS_001.nii.gz", "._dataset.json")
    describe(root, "FLAIR", "T1w", "t1gd", "T2w")
    return root


def describe(root, *channels):
    channels_by_index = {str(index): name for index, name in enumerate(channels)}
    (root / "dataset.json").write_text(json.dumps({"modality": channels_by_index}))


def test_the_decathlon_has_one_file_a_subject_and_labels(decathlon):
    found = find(decathlon, msd(FOUR, ""))
    assert names(found) == [("", f"BRATS_{n}") for n in ("001", "002", "003", "485")]
    scan = decathlon / "imagesTr/BRATS_001.nii.gz"
    label = decathlon / "labelsTr/BRATS_001.nii.gz"
    files = dict.fromkeys(FOUR, scan)
    assert found[0] == Subject("BRATS_001", "", "BRATS_001", files, VOLUMES, label, None, (2, 1, 3))
    test = found[3]
    assert test.files["t2"] == decathlon / "imagesTs/BRATS_485.nii.gz"
    assert test.segmentation is None


def test_the_decathlons_channels_are_flair_t1_t1gd_t2_also_undescribed(decathlon):
    layout = msd(("t2", "T1gd", "t1"), "")
    assert find(decathlon, layout)[0].volume_indices == {"t2": 3, "T1gd": 2, "t1": 1}
    (decathlon / "dataset.json").unlink()
    assert find(decathlon, layout)[0].volume_indices == {"t2": 3, "T1gd": 2, "t1": 1}
    describe(decathlon, "FLAIR", "T1w", "t1gd", "T2w")
    assert find(decathlon, msd(FOUR, ""))[0].volume_indices == VOLUMES


@pytest.mark.parametrize("below", ["", "imagesTr", "imagesTs"])
def test_another_order_of_the_channels_is_read_from_the_description(decathlon, below):
    describe(decathlon, "T1w", "T2w", "FLAIR", "T1gd")
    found = find_subjects(decathlon / below, [msd(FOUR, "")])
    swapped = {"flair": 2, "t1": 0, "t1c": 3, "t2": 1}
    assert found.layout.volume_indices == swapped
    assert all(subject.volume_indices == swapped for subject in found.subjects)


def test_a_channel_that_is_described_as_absent_is_absent(decathlon):
    describe(decathlon, "T1w", "FLAIR", "T2w")
    subject = find(decathlon, msd(FOUR, ""))[0]
    assert subject.volume_indices == {"flair": 1, "t1": 0, "t2": 2}
    assert list(subject.files) == ["flair", "t1", "t2"]


@pytest.mark.parametrize(
    "channels, lacking",
    [(("FLAIR", "T1w", "post", "T2w"), "t1c"), (("MRI",), "flair"), (("PD",), "flair")],
)
def test_channels_that_nobody_knows_are_refused(decathlon, channels, lacking):
    describe(decathlon, *channels)
    with pytest.raises(InputError) as error:
        find(decathlon, msd(FOUR, ""))
    sentence = f"names {', '.join(channels)}, and none of them is {lacking}"
    assert sentence in str(error.value) and "dataset.json" in str(error.value)


@pytest.mark.parametrize(
    "content", ["[]", '{"modality": ["T1w"]}', '{"channel_names": {"0": "T1w"}}', "3"]
)
def test_a_description_of_something_else_says_nothing(decathlon, content):
    (decathlon / "dataset.json").write_text(content)
    assert find(decathlon, msd(FOUR, ""))[0].volume_indices == VOLUMES


def test_a_description_beside_data_of_another_layout_is_not_looked_at(grouped):
    (grouped / "dataset.json").write_text('{"modality": {"0": "CT"}}')
    assert find_subjects(grouped, every_layout()).layout.name == "brats"
    (grouped / "dataset.json").write_text("damaged")
    assert find(grouped, brats(FOUR, "")) and find_subjects(grouped, every_layout())


def test_files_of_one_channel_each_are_no_decathlon(tmp_path):
    touch(tmp_path, *(f"imagesTr/BRATS_001_000{index}.nii.gz" for index in range(4)))
    touch(tmp_path, "labelsTr/BRATS_001.nii.gz")
    with pytest.raises(NoSubjectError, match="no subject found"):
        find(tmp_path, msd(FOUR, ""))


def test_a_decathlon_subject_in_train_and_test_is_refused_with_both_files(decathlon):
    touch(decathlon, "imagesTs/BRATS_001.nii.gz")
    sentence = refuse(decathlon, msd(FOUR, ""), "BRATS_001")
    assert re.search(r"imagesTr/BRATS_001.*imagesTs/BRATS_001", sentence)


def test_what_the_decathlon_lacks_is_written_as_a_file_of_its_own(decathlon):
    layout = msd(("flair", "T1gd"), "")
    name = file_name(layout, find(decathlon, layout)[0], "T1gd")
    assert name == Path("BRATS_001_T1gd.nii.gz")


def test_masks_of_the_decathlon_lie_in_a_folder_of_that_word(decathlon):
    touch(decathlon, "brains/BRATS_001.nii.gz")
    found = find(decathlon, msd(FOUR, "brains"))
    assert found[0].mask == decathlon / "brains/BRATS_001.nii.gz"
    assert found[0].segmentation == decathlon / "labelsTr/BRATS_001.nii.gz"
    assert found[1].mask is None
    assert find(decathlon, msd(FOUR, ""))[0].mask is None


IXI = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873")


def test_ixi_has_a_folder_for_each_contrast_and_other_files_beside(tmp_path):
    for word in ("T1", "T2", "PD", "MRA"):
        for name in IXI:
            touch(tmp_path, f"IXI-{word}/{name}-{word}.nii.gz")
    touch(tmp_path, f"IXI-DTI/{IXI[0]}-DTI-00.nii.gz", "IXI.xls")
    (tmp_path / f"IXI-T2/{IXI[1]}-T2.nii.gz").unlink()
    layout = ixi(("T1", "t2w", "pd"), "")
    found = find(tmp_path, layout)
    assert names(found) == [("", name) for name in IXI]
    assert found[0].files == {
        "T1": tmp_path / f"IXI-T1/{IXI[0]}-T1.nii.gz",
        "t2w": tmp_path / f"IXI-T2/{IXI[0]}-T2.nii.gz",
        "pd": tmp_path / f"IXI-PD/{IXI[0]}-PD.nii.gz",
    }
    assert list(found[1].files) == ["T1", "pd"]
    assert [subject.patient for subject in found] == list(IXI)
    check_round_trip(tmp_path, layout, found)
    lacking = file_name(layout, found[1], "t2w")
    assert lacking == Path(f"IXI-T2/{IXI[1]}-T2.nii.gz")


@pytest.mark.parametrize("above", ["", "{word}/"])
def test_ixi_may_lie_in_one_folder_or_in_folders_named_by_the_contrast(tmp_path, above):
    for word in ("T1", "T2", "PD", "MRA"):
        touch(tmp_path, above.format(word=word) + f"{IXI[0]}-{word}.nii.gz")
    (subject,) = find(tmp_path, ixi(("t1", "t2", "pd"), ""))
    assert [path.name[-9:-7] for path in subject.files.values()] == ["T1", "T2", "PD"]


def test_what_is_not_named_as_ixi_names_its_subjects_is_not_ixi(tmp_path):
    touch(tmp_path, "IXI-T1/S-T1.nii.gz", "S-T2.nii.gz", "IXI-T1/IXI02-T1.nii.gz")
    with pytest.raises(NoSubjectError):
        find(tmp_path, ixi(("t1", "t2"), ""))


def test_a_contrast_in_the_folder_of_another_is_not_taken(tmp_path):
    touch(tmp_path, f"IXI-T2/{IXI[0]}-T1.nii.gz", f"IXI-T1/{IXI[1]}-T1.nii.gz")
    assert names(find(tmp_path, ixi(("t1", "t2"), ""))) == [("", IXI[1])]


def test_one_contrast_of_ixi_in_two_places_is_refused_with_both(tmp_path):
    touch(tmp_path, f"IXI-T1/{IXI[0]}-T1.nii.gz", f"{IXI[0]}-T1.nii.gz")
    expected = rf"IXI-T1/{IXI[0]}-T1\.nii\.gz and .*/{IXI[0]}-T1\.nii\.gz are one image"
    assert re.search(expected, refuse(tmp_path, ixi(("t1", "t2"), ""), IXI[0]))


ALL_BIDS = ("t1", "t1c", "t2", "flair", "pd")


def test_bids_without_sessions(tmp_path):
    stem = "sub-01/anat/sub-01"
    touch(tmp_path, *(f"{stem}_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR", "PDw")))
    touch(tmp_path, f"{stem}_acq-tse_T2w.nii.gz", f"{stem}_ce-gadolinium_T1w.nii.gz")
    touch(tmp_path, f"{stem}_T1w.json", "sub-01/func/sub-01_task-rest_bold.nii.gz")
    touch(tmp_path, "dataset_description.json", "sub-02/anat/sub-02_T1w.nii")
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    first, second = find(tmp_path, bids(ALL_BIDS, "", ()))
    assert (first.name, first.patient, first.group) == ("sub-01", "sub-01", "")
    assert [path.name for path in first.files.values()] == [
        "sub-01_T1w.nii.gz",
        "sub-01_ce-gadolinium_T1w.nii.gz",
        "sub-01_acq-tse_T2w.nii.gz",
        "sub-01_FLAIR.nii.gz",
        "sub-01_PDw.nii.gz",
    ]
    assert second.files == {"t1": tmp_path / "sub-02/anat/sub-02_T1w.nii"}
    subjects = find(tmp_path / "derivatives/x", bids(ALL_BIDS, "", ()))
    assert subjects[0].files["t1"].name == "sub-01_desc-preproc_T1w.nii.gz"


@pytest.fixture
def sessions(tmp_path):
    for path in ("sub-01/{}/ses-a", "sub-01/{}/ses-b", "sub-02/{}/ses-a"):
        subject, session = path.split("/{}/")
        stem = f"{subject}/{session}/anat/{subject}_{session}"
        touch(tmp_path, f"{stem}_T1w.nii.gz", f"{stem}_FLAIR.nii.gz")
    return tmp_path


def test_each_session_of_bids_is_a_subject_of_the_same_patient(sessions):
    layout = bids(ALL_BIDS, "", ())
    found = find(sessions, layout)
    assert [(subject.name, subject.patient) for subject in found] == [
        ("sub-01_ses-a", "sub-01"),
        ("sub-01_ses-b", "sub-01"),
        ("sub-02_ses-a", "sub-02"),
    ]
    where = sessions / "sub-01/ses-b/anat/sub-01_ses-b_FLAIR.nii.gz"
    assert found[1].files["flair"] == where
    check_round_trip(sessions, layout, found)
    assert find(sessions / "sub-01", layout) == found[:2]
    assert find(sessions / "sub-01/ses-b", layout) == found[1:2]
    assert find(sessions / "sub-01/ses-b/anat", layout) == found[1:2]


def test_a_missing_contrast_of_bids_has_the_name_it_would_have(sessions):
    layout = bids(ALL_BIDS, "", ("run-1",))
    name = file_name(layout, find(sessions, layout)[1], "t1c")
    path = "sub-01/ses-b/anat/sub-01_ses-b_ce-gadolinium_T1w.nii.gz"
    assert name == Path(path)
    touch(sessions, "sub-03/anat/sub-03_T1w.nii.gz")
    last = find(sessions, layout)[-1]
    name = file_name(layout, last, "t1c")
    assert name == Path("sub-03/anat/sub-03_ce-gadolinium_T1w.nii.gz")
    check_round_trip(sessions, layout, find(sessions, layout))


def test_a_file_of_another_subject_or_session_is_not_taken(sessions):
    touch(sessions, "sub-02/ses-a/anat/sub-01_ses-a_T2w.nii.gz")
    touch(sessions, "sub-02/ses-a/anat/sub-02_ses-b_T2w.nii.gz")
    touch(sessions, "sub-02/ses-a/anat/sub-02_T2w.nii.gz")
    found = find(sessions, bids(ALL_BIDS, "", ()))
    assert all(list(subject.files) == ["t1", "flair"] for subject in found)


@pytest.mark.parametrize("entity", ["ce-gadolinium", "ce-gd", "acq-x_ce-yes_rec-y"])
def test_a_contrast_agent_makes_t1c_and_is_never_t1(tmp_path, entity):
    touch(tmp_path, f"sub-1/anat/sub-1_{entity}_T1w.nii.gz")
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", f"sub-1/anat/sub-1_{entity}_T2w.nii")
    (subject,) = find(tmp_path, bids(("t1", "t1c", "t2"), "", ()))
    assert list(subject.files) == ["t1c", "t2"]
    assert subject.files["t2"].name == "sub-1_T2w.nii.gz"
    (subject,) = find(tmp_path, bids(("t1", "t2"), "", ()))
    assert list(subject.files) == ["t2"]


@pytest.fixture
def runs(tmp_path):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, f"{stem}_run-1_T1w.nii.gz", f"{stem}_run-2_T1w.nii.gz")
    touch(tmp_path, f"{stem}_T2w.nii.gz", f"{stem}_acq-3D_FLAIR.nii.gz")
    return tmp_path


def test_two_runs_are_refused_with_both_files_and_what_chooses(runs):
    sentence = refuse(runs, bids(ALL_BIDS, "", ()), "sub-1")
    for words in ("run-1_T1w.nii.gz and", "run-2_T1w.nii.gz", "config.data.entities"):
        assert words in sentence


@pytest.mark.parametrize("run", ["run-1", "run-2"])
def test_entities_choose_and_files_without_them_are_read(runs, run):
    (subject,) = find(runs, bids(ALL_BIDS, "", (run,)))
    assert [path.name for path in subject.files.values()] == [
        f"sub-1_{run}_T1w.nii.gz",
        "sub-1_T2w.nii.gz",
        "sub-1_acq-3D_FLAIR.nii.gz",
    ]


def test_every_entity_must_fit_and_one_that_fits_none_is_reported(runs):
    (subject,) = find(runs, bids(ALL_BIDS, "", ("run-2", "acq-2D")))
    assert list(subject.files) == ["t1", "t2"]
    (runs / "sub-1/anat/sub-1_T2w.nii.gz").unlink()
    with pytest.raises(NoSubjectError, match="of config.data.entities acq-2D, run-01"):
        find(runs, bids(ALL_BIDS, "", ("run-01", "acq-2D")))


@pytest.mark.parametrize("value", ["brain", "preproc"])
def test_of_a_file_with_the_entity_and_one_without_it_that_with_it_wins(tmp_path, value):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, f"{stem}_T1w.nii.gz", f"{stem}_desc-{value}_T1w.nii.gz")
    touch(tmp_path, f"{stem}_T2w.nii.gz", f"{stem}_desc-other_T2w.nii.gz")
    touch(tmp_path, "sub-2/anat/sub-2_T1w.nii.gz")
    first, second = find(tmp_path, bids(ALL_BIDS, "", (f"desc-{value}",)))
    assert {name: path.name for name, path in first.files.items()} == {
        "t1": f"sub-1_desc-{value}_T1w.nii.gz",
        "t2": "sub-1_T2w.nii.gz",
    }
    assert second.files["t1"].name == "sub-2_T1w.nii.gz"
    assert unused(tmp_path, bids(ALL_BIDS, "", (f"desc-{value}",))) == []
    assert "one image" in refuse(tmp_path, bids(ALL_BIDS, "", ()), "sub-1")


def test_a_bare_key_chooses_the_files_without_it(tmp_path):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, f"{stem}_T1w.nii.gz", f"{stem}_desc-brain_T1w.nii.gz")
    touch(tmp_path, f"{stem}_desc-brain_T2w.nii.gz", f"{stem}_run-1_FLAIR.nii.gz")
    (subject,) = find(tmp_path, bids(ALL_BIDS, "", ("desc-",)))
    assert {name: path.name for name, path in subject.files.items()} == {
        "t1": "sub-1_T1w.nii.gz",
        "flair": "sub-1_run-1_FLAIR.nii.gz",
    }
    assert unused(tmp_path, bids(ALL_BIDS, "", ("desc-",))) == []


def test_the_first_of_two_entities_decides_first(tmp_path):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, f"{stem}_run-1_T1w.nii.gz", f"{stem}_acq-3D_T1w.nii.gz")
    touch(tmp_path, f"{stem}_run-1_acq-2D_T1w.nii.gz")
    for entities in (("run-1", "acq-3D"), ("acq-3D", "run-1")):
        (subject,) = find(tmp_path, bids(ALL_BIDS, "", entities))
        assert subject.files["t1"].name == f"sub-1_{entities[0]}_T1w.nii.gz"


@pytest.mark.parametrize("entity", ["desc-preproc", "desc-"])
def test_what_says_which_mask_it_is_chooses_no_mask(tmp_path, entity):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, f"{stem}_T1w.nii.gz", f"{stem}_desc-brain_mask.nii.gz")
    (subject,) = find(tmp_path, bids(["t1"], "brain_mask", (entity,)))
    assert subject.mask == tmp_path / f"{stem}_desc-brain_mask.nii.gz"


def test_segmentation_and_mask_of_bids(tmp_path):
    for name in ("sub-1", "sub-2", "sub-3"):
        touch(tmp_path, f"{name}/anat/{name}_T1w.nii.gz")
        touch(tmp_path, f"{name}/anat/{name}_space-T1w_desc-brain_mask.nii.gz")
        touch(tmp_path, f"{name}/anat/{name}_label-eye_mask.nii.gz")
    touch(tmp_path, "sub-1/anat/sub-1_dseg.nii.gz")
    touch(tmp_path, "sub-2/anat/sub-2_label-lesion_mask.nii.gz")
    found = find(tmp_path, bids(["t1"], "brain_mask", ()))
    assert [subject.segmentation and subject.segmentation.name for subject in found] == [
        "sub-1_dseg.nii.gz",
        "sub-2_label-lesion_mask.nii.gz",
        None,
    ]
    masks = [f"{subject.name}_space-T1w_desc-brain_mask.nii.gz" for subject in found]
    assert [subject.mask.name for subject in found] == masks
    assert all(subject.mask is None for subject in find(tmp_path, bids(["t1"], "", ())))


@pytest.mark.parametrize(
    "layout, divider", [(brats(("t1",), "brain"), "_"), (brats23(("t1",), "b"), "-")]
)
def test_a_mask_is_the_file_of_its_word(tmp_path, layout, divider):
    words = (*layout.suffixes.values(), layout.mask)
    touch_brats(tmp_path, "A", words, divider=divider)
    touch_brats(tmp_path, "B", words[:1], divider=divider)
    first, second = find(tmp_path, layout)
    assert first.mask.name == f"A{divider}{layout.mask}.nii.gz"
    assert list(first.files) == ["t1"] and second.mask is None


def test_a_mask_that_is_not_asked_for_is_not_found(tmp_path):
    touch_brats(tmp_path, "A", ("t1", "brain"))
    assert find(tmp_path, brats(("t1",), ""))[0].mask is None


# Own patterns.


def test_only_files_that_read_completely_as_the_pattern_count(tmp_path):
    touch(tmp_path, "S/S-t1.nii.gz", "S/S-t1.nii.gz.part", "S/xS-t1.nii.gz")
    touch(tmp_path, "S/S-t1x.nii.gz", "S/S-t2.json", "S/S-t2.nii.gz.bak")
    touch(tmp_path, "Q/P-t1.nii.gz", "._S/._S-t1.nii.gz", "R/deep/R-t1.nii.gz")
    touch(tmp_path, "T/._T-t1.nii.gz", ".V/.V-t1.nii.gz", "U/U-t2.nii.gz/x.txt")
    (tmp_path / "S/S-t2xnii.gz").touch()
    subjects = find(tmp_path, flat(["t1", "t2"], FLAT, ""))
    assert names(subjects) == [("", "S")]
    assert subjects[0].files == {"t1": tmp_path / "S/S-t1.nii.gz"}


def test_a_modality_whose_name_ends_anothers_takes_no_file_from_it(tmp_path):
    touch(tmp_path, "S_t1.nii.gz", "S_w_t1.nii.gz")
    layout = flat(["t1", "w_t1"], "{subject}_{modality}.nii.gz", "")
    (subject,) = find(tmp_path, layout)
    assert subject.files["t1"].name == "S_t1.nii.gz"
    assert subject.files["w_t1"].name == "S_w_t1.nii.gz"


def test_a_modality_whose_name_begins_anothers_takes_no_file_from_it(tmp_path):
    touch(tmp_path, "t1_S.nii.gz", "t1_w_S.nii.gz")
    layout = flat(["t1", "t1_w"], "{modality}_{subject}.nii.gz", "")
    (subject,) = find(tmp_path, layout)
    assert subject.files["t1"].name == "t1_S.nii.gz"
    assert subject.files["t1_w"].name == "t1_w_S.nii.gz"


def test_a_folder_for_each_modality_is_a_pattern_too(tmp_path):
    touch(tmp_path, "t1/a.nii.gz", "t2/a.nii", "t2/b.nii.gz", "seg/b.nii.gz")
    layout = flat(["t2", "t1"], "{modality}/{subject}.nii.gz", "")
    subjects = find(tmp_path, layout)
    assert names(subjects) == [("", "a"), ("", "b")]
    assert [path.name for path in subjects[0].files.values()] == ["a.nii", "a.nii.gz"]
    assert subjects[1].segmentation == tmp_path / "seg/b.nii.gz"


def test_signs_in_names_and_patterns_stand_for_themselves(tmp_path):
    touch(tmp_path, "S(1)/S(1)+t(1)*.nii.gz", "S(1)/S(1)t(1).nii.gz")
    layout = flat(["t(1)*"], "{subject}/{subject}+{modality}.nii.gz", "")
    (subject,) = find(tmp_path, layout)
    assert subject.files == {"t(1)*": tmp_path / "S(1)/S(1)+t(1)*.nii.gz"}


def test_eight_custom_modalities_are_found(tmp_path):
    modalities = tuple(f"m{number}" for number in range(8))
    touch(tmp_path, *(f"S/S-{name}.nii.gz" for name in modalities))
    layout = flat(modalities, FLAT, "")
    (subject,) = find(tmp_path, layout)
    assert list(subject.files) == list(modalities)
    check_round_trip(tmp_path, layout, [subject])


def test_groups_and_sessions_of_ones_own(tmp_path):
    pattern = "{group}/{subject}/{session}/{subject}_{session}-{modality}.nii.gz"
    for folder in ("site a/P1/base", "site a/P1/later", "site b/P2/base"):
        _, subject, session = folder.split("/")
        touch(tmp_path, *(f"{folder}/{subject}_{session}-{m}.nii.gz" for m in ("x", "y")))
    layout = flat(["x", "y"], pattern, "")
    found = find(tmp_path, layout)
    assert [(subject.group, subject.name, subject.patient) for subject in found] == [
        ("site a", "P1_base", "P1"),
        ("site a", "P1_later", "P1"),
        ("site b", "P2_base", "P2"),
    ]
    check_round_trip(tmp_path, layout, found)
    assert find(tmp_path / "site a", layout) == found[:2]
    assert find(tmp_path / "site a/P1", layout) == found[:2]
    assert find(tmp_path / "site a/P1/later", layout) == found[1:2]


def test_a_pattern_for_each_modality_and_what_else_there_is(tmp_path):
    pattern = "t1=anat/{subject}_T1.nii.gz; pd=pd/{subject}.nii.gz; seg=s/{subject}.nii"
    touch(tmp_path, "anat/a_T1.nii.gz", "pd/a.nii.gz", "pd/b.nii", "s/a.nii")
    touch(tmp_path, "b/a.nii", "s/c.nii", "anat/b_T2.nii.gz")
    layout = flat(["pd", "t1"], pattern + "; skull=b/{subject}.nii", "skull")
    found = find(tmp_path, layout)
    assert names(found) == [("", "a"), ("", "b")]
    assert found[0].files == {"pd": tmp_path / "pd/a.nii.gz", "t1": tmp_path / "anat/a_T1.nii.gz"}
    assert found[0].segmentation == tmp_path / "s/a.nii"
    assert found[0].mask == tmp_path / "b/a.nii"
    assert list(found[1].files) == ["pd"] and found[1].mask is None
    check_round_trip(tmp_path, layout, found[:1])
    assert file_name(layout, found[1], "t1") == Path("anat/b_T1.nii.gz")


@pytest.mark.parametrize(
    "pattern",
    [
        "t1={subject}.nii.gz; t2={subject}_t2.nii.gz",
        "t2={subject}_t2.nii.gz; t1={subject}.nii.gz",
        "t1={subject}_t2.nii.gz; t2={subject}_t2.nii.gz",
    ],
)
def test_a_file_that_two_patterns_claim_is_refused(tmp_path, pattern):
    touch(tmp_path, "S.nii.gz", "S_t2.nii.gz")
    touch(tmp_path, "Q.nii.gz")
    layout = flat(["t1", "t2"], pattern, "")
    both = "{subject}.nii.gz" in pattern
    sentence = refuse(tmp_path, layout, *(["S", "S_t2"] if both else ["S"]))
    for words in ("S_t2.nii.gz reads as", "t1 of ", "t2 of ", "config.data.pattern"):
        assert words in sentence
    found = find_subjects(tmp_path, [layout])
    assert names(found.subjects) == ([("", "Q")] if both else [])
    left_over = [] if both else [tmp_path / "Q.nii.gz", tmp_path / "S.nii.gz"]
    assert list(found.unused_files) == left_over


# Whichever folder one points at, and whatever else lies there.


def test_a_folder_is_known_by_its_name_also_when_one_stands_in_it(grouped, monkeypatch):
    monkeypatch.chdir(grouped / "LGG/BraTS19_A_1")
    assert names(find(Path("."), brats(FOUR, ""))) == [("LGG", "BraTS19_A_1")]


def test_a_link_to_a_folder_counts_under_its_name(tmp_path):
    touch(tmp_path, "stored/3f2a/P-t1.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/P").symlink_to(tmp_path / "stored/3f2a")
    layout = flat(["t1"], FLAT, "")
    assert names(find(tmp_path / "in/P", layout)) == [("", "P")]
    (subject,) = find(tmp_path / "in", layout)
    assert subject.files == {"t1": tmp_path / "in/P/P-t1.nii.gz"}


def test_a_link_to_a_file_is_a_file_and_one_to_nothing_is_not_passed_over(tmp_path):
    touch(tmp_path, "store/a", "S/S-t1.nii.gz")
    (tmp_path / "S/S-t2.nii.gz").symlink_to(tmp_path / "store/a")
    (tmp_path / "S/S-pd.nii.gz").symlink_to(tmp_path / "store/never fetched")
    (subject,) = find(tmp_path, flat(["t1", "t2", "pd"], FLAT, ""))
    assert list(subject.files) == ["t1", "t2", "pd"]


def test_an_earlier_completion_is_not_a_scan(tmp_path):
    for modality in ("t1", "t2"):
        path = tmp_path / f"S/S-{modality}.nii.gz"
        volume = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
        write_new(path, volume, np.eye(4))
    values, geometry = read_volume(path)
    write_like(path, values, geometry)
    layout = flat(["t1", "t2"], FLAT, "")
    (subject,) = find(tmp_path, layout)
    assert list(subject.files) == ["t1"]
    touch(tmp_path, "S/S-t2.nii")  # nor is it the scan's double
    assert find(tmp_path, layout)[0].files["t2"].name == "S-t2.nii"


def test_a_plain_nii_is_taken_and_two_of_one_image_are_refused(tmp_path):
    touch(tmp_path, "S/S-t1.nii")
    layout = flat(["t1"], FLAT, "")
    assert find(tmp_path, layout)[0].files["t1"].name == "S-t1.nii"
    touch(tmp_path, "S/S-t1.nii.gz")
    sentence = refuse(tmp_path, layout, "S")
    assert re.search(r"S-t1\.nii and .*S-t1\.nii\.gz", sentence)
    assert "entities" not in sentence


def test_a_pattern_without_gz_takes_no_compressed_file(tmp_path):
    touch(tmp_path, "S_t1.nii.gz", "S_t2.nii")
    (subject,) = find(tmp_path, flat(["t1", "t2"], "{subject}_{modality}.nii", ""))
    assert list(subject.files) == ["t2"]


def test_two_segmentations_and_two_masks_are_refused_too(tmp_path):
    for word in ("seg", "brain"):
        root = tmp_path / word
        touch_brats(root, "S", ("t1", "t2", word))
        touch(root, f"S/S_{word}.nii")
        sentence = refuse(root, brats(FOUR, "brain"), "S")
        assert re.search(rf"S_{word}\.nii and .*are one image", sentence)


def test_one_name_in_two_groups_is_refused_with_both_files(grouped):
    touch_brats(grouped, "LGG/BraTS19_Z_1", ("t2",))
    sentence = refuse(grouped, brats(FOUR, ""), "BraTS19_Z_1")
    assert re.search(r"HGG/BraTS19_Z_1/.*LGG/BraTS19_Z_1/", sentence)


def test_one_name_within_and_outside_a_group_is_refused_with_both_files(grouped):
    touch_brats(grouped, "BraTS19_Z_1", ("t2",))
    sentence = refuse(grouped, brats(FOUR, ""), "BraTS19_Z_1")
    assert f"{grouped}/BraTS19_Z_1/" in sentence
    assert f"{grouped}/HGG/BraTS19_Z_1/" in sentence


@pytest.mark.parametrize("words", [("t1",), ("t2",)])
def test_names_that_differ_in_case_only_are_one_subject_twice(tmp_path, words):
    """Whether or not they have the same modalities: their results would collide."""
    touch_brats(tmp_path, "Brats_A", ("t1",))
    touch_brats(tmp_path, "BRATS_a", words)
    sentence = refuse(tmp_path, brats(FOUR, ""), "BRATS_a", "Brats_A")
    assert "is there twice" in sentence
    assert "Brats_A/Brats_A_t1.nii.gz" in sentence
    assert f"BRATS_a/BRATS_a_{words[0]}.nii.gz" in sentence


def test_a_patient_whose_name_differs_in_case_only_is_one_patient_twice(tmp_path):
    path = "sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_T1w.nii.gz"
    touch(tmp_path, path.format("A", 1), path.format("a", 2))
    touch(tmp_path, path.format("B", 1))
    found = find_subjects(tmp_path, [bids(["t1"], "", ())])
    assert names(found.subjects) == [("", "sub-B_ses-1")]
    assert list(found.problems) == ["sub-A_ses-1", "sub-a_ses-2"]
    for sentence in found.problems.values():
        assert re.search(r"sub-A_ses-1_.*sub-a_ses-2_", sentence)


def test_sessions_that_differ_in_case_only_are_one_session_twice(tmp_path):
    path = "sub-1/ses-{0}/anat/sub-1_ses-{0}_{1}.nii.gz"
    touch(tmp_path, path.format("A", "T1w"), path.format("a", "T2w"))
    layout = bids(["t1", "t2"], "", ())
    sentence = refuse(tmp_path, layout, "sub-1_ses-A", "sub-1_ses-a")
    assert re.search(r"sub-1_ses-A_T1w.*sub-1_ses-a_T2w", sentence)


def test_a_stray_file_in_a_folder_of_subjects_makes_no_subject_of_it(tmp_path):
    touch(tmp_path / "in", "S/t1.nii.gz", "S/t2.nii.gz", "t1.nii.gz")
    layout = flat(["t1", "t2"], "{subject}/{modality}.nii.gz", "")
    assert names(find(tmp_path / "in", layout)) == [("", "S")]
    (tmp_path / "in/S").rename(tmp_path / "S")
    assert names(find(tmp_path / "in", layout)) == [("", "in")]


def test_scans_of_two_patients_under_one_name_are_refused_with_both_files(tmp_path):
    pattern = "{modality}/{subject}/{session}.nii.gz"
    touch(tmp_path, "t1/P/1_2.nii.gz", "t1/P_1/2.nii.gz")
    sentence = refuse(tmp_path, flat(["t1"], pattern, ""), "P_1_2")
    assert re.search(r"t1/P/1_2\.nii\.gz and .*t1/P_1/2\.nii\.gz", sentence)


def test_a_segmentation_alone_is_no_subject(tmp_path):
    touch(tmp_path, "A/A-seg.nii.gz")
    with pytest.raises(NoSubjectError, match="no subject found"):
        find(tmp_path, flat(["t1"], FLAT, ""))
    touch(tmp_path, "B/B-t1.nii.gz", "B/B-seg.nii.gz", "A/A-seg.nii")
    assert names(find(tmp_path, flat(["t1"], FLAT, ""))) == [("", "B")]
    assert unused(tmp_path, flat(["t1"], FLAT, "")) == ["A/A-seg.nii", "A/A-seg.nii.gz"]


def test_no_folder_and_no_subject_are_distinguished_and_say_what_was_seen(tmp_path):
    layout = brats(FOUR, "")
    with pytest.raises(InputError, match="nowhere: there is no such folder") as error:
        find(tmp_path / "nowhere", layout)
    assert not isinstance(error.value, NoSubjectError)
    with pytest.raises(NoSubjectError, match="saw no files"):
        find(tmp_path, layout)
    touch(tmp_path, "S/S-t1n.nii.gz")
    with pytest.raises(NoSubjectError) as error:
        find(tmp_path, layout)
    for word in (
        "{group}/{subject}/{subject}_{modality}.nii.gz or {subject}/{subject}_",
        "one of flair, t1, t1ce, t2, and saw",
        "S/S-t1n.nii.gz",
    ):
        assert word in str(error.value)


def test_a_file_instead_of_the_folder_is_no_folder(tmp_path):
    touch(tmp_path, "S.nii.gz")
    with pytest.raises(InputError, match="no such folder"):
        find(tmp_path / "S.nii.gz", brats(FOUR, ""))


# What one ambiguous subject, or a folder that cannot be read, leaves of the others.


@pytest.fixture
def unreadable(monkeypatch):
    """A function after which no one may look into a folder; root could always."""
    closed, scan = [], os.scandir

    def scandir(folder):
        if Path(folder) in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return closed.append


def test_an_ambiguous_subject_leaves_the_others_and_its_files_are_not_unused(grouped):
    layout = brats(FOUR, "")
    before = find(grouped, layout)
    touch_brats(grouped, "HGG/BraTS19_C_1")
    touch_brats(grouped, "HGG/BraTS19_C_1", ending="nii")
    touch_brats(grouped, "HGG/BraTS19_D_1")
    touch_brats(grouped, "LGG/BraTS19_D_1")
    for layouts in ([layout], every_layout()):
        found = find_subjects(grouped, layouts)
        assert [subject.name for subject in found.subjects] == [subject.name for subject in before]
        assert list(found.problems) == ["BraTS19_C_1", "BraTS19_D_1"]
        assert found.layout.name == "brats"
    found = find_subjects(grouped, [layout])
    assert found.subjects == before and found.unused_files == ()
    scan = "BraTS19_C_1_flair.nii"
    assert f"/{scan} and " in found.problems["BraTS19_C_1"]
    assert f"/{scan}.gz are one image" in found.problems["BraTS19_C_1"]


def test_a_folder_of_ambiguous_subjects_only_has_none_and_says_why(tmp_path):
    touch(tmp_path, "S/S_t1.nii", "S/S_t1.nii.gz")
    found = find_subjects(tmp_path, every_layout())
    assert found.layout.name == "brats" and found.subjects == []
    assert list(found.problems) == ["S"] and found.unused_files == ()


def test_a_layout_of_ambiguous_subjects_is_one_of_two_layouts(tmp_path):
    touch(tmp_path, *EXAMPLES["brats"], "B/B-t1n.nii", "B/B-t1n.nii.gz")
    with pytest.raises(InputError, match="layouts brats and brats23, as .*B-t1n.nii"):
        find_subjects(tmp_path, every_layout())


def test_a_folder_that_cannot_be_read_is_skipped_and_reported(grouped, unreadable):
    layout = brats(FOUR, "")
    before = find(grouped, layout)
    unreadable(grouped / "HGG/BraTS19_B_1")
    found = find_subjects(grouped, [layout])
    assert found.subjects == [before[0], before[2]]
    closed = str(grouped / "HGG/BraTS19_B_1")
    assert found.problems == {closed: f"{closed} cannot be read (Permission denied)"}


def test_if_nothing_can_be_read_this_is_reported(tmp_path, unreadable):
    touch(tmp_path, "A/A_t1.nii.gz", "scan.nii.gz")
    unreadable(tmp_path / "A")
    found = find_subjects(tmp_path, every_layout())
    assert found.subjects == [] and list(found.problems) == [str(tmp_path / "A")]
    assert found.unused_files == (tmp_path / "scan.nii.gz",)
    unreadable(tmp_path)
    with pytest.raises(InputError, match="cannot be read .Permission denied") as error:
        find_subjects(tmp_path, every_layout())
    assert not isinstance(error.value, NoSubjectError)


def test_a_link_to_itself_is_no_folder(tmp_path):
    touch(tmp_path, "A/A_t1.nii.gz")
    (tmp_path / "loop").symlink_to("loop")
    assert names(find(tmp_path, brats(FOUR, ""))) == [("", "A")]


# Files of no subject.


def test_files_that_read_as_nothing_or_as_an_unasked_modality_are_reported(tmp_path):
    touch_brats(tmp_path, "A")
    touch_brats(tmp_path, "B", ("t1", "t1gd", "brain", "dwi"))
    touch_brats(tmp_path, "C", ("seg",))
    touch(tmp_path, "A/A_flair_old.nii", "scan.nii.gz", "A/deep/er/A_t1.nii.gz")
    touch(tmp_path, "A/._A_t1x.nii.gz", "A/notes.txt")
    lost = ["A/A_flair_old.nii", "B/B_brain.nii.gz", "B/B_dwi.nii.gz"]
    lost += ["B/B_t1gd.nii.gz", "C/C_seg.nii.gz", "scan.nii.gz"]
    assert unused(tmp_path, brats(FOUR, "")) == lost
    assert list(find(tmp_path, brats(FOUR, ""))[1].files) == ["t1"]
    lost.remove("B/B_brain.nii.gz")
    assert unused(tmp_path, brats(FOUR, "brain")) == lost
    fewer = unused(tmp_path, brats(("t1", "flair", "t2"), "brain"))
    assert fewer == sorted([*lost, "A/A_t1ce.nii.gz"])


def test_a_brats23_suffix_in_a_brats_folder_is_unused_also_if_both_layouts_are_tried(tmp_path):
    touch(tmp_path, *EXAMPLES["brats"], "A/A_t1n.nii.gz", "A/A-seg.nii.gz")
    expected = ["A/A-seg.nii.gz", "A/A_t1n.nii.gz"]
    assert unused(tmp_path, *every_layout()) == expected
    assert unused(tmp_path, brats(("t1", "t2"), "")) == expected


def test_an_earlier_completion_is_not_an_unused_file(tmp_path):
    touch(tmp_path, "S/S-t1.nii.gz")
    scan = tmp_path / "scan.nii.gz"
    write_new(scan, np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4))
    values, geometry = read_volume(scan)
    for name in ("S/S-t2.nii.gz", "S/S-pd.nii.gz", "preview.nii.gz"):
        write_like(tmp_path / name, values, geometry)
    assert unused(tmp_path, flat(["t1", "t2"], FLAT, "")) == ["scan.nii.gz"]


def test_what_entities_leave_aside_and_masks_are_not_unused_files(tmp_path):
    stem = "sub-1/anat/sub-1"
    touch(tmp_path, *(f"{stem}_run-{run}_T1w.nii.gz" for run in (1, 2)))
    touch(tmp_path, f"{stem}_run-2_FLAIR.nii.gz", "sub-2/anat/sub-2_run-2_T1w.nii.gz")
    for word in ("dseg", "label-lesion_mask", "label-eye_mask", "desc-brain_mask"):
        touch(tmp_path, f"{stem}_{word}.nii.gz")
    expected = [f"{stem}_PDw.nii.gz", f"{stem}_ce-gd_T1w.nii.gz"]
    expected += ["sub-1/func/sub-1_bold.nii.gz", "sub-3/anat/sub-3_dseg.nii.gz"]
    touch(tmp_path, *expected)
    layout = bids(["t1", "t2"], "", ("run-1",))
    assert unused(tmp_path, layout) == expected
    assert names(find(tmp_path, layout)) == [("", "sub-1")]


def test_channels_in_separate_files_are_none_of_a_decathlon(decathlon):
    touch(decathlon, "imagesTr/BRATS_001_0000.nii.gz", "labelsTr/BRATS_009.nii.gz")
    lost = ["imagesTr/BRATS_001_0000.nii.gz", "labelsTr/BRATS_009.nii.gz"]
    assert unused(decathlon, msd(FOUR, "")) == lost


# Whichever layout there is.

EXAMPLES = {
    "brats": [f"A/A_{word}.nii.gz" for word in ("t1", "t2")],
    "brats23": [f"A/A-{word}.nii.gz" for word in ("t1n", "t2w")],
    "msd": ["imagesTr/A.nii.gz"],
    "ixi": [f"IXI-{word}/{IXI[0]}-{word}.nii.gz" for word in ("T1", "T2")],
    "bids": [f"sub-A/anat/sub-A_{word}.nii.gz" for word in ("T1w", "T2w")],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_one_layout_that_a_folder_has_is_found(tmp_path, name):
    touch(tmp_path, *EXAMPLES[name])
    for layouts in (every_layout(), every_layout()[::-1]):
        found = find_subjects(tmp_path, layouts)
        assert found.layout.name == name and len(found.subjects) == 1
        assert list(found.subjects[0].files) == ["t1", "t2"]


@pytest.mark.parametrize("first", EXAMPLES)
@pytest.mark.parametrize("second", EXAMPLES)
def test_two_layouts_at_once_are_refused_with_a_file_of_each(tmp_path, first, second):
    if first >= second:
        return
    touch(tmp_path, *EXAMPLES[first], *EXAMPLES[second])
    with pytest.raises(InputError, match="name one with config.data.layout") as error:
        find_subjects(tmp_path, every_layout())
    assert not isinstance(error.value, NoSubjectError)
    for name in (first, second):
        assert name in str(error.value).split(", as ")[0].split("layouts ")[1]
        assert str(tmp_path / EXAMPLES[name][0]) in str(error.value)
    for layout in every_layout():
        if layout.name in (first, second):
            assert find(tmp_path, layout)


def test_others_count_where_nothing_reads_as_the_first(tmp_path, unreadable):
    touch(tmp_path, *EXAMPLES["brats"], "S/S-t1n.nii", "S/S-t1n.nii.gz", "closed/x")
    unreadable(tmp_path / "closed")
    first, second, *_ = every_layout()
    for layout, others in ((first, second), (second, first)):
        assert find_subjects(tmp_path, [layout], [others]).layout == layout
        assert find_subjects(tmp_path, [msd(FOUR, "")], [layout]).layout == layout


def test_no_layout_is_refused_with_all_that_were_looked_for(tmp_path):
    touch(tmp_path, "S/scan.nii.gz")
    with pytest.raises(NoSubjectError) as error:
        find_subjects(tmp_path, every_layout())
    for words in (
        "the layouts brats, brats23, msd, ixi, bids (or set config.data.pattern)",
        "saw for example S/scan.nii.gz",
    ):
        assert words in str(error.value)


@pytest.mark.skipif(
    not OPEN_MS.is_dir(), reason="the real subjects of shared/data/open_ms are absent"
)
def test_real_open_ms_subjects_are_found_as_brats23():
    assert find_subjects(OPEN_MS, every_layout()).layout.name == "brats23"
    layout = brats23(("t1n", "t1c", "t2w", "t2f"), "")
    subjects = find(OPEN_MS, layout)
    assert [subject.name for subject in subjects] == ["patient07", "patient19"]
    assert [subject.patient for subject in subjects] == ["patient07", "patient19"]
    check_round_trip(OPEN_MS, layout, subjects)
    (alone,) = find(OPEN_MS / "patient19", layout)
    assert alone == subjects[1] and list(alone.files) == ["t1n", "t1c", "t2w", "t2f"]
    assert alone.segmentation.name == "patient19-seg.nii.gz"
