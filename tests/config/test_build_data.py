"""A config's layouts, and subjects to complete that lie in another one."""

import pathlib

import pytest
from tiny_run import quickstart

from ummcsgm.config.build import config_from_json, config_to_json
from ummcsgm.config.build_data import (
    build_layouts,
    build_processes,
    check_data,
    every_layout,
    find_anywhere,
    with_absolute_folder,
)
from ummcsgm.data.layouts.find import NoSubjectError, file_name
from ummcsgm.data.layouts.known import KNOWN_SUFFIXES, named_layouts
from ummcsgm.types import InputError

FOUR = ("flair", "t1", "t1c", "t2")
OWN = "scans/{subject}.{modality}.nii.gz"

# A subject without T1 in each named layout, and where its T1 would lie.
IXI = "IXI012-HH-1211"
FOLDERS = {
    "brats": [f"HGG/A/A_{word}.nii.gz" for word in ("flair", "t1ce", "t2")],
    "brats23": [f"A/A-{word}.nii.gz" for word in ("t2f", "t1c", "t2w")],
    "ixi": [f"IXI-{word}/{IXI}-{word}.nii.gz" for word in ("T2", "PD")],
    "bids": [f"sub-A/ses-1/anat/sub-A_ses-1_{w}.nii.gz" for w in ("FLAIR", "T2w")],
}
LACKING = {
    "brats": "HGG/A/A_t1.nii.gz",
    "brats23": "A/A-t1n.nii.gz",
    "ixi": f"IXI-T1/{IXI}-T1.nii.gz",
    "bids": "sub-A/ses-1/anat/sub-A_ses-1_T1w.nii.gz",
}


def find(config, folder):
    """The layout and the subjects, of which none is ambiguous."""
    found = find_anywhere(config, folder)
    assert not found.problems
    return found.layout, found.subjects


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def config_of(**changes):
    """The quickstart's config with other fields of data, as a checkpoint returns it."""
    config = quickstart()
    config.data.update(changes)
    return config_from_json(config_to_json(config))


TRAINED = {
    "auto": {"modalities": ("t1", "t2")},
    "auto_of_four": {"modalities": FOUR},
    "flat": {"layout": "flat", "pattern": OWN, "modalities": ("t1", "t2")},
    "pattern": {"pattern": OWN, "modalities": ("t2", "adc", "t1")},
    **{name: {"layout": name, "modalities": ("t1", "t2")} for name in KNOWN_SUFFIXES},
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("trained", TRAINED)
def test_a_network_of_any_layout_finds_subjects_in_any_other(tmp_path, trained, folder):
    touch(tmp_path, *FOLDERS[folder])
    layout, (subject,) = find(config_of(**TRAINED[trained]), tmp_path)
    assert layout.name == folder
    assert "t2" in subject.files and "t1" not in subject.files
    assert file_name(layout, subject, "t1") == pathlib.Path(LACKING[folder])
    for modality in TRAINED[trained]["modalities"]:
        assert file_name(layout, subject, modality)
    found = {str(path.relative_to(tmp_path)) for path in subject.files.values()}
    assert found == set(FOLDERS[folder])


@pytest.mark.parametrize("trained", TRAINED)
def test_contrasts_that_are_none_of_the_networks_are_told(tmp_path, trained):
    """So that completion refuses them rather than pass them over."""
    touch(tmp_path / "brats", *FOLDERS["brats"])
    _, (subject,) = find(config_of(**TRAINED[trained]), tmp_path / "brats")
    assert set(subject.files) == {"flair", "t1c", "t2"}
    touch(tmp_path / "ixi", *FOLDERS["ixi"])
    _, (subject,) = find(config_of(**TRAINED[trained]), tmp_path / "ixi")
    assert set(subject.files) == {"t2", "pd"}


@pytest.mark.parametrize("trained", TRAINED)
def test_a_decathlon_tells_of_all_its_channels(tmp_path, trained):
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1w", "1": "FLAIR"}}')
    layout, (subject,) = find(config_of(**TRAINED[trained]), tmp_path)
    assert layout.name == "msd" and subject.volume_indices == {"flair": 1, "t1": 0}
    assert set(subject.files) == {"flair", "t1"}
    name = file_name(layout, subject, "t2")
    assert name == pathlib.Path("BRATS_001_t2.nii.gz")


def test_contrasts_have_the_names_that_the_network_has_for_them(tmp_path):
    touch(tmp_path, *FOLDERS["bids"], "sub-A/ses-1/anat/sub-A_ses-1_ce-gd_T1w.nii.gz")
    config = config_of(modalities=("T1Gd", "t2f"))
    layout, (subject,) = find(config, tmp_path)
    assert {name: path.name for name, path in subject.files.items()} == {
        "T1Gd": "sub-A_ses-1_ce-gd_T1w.nii.gz",
        "t2f": "sub-A_ses-1_FLAIR.nii.gz",
        "t2": "sub-A_ses-1_T2w.nii.gz",
    }
    assert not {"flair", "t1c"} & set(layout.suffixes)


def test_a_modality_that_a_layout_does_not_know_has_its_own_name(tmp_path):
    config = config_of(pattern=OWN, modalities=("t1", "adc"))
    written = {
        "brats": "HGG/A/A_adc.nii.gz",
        "brats23": "A/A-adc.nii.gz",
        "ixi": f"IXI-adc/{IXI}-adc.nii.gz",
        "bids": "sub-A/ses-1/anat/sub-A_ses-1_adc.nii.gz",
    }
    for name, expected in written.items():
        touch(tmp_path / name, *FOLDERS[name])
        layout, (subject,) = find(config, tmp_path / name)
        assert file_name(layout, subject, "adc") == pathlib.Path(expected)
        assert "adc" not in subject.files
        touch(tmp_path / name, expected)
        _, (subject,) = find(config, tmp_path / name)
        assert subject.files["adc"] == tmp_path / name / expected


def test_the_networks_own_layout_comes_first(tmp_path):
    touch(tmp_path, *FOLDERS["brats23"], *FOLDERS["bids"], "scans/B.t1.nii.gz")
    for name, fields in (
        ("flat", {"pattern": OWN}),
        ("bids", {"layout": "bids"}),
        ("brats23", {"layout": "brats23"}),
    ):
        config = config_of(modalities=("t1", "t2"), **fields)
        assert find(config, tmp_path)[0].name == name
    with pytest.raises(InputError, match="as the layouts brats23 and bids"):
        find_anywhere(config_of(modalities=("t1", "t2")), tmp_path)
    with pytest.raises(InputError, match="as the layouts brats23 and bids"):
        find_anywhere(config_of(modalities=("t1", "t2"), layout="msd"), tmp_path)


@pytest.mark.parametrize("trained", TRAINED)
def test_nothing_found_names_every_layout_once(tmp_path, trained):
    touch(tmp_path, "scan.nii.gz")
    with pytest.raises(NoSubjectError) as error:
        find_anywhere(config_of(**TRAINED[trained]), tmp_path)
    told = str(error.value).split("looked for the layouts ")[1].split(" (or set")[0]
    own = ["flat"] if "pattern" in TRAINED[trained] else []
    assert sorted(told.split(", ")) == sorted([*own, *KNOWN_SUFFIXES])


def test_a_mask_is_looked_for_in_the_other_layout_too(tmp_path):
    touch(tmp_path, *FOLDERS["brats"], "HGG/A/A_brain.nii.gz")
    config = config_of(pattern=OWN, modalities=("t1", "t2"), mask="brain")
    _, (subject,) = find(config, tmp_path)
    assert subject.mask == tmp_path / "HGG/A/A_brain.nii.gz"


def test_entities_choose_in_the_other_layout_too(tmp_path):
    own = "sub-1/anat/sub-1_"
    touch(tmp_path, f"{own}run-1_T1w.nii.gz", f"{own}run-2_T1w.nii.gz")
    config = config_of(layout="brats", modalities=("t1", "t2"), entities=("run-2",))
    _, (subject,) = find(config, tmp_path)
    assert subject.files["t1"].name == "sub-1_run-2_T1w.nii.gz"


def test_the_config_is_not_changed_by_looking(tmp_path):
    touch(tmp_path, *FOLDERS["brats"])
    config = config_of(modalities=("t1", "t2"))
    before = config_to_json(config)
    find_anywhere(config, tmp_path)
    assert config_to_json(config) == before


def names(config):
    return [layout.name for layout in build_layouts(config)]


def test_auto_means_every_layout_that_knows_the_modalities():
    assert names(config_of(modalities=("t1", "t2"))) == list(KNOWN_SUFFIXES)
    assert names(config_of(modalities=FOUR)) == ["brats", "brats23", "msd", "bids"]
    assert names(config_of(modalities=("t1", "pd"))) == ["ixi", "bids"]
    assert names(config_of(modalities=("flair", "pd"))) == ["bids"]


def test_a_pattern_is_the_layout_unless_another_is_named():
    assert names(config_of(modalities=("t1", "adc"), pattern=OWN)) == ["flat"]
    assert names(config_of(layout="flat", pattern=OWN)) == ["flat"]
    assert names(config_of(layout="brats")) == ["brats"]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"layout": "brats19"}, "config.data.layout is 'brats19'; wanted one of auto"),
        ({"layout": ""}, "config.data.layout is ''"),
        ({"modalities": ("t1", "adc")}, "or name files with config.data.pattern"),
        ({"modalities": ("t1", "T1w")}, "two of them are t1"),
        ({"modalities": ("t1", "pd"), "layout": "brats"}, "the layout brats knows"),
        ({"layout": "flat"}, "lacks {subject}"),
        ({"pattern": "{subject}.nii.gz"}, "lacks {modality}"),
        ({"entities": ("run1",)}, "config.data.entities has 'run1'"),
        ({"entities": ("run1",), "layout": "brats"}, "config.data.entities has 'run1'"),
        ({"modalities": ("t1",)}, "config.data.modalities"),
        ({"modalities": tuple("abcdefghi"), "pattern": OWN}, "config.data.modalities"),
    ],
)
def test_what_cannot_be_looked_for_is_refused_by_name(changes, told):
    with pytest.raises(InputError) as error:
        check_data(config_of(**changes))
    assert told in str(error.value)


def test_a_config_that_can_be_looked_for_is_taken():
    for fields in TRAINED.values():
        check_data(config_of(**fields))


def test_every_layout_is_told_also_where_one_is_named():
    own = config_of(layout="brats", modalities=("t1", "t2"), pattern=OWN)
    assert [layout.name for layout in every_layout(own)] == list(KNOWN_SUFFIXES)


def test_the_named_layouts_know_all_their_contrasts_without_a_config():
    named = {layout.name: layout for layout in named_layouts()}
    assert list(named) == list(KNOWN_SUFFIXES)
    for name, layout in named.items():
        assert list(layout.suffixes) == list(KNOWN_SUFFIXES[name])
        assert layout.mask == "" and layout.entities == ()


def test_the_processes_are_the_configs():
    assert build_processes(config_of(processes=3)) == 3


def test_an_ambiguous_subject_of_the_own_layout_is_told_and_no_other_searched(tmp_path):
    touch(tmp_path, "scans/S.t1.nii.gz", *FOLDERS["brats"])
    config = config_of(pattern=OWN, modalities=("t1", "t2"))
    touch(tmp_path, "scans/S.t1.nii")
    found = find_anywhere(config, tmp_path)
    assert found.layout.name == "flat" and list(found.problems) == ["S"]
    assert found.subjects == [] and len(found.unused_files) == 3


def test_a_folder_in_a_checkpoint_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(folder="in")
    assert with_absolute_folder(config).data.folder == str(tmp_path / "in")
    assert config.data.folder == "in"
    assert with_absolute_folder(config_of(folder="")).data.folder == ""
