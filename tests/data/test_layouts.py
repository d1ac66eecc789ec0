"""What each layout calls the user's modalities, and what a pattern may be."""

import re

import pytest

from ummcsgm.data.layouts.known import KNOWN_SUFFIXES, bids, brats, brats23, ixi, msd
from ummcsgm.data.layouts.layout import CONTRASTS, check_entities, contrast_of
from ummcsgm.data.layouts.pattern import fields_of, flat
from ummcsgm.types import InputError

FLAT = "{subject}/{subject}-{modality}.nii.gz"
EACH = "t1=anat/{subject}_T1.nii.gz; pd=pd/{subject}.nii.gz"
NAMED = {
    "brats": lambda modalities: brats(modalities, ""),
    "brats23": lambda modalities: brats23(modalities, ""),
    "msd": lambda modalities: msd(modalities, ""),
    "ixi": lambda modalities: ixi(modalities, ""),
    "bids": lambda modalities: bids(modalities, "", ()),
}
EVERY = {**NAMED, "flat": lambda modalities: flat(modalities, FLAT, "")}
each_named = pytest.mark.parametrize("name", NAMED)
each_layout = pytest.mark.parametrize("name", EVERY)

# The synonyms that the documentation promises, spelled out.
SYNONYMS = {
    "flair": ["flair", "FLAIR", "t2f", "T2F"],
    "t1": ["t1", "T1", "t1n", "t1w", "T1w"],
    "t1c": ["t1c", "t1ce", "t1gd", "T1Gd", "T1CE"],
    "t2": ["t2", "t2w", "T2w"],
    "pd": ["pd", "PD", "pdw", "PDw"],
}


def test_a_contrast_has_many_names_and_case_does_not_matter():
    assert list(SYNONYMS) == list(CONTRASTS)
    for contrast, names in SYNONYMS.items():
        assert {contrast_of(name) for name in names} == {contrast}


@pytest.mark.parametrize("name", ["", "t", "t12", "t1cc", "xt1", "dwi", "t2 f", "t1 "])
def test_other_names_are_no_contrast(name):
    assert contrast_of(name) is None


@each_named
def test_a_named_layout_has_its_suffixes_in_the_users_order(name):
    known = KNOWN_SUFFIXES[name]
    layout = NAMED[name](tuple(known)[::-1])
    assert layout.name == name
    if layout.volume_indices:
        indices = {contrast: int(index) for contrast, index in known.items()}
        assert layout.volume_indices == indices
        assert list(layout.volume_indices) == list(known)[::-1]
        assert layout.suffixes == {contrast: contrast for contrast in known}
    else:
        assert layout.suffixes == known
    assert list(layout.suffixes) == list(known)[::-1]


def test_the_words_are_those_that_the_data_sets_document():
    four = ("flair", "t1", "t1c", "t2")
    assert list(brats(four, "").suffixes.values()) == ["flair", "t1", "t1ce", "t2"]
    assert list(brats23(four, "").suffixes.values()) == ["t2f", "t1n", "t1c", "t2w"]
    assert list(msd(four, "").volume_indices.values()) == [0, 1, 2, 3]
    assert list(ixi(("t1", "t2", "pd"), "").suffixes.values()) == ["T1", "T2", "PD"]
    words = bids((*four, "pd"), "", ()).suffixes
    assert list(words.values()) == ["FLAIR", "T1w", "ce-gadolinium_T1w", "T2w", "PDw"]


@each_named
def test_a_synonym_stays_the_users_name_and_has_the_contrasts_suffix(name):
    for contrast, word in KNOWN_SUFFIXES[name].items():
        for synonym in SYNONYMS[contrast]:
            layout = NAMED[name]((synonym,))
            if layout.volume_indices:
                assert layout.volume_indices == {synonym: int(word)}
                assert layout.suffixes == {synonym: synonym}
            else:
                assert layout.suffixes == {synonym: word}


@each_named
def test_two_names_of_one_contrast_are_refused(name):
    with pytest.raises(InputError, match="two of them are t1$") as error:
        NAMED[name](("t1", "T1w"))
    assert "config.data.modalities is ['t1', 'T1w']" in str(error.value)


@each_named
def test_a_named_layout_refuses_what_it_does_not_know_and_says_what_it_knows(name):
    for strange in ("adc", "mra", "t3"):
        sentence = f"has {strange!r}; the layout {name} knows {', '.join(KNOWN_SUFFIXES[name])}"
        with pytest.raises(InputError, match=re.escape(sentence)):
            NAMED[name](("t1", strange))


def test_each_layout_knows_its_contrasts_and_no_others():
    for name in ("brats", "brats23", "msd"):
        assert set(KNOWN_SUFFIXES[name]) == {"flair", "t1", "t1c", "t2"}
        with pytest.raises(InputError, match=f"'pd'; the layout {name} knows"):
            NAMED[name](("t1", "pd"))
    assert set(KNOWN_SUFFIXES["ixi"]) == {"t1", "t2", "pd"}
    for contrast in ("flair", "t1c"):
        with pytest.raises(InputError, match=f"{contrast!r}; the layout ixi knows"):
            ixi(("t1", contrast), "")
    assert set(KNOWN_SUFFIXES["bids"]) == set(CONTRASTS)


def test_two_to_eight_modalities_of_the_user_have_the_users_names():
    names = ("adc", "dwi-b1000", "T1", "t1", "swi.mag", "cbv(x)", "mtt", "pd")
    for count in range(2, 9):
        modalities = names[:count]
        assert flat(modalities, FLAT, "").suffixes == {name: name for name in modalities}


@each_layout
def test_each_modality_is_named_once_and_none_is_the_segmentation(name):
    for modalities in (("t1", "t1"), ("t1", "seg"), ()):
        with pytest.raises(InputError, match="config.data.modalities is"):
            EVERY[name](modalities)


@each_layout
def test_names_that_tables_flags_paths_or_patterns_would_split_are_refused(name):
    for odd in ("a+b", "c/d", "c\\d", "e,f", "g h", "{i}", "j=k", "l;m", "", 5):
        with pytest.raises(InputError, match="config.data.modalities has"):
            EVERY[name](["t1", odd])


@pytest.mark.parametrize(
    "pattern, word",
    [
        ("{subject}/image.nii.gz", "lacks {modality}"),
        ("all/{modality}.nii.gz", "lacks {subject}"),
        ("image.nii.gz", "lacks {subject}"),
        ("", "lacks {subject}"),
        ("{visit}/{subject}/{modality}.nii.gz", "the field {visit}"),
        ("{entities}/{subject}/{modality}.nii.gz", "the field {entities}"),
        ("{subject.name}/{modality}.nii.gz", "the field {subject.name}"),
        ("{}/{subject}/{modality}.nii.gz", "the field {}"),
        ("{subject}/{modality}.png", "must end in .nii.gz"),
        ("{subject}/{modality}.gz", "must end in .nii.gz"),
        ("{subject}/{modality}", "must end in .nii.gz"),
        ("{subject/{modality}.nii.gz", "config.data.pattern"),
        ("{subject}}/{modality}.nii.gz", "config.data.pattern"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern, word):
    with pytest.raises(InputError) as error:
        flat(["t1"], pattern, "")
    assert word in str(error.value) and repr(pattern) in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [
        FLAT,
        "{subject}_{modality}.nii",
        "{modality}/{subject}.nii.gz",
        "{group}/{subject}/{modality}.nii.gz",
        "{subject}/{session}/{modality}.nii.gz",
        "{group}/{session}/{subject}-{session}/{modality}.nii.gz",
        "set=a/{subject}_{modality}.nii.gz",
    ],
)
def test_patterns_of_all_fields_and_both_endings_are_taken(pattern):
    layout = flat(["t1", "t2"], pattern, "")
    assert layout.patterns[0] == (pattern, "")


def test_a_group_may_be_left_out_and_a_session_not():
    layout = flat(["t1"], "{group}/{subject}/{session}/{modality}.nii.gz", "")
    ungrouped = "{subject}/{session}/{modality}.nii.gz"
    assert layout.patterns == (("{group}/" + ungrouped, ""), (ungrouped, ""))
    assert flat(["t1"], ungrouped, "").patterns == ((ungrouped, ""),)
    glued = "{group}-{subject}/{modality}.nii.gz"
    assert flat(["t1"], glued, "").patterns == ((glued, ""),)


def test_each_modality_may_have_a_pattern_of_its_own():
    layout = flat(["pd", "t1"], EACH, "")
    patterns = (("anat/{subject}_T1.nii.gz", "t1"), ("pd/{subject}.nii.gz", "pd"))
    assert layout.patterns == patterns and list(layout.suffixes) == ["pd", "t1"]


def test_segmentation_and_mask_may_have_patterns_beside_the_modalities():
    more = f"{EACH};seg=s/{{subject}}.nii;skull=b/{{subject}}.nii ; "
    layout = flat(["t1", "pd"], more, "skull")
    assert layout.patterns[2:] == (("s/{subject}.nii", "seg"), ("b/{subject}.nii", "skull"))
    with pytest.raises(InputError, match="wanted one name=pattern for each of t1, pd"):
        flat(["t1", "pd"], more, "")


@pytest.mark.parametrize(
    "pattern, word",
    [
        ("t1={subject}.nii.gz", "for each of t1, pd"),
        (EACH + "; t2={subject}.nii.gz", "for each of t1, pd"),
        (EACH + "; t1={subject}.nii.gz", "for each of t1, pd"),
        (EACH + "; {subject}.nii.gz", "for each of t1, pd"),
        (EACH.replace("pd=", "PD="), "for each of t1, pd"),
        ("t1=t1.nii.gz; pd={subject}.nii.gz", "'t1.nii.gz' lacks {subject}"),
        ("t1={subject}.nii.gz; pd={subject}", "'{subject}' must end in"),
        ("t1={visit}.nii; pd={subject}.nii", "the field {visit}"),
        ("t1={subject}/{session}.nii; pd={subject}.nii", "the same of {group} and"),
        ("t1={group}/{subject}.nii; pd={subject}.nii", "the same of {group} and"),
    ],
)
def test_patterns_of_each_modality_that_cannot_work_are_refused(pattern, word):
    with pytest.raises(InputError) as error:
        flat(["t1", "pd"], pattern, "")
    assert word in str(error.value) and "config.data.pattern" in str(error.value)


@each_layout
def test_a_layout_has_no_mask_unless_it_is_asked_for(name):
    assert EVERY[name](("t1", "t2")).mask == ""


def test_the_word_of_a_mask_is_the_users():
    layouts = [make(("t1", "t2"), "brain") for make in (brats, brats23, msd, ixi)]
    layouts += [bids(["t1"], "brain", ()), flat(["t1"], FLAT, "brain")]
    assert {layout.mask for layout in layouts} == {"brain"}


@pytest.mark.parametrize("entity", ["run", "-", "-1", "run_1", "run-1_acq-2", "r--", ""])
def test_an_entity_is_a_key_and_a_value(entity):
    for check in (check_entities, lambda given: bids(["t1"], "", given)):
        with pytest.raises(InputError, match="wanted key-value, like run-1") as error:
            check(("acq-mprage", entity))
        assert f"config.data.entities has {entity!r}" in str(error.value)


def test_entities_are_kept_in_the_layout():
    assert bids(["t1"], "", ["run-1", "acq-3D"]).entities == ("run-1", "acq-3D")
    assert bids(["t1"], "", ("desc-", "run-1")).entities == ("desc-", "run-1")
    assert bids(["t1"], "", ()).entities == ()


def test_the_fields_of_a_pattern_are_reported_as_often_as_they_stand_in_it():
    assert fields_of(FLAT) == ["subject", "subject", "modality"]
    assert fields_of("a.nii") == []
