"""The subjects of a run: which take part, which are left out, and a split that stays."""

import json

import pytest

from ummcsgm.data.cohort import open_cohort
from ummcsgm.data.layouts.known import bids, brats, brats23
from ummcsgm.data.layouts.pattern import flat
from ummcsgm.types import InputError

WORDS = ("t1", "t2")
LAYOUTS = [flat(WORDS, "{subject}/{subject}_{modality}.nii.gz", "")]


def touch(folder, name, words=WORDS, divider="_"):
    for word in words:
        path = folder / name / f"{name}{divider}{word}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        touch(tmp_path / "in", f"P{number:02d}")
    return tmp_path / "in"


def start(folder, layouts=LAYOUTS, fractions=(2, 1, 1), seed=0):
    """The cohort of a run whose split file lies beside its folder."""
    split = folder.parent / "run" / "split.json"
    return open_cohort(folder, layouts, split, fractions, seed)


def saved_split(folder):
    return json.loads((folder.parent / "run/split.json").read_text())


def test_a_cohort_has_all_subjects_split_in_the_proportions(folder):
    cohort = start(folder)
    assert list(cohort.subjects) == [f"P{number:02d}" for number in range(12)]
    assert {part: len(names) for part, names in cohort.split.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }
    assert sorted(sum(cohort.split.values(), [])) == list(cohort.subjects)
    assert cohort.left_out == ()
    for part, names in cohort.split.items():
        assert [subject.name for subject in cohort.members(part)] == names
        assert all(list(subject.files) == list(WORDS) for subject in cohort.members(part))


def test_the_split_stays_whatever_is_asked_later(folder):
    cohort = start(folder)
    assert saved_split(folder) == cohort.split
    before = (folder.parent / "run/split.json").read_bytes()
    assert start(folder, fractions=(1, 0, 0), seed=5).split == cohort.split
    assert (folder.parent / "run/split.json").read_bytes() == before


def test_the_seed_draws_the_split(folder):
    first = start(folder).split
    (folder.parent / "run/split.json").unlink()
    assert start(folder).split == first
    (folder.parent / "run/split.json").unlink()
    assert start(folder, seed=1).split != first


def test_a_subject_with_one_modality_is_left_out_and_named(folder):
    touch(folder, "Q1", ("t1",))
    touch(folder, "Q2", ("t2", "seg"))
    cohort = start(folder)
    assert cohort.left_out == ("Q1", "Q2")
    assert not {"Q1", "Q2"} & set(cohort.subjects)
    assert not {"Q1", "Q2"} & set(sum(saved_split(folder).values(), []))
    assert start(folder).split == cohort.split


def test_an_ambiguous_subject_is_refused_with_both_files(folder):
    (folder / "P03/P03_t1.nii").touch()
    (folder / "P05/P05_t1.nii").touch()
    with pytest.raises(InputError, match=r"P03_t1\.nii and .*P03_t1\.nii\.gz are one"):
        start(folder)
    assert not (folder.parent / "run").exists()


def test_unused_files_are_listed_by_path(folder):
    assert start(folder).unused_files == ()
    touch(folder, "Q1", ("seg",))
    touch(folder, "P03", ("seg", "t1gd"))
    (folder / "scan.nii").touch()
    unused = ("P03/P03_t1gd.nii.gz", "Q1/Q1_seg.nii.gz", "scan.nii")
    cohort = start(folder)
    assert cohort.unused_files == tuple(folder / name for name in unused)
    assert len(cohort.subjects) == 12 and cohort.left_out == ()


def test_incomplete_subjects_take_part(tmp_path):
    touch(tmp_path / "in", "A", ("flair", "t1", "t1ce", "t2"))
    touch(tmp_path / "in", "B", ("flair", "t2"))
    touch(tmp_path / "in", "C", ("t1", "t1ce", "t2"))
    layouts = [brats(("flair", "t1", "t1c", "t2"), "")]
    cohort = start(tmp_path / "in", layouts, (1, 0, 0))
    assert cohort.left_out == ()
    files = [list(subject.files) for subject in cohort.members("train")]
    assert files == [["flair", "t1", "t1c", "t2"], ["flair", "t2"], ["t1", "t1c", "t2"]]


def test_subjects_with_one_modality_each_are_no_cohort(tmp_path):
    touch(tmp_path / "in", "A", ("t1",))
    touch(tmp_path / "in", "B", ("t2",))
    with pytest.raises(InputError, match="no subject has two of t1, t2"):
        start(tmp_path / "in")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_other_subjects_than_those_of_the_split_are_refused_by_name(folder, change):
    start(folder)
    if change == "one more":
        touch(folder, "P99")
    else:
        (folder / "P07").rename(folder.parent / "P07")
    with pytest.raises(InputError) as error:
        start(folder)
    stranger = "P99" if change == "one more" else "P07"
    for words in (f"disagree about subject {stranger}", "split.json", "--workdir"):
        assert words in str(error.value)


def test_a_subject_that_lost_a_file_is_a_stranger_too(folder):
    start(folder)
    (folder / "P03/P03_t1.nii.gz").unlink()
    with pytest.raises(InputError, match="disagree about subject P03"):
        start(folder)


def test_a_modality_that_no_training_subject_has_is_refused(folder):
    """One in the test's subjects only could not be learnt."""
    (test, *_) = start(folder).split["test"]
    layouts = [flat((*WORDS, "pd"), "{subject}/{subject}_{modality}.nii.gz", "")]
    touch(folder, test, ("pd",))
    sentence = "none of the 6 training subjects of .*split.json has pd: remove it from"
    with pytest.raises(InputError, match=sentence) as error:
        start(folder, layouts)
    for word in ("config.data.modalities", "--mode doctor", str(folder)):
        assert word in str(error.value)
    touch(folder, saved_split(folder)["train"][-1], ("pd",))
    assert "pd" in start(folder, layouts).members("train")[-1].files


def test_a_split_without_training_subjects_is_refused(folder):
    start(folder)
    split = saved_split(folder)
    split["test"] += split.pop("train")
    path = folder.parent / "run/split.json"
    path.write_text(json.dumps({"train": [], **split}))
    with pytest.raises(InputError, match="no subject in train"):
        start(folder)


def test_a_damaged_split_is_refused(folder):
    start(folder)
    (folder.parent / "run/split.json").write_text("{")
    with pytest.raises(InputError, match="split.json cannot be read"):
        start(folder)


def splits_of_patients(cohort):
    """The parts that each patient is in."""
    parts = {}
    for part in cohort.split:
        for subject in cohort.members(part):
            parts.setdefault(subject.patient, set()).add(part)
    return parts


@pytest.mark.parametrize("seed", range(3))
def test_the_visits_of_a_patient_are_not_split(tmp_path, seed):
    for patient in range(10):
        for visit in range(3):
            name = f"BraTS-GLI-{patient:05d}-{visit:03d}"
            touch(tmp_path / "in", name, ("t1n", "t2w"), "-")
    cohort = start(tmp_path / "in", [brats23(WORDS, "")], (1, 1, 1), seed)
    assert {len(parts) for parts in splits_of_patients(cohort).values()} == {1}
    assert {part: len(names) for part, names in cohort.split.items()} == {
        "train": 9,
        "validation": 9,
        "test": 12,
    }


def test_the_sessions_of_a_patient_are_not_split(tmp_path):
    for patient in range(10):
        for session in "ab":
            scans = f"sub-{patient}/ses-{session}/anat"
            (tmp_path / "in" / scans).mkdir(parents=True)
            for word in ("T1w", "T2w"):
                name = f"sub-{patient}_ses-{session}_{word}.nii.gz"
                (tmp_path / "in" / scans / name).touch()
    cohort = start(tmp_path / "in", [bids(WORDS, "", ())], (1, 0, 1))
    assert len(cohort.subjects) == 20 and len(splits_of_patients(cohort)) == 10
    assert {len(parts) for parts in splits_of_patients(cohort).values()} == {1}


def test_the_layout_is_the_one_that_the_folder_has(tmp_path):
    touch(tmp_path / "in", "A", ("t1n", "t2w"), "-")
    cohort = start(tmp_path / "in", [brats(WORDS, ""), brats23(WORDS, "")])
    assert list(cohort.subjects["A"].files) == ["t1", "t2"]


@pytest.mark.parametrize("text", ["[]", '{"train": ["A"]}', '{"train": 3}', "{"])
def test_a_damaged_split_file_is_named(tmp_path, text):
    touch(tmp_path / "in", "A", ("t1", "t2"))
    start(tmp_path / "in", [brats(WORDS, "")])
    (path,) = tmp_path.rglob("split.json")
    path.write_text(text)
    with pytest.raises(InputError, match="split.json"):
        start(tmp_path / "in", [brats(WORDS, "")])
