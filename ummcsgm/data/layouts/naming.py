"""How data sets name their files: BraTS, MSD, IXI, BIDS, and patterns of one's own.

A layout is patterns (see `data.patterns`) and what their fields may be; a file belongs
to a subject when its whole path reads as a pattern does. `data.search` looks for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ummcsgm.data.layouts.patterns import own_patterns
from ummcsgm.types import InputError

SEGMENTATION = "seg"
ANY_NAME = r"[^/.][^/]*?"
FOUR_D = "4-D"  # the word of a file that holds every modality

# What users and data sets call one contrast.
CONTRASTS = {
    "flair": ("flair", "t2f"),
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2": ("t2", "t2w"),
    "pd": ("pd", "pdw"),
}

# What each named layout has for {modality}, by contrast; in msd the volume.
KNOWN = {
    "brats": {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"},
    "brats23": {"flair": "t2f", "t1": "t1n", "t1c": "t1c", "t2": "t2w"},
    "msd": {"flair": "0", "t1": "1", "t1c": "2", "t2": "3"},
    "ixi": {"t1": "T1", "t2": "T2", "pd": "PD"},
    "bids": {"flair": "FLAIR", "t1": "T1w", "t1c": "ce-gadolinium_T1w", "t2": "T2w", "pd": "PDw"},
}


# What a segmentation has for core, oedema and what enhances: BraTS 2018 to 2021's, and
# those of the layouts that have others.
TUMOUR = (1, 2, 4)
OTHERS = {"brats23": (1, 2, 3), "msd": (2, 1, 3)}
CAVITIES = {"brats23": 4}  # where a tumour was resected: BraTS 2024, after treatment


@dataclass(frozen=True)
class Layout:
    """How the files of a data set are named.

    A pattern comes with the word it has for {modality}, "" where it reads it.
    """

    name: str
    patterns: tuple[tuple[str, str], ...]
    written: tuple[tuple[str, str], ...]  # the same, of a modality that is written
    words: dict[str, str]  # modality to {modality}, in the order of the modalities
    fields: dict[str, str]  # regular expressions of the other fields
    segmentation: tuple[str, ...]  # words, the first that is found counts
    mask: str  # the word of a brain mask, "" where there is none
    volumes: dict[str, int]  # modality to volume, where one 4-D file has them all
    visit: str  # expression of what a name has beyond its patient's, "" for nothing
    entities: tuple[str, ...]  # key-value wanted; "key-" wants files without it


@dataclass(frozen=True)
class Subject:
    """One subject's files, for the modalities that were found.

    `patient` is whose they are: several subjects are one patient's where he was scanned
    several times. `volumes` has the place of a modality in its 4-D file, for those that
    lie in one.
    """

    name: str
    group: str  # "" where the subject lies in none
    patient: str
    files: dict[str, Path]
    volumes: dict[str, int]
    segmentation: Path | None
    mask: Path | None
    tumour: tuple[int, int, int] = TUMOUR  # its values in the segmentation
    cavity: int | None = None  # the value of what was resected, and is no tumour


def contrast_of(modality: str) -> str | None:
    """Which of CONTRASTS a user's name of a modality means, None for none of them."""
    named = (c for c, names in CONTRASTS.items() if modality.casefold() in names)
    return next(named, None)


def brats(modalities: Sequence[str], mask: str) -> Layout:
    """BraTS 2018 to 2021: [HGG|LGG/]SUBJECT/SUBJECT_{flair,t1,t1ce,t2,seg}.nii[.gz].

    Raises:
        InputError: a modality is none of these four contrasts.
    """
    own = "{subject}/{subject}_{modality}.nii.gz"
    patterns = (("{group}/" + own, ""), (own, ""))
    fields = {"group": "HGG|LGG", "subject": ANY_NAME}
    return _plain("brats", patterns, _words("brats", modalities), fields, mask)


def brats23(modalities: Sequence[str], mask: str) -> Layout:
    """BraTS 2023 to 2025: PATIENT-VISIT/PATIENT-VISIT-{t1n,t1c,t2w,t2f,seg}.nii[.gz].

    A patient may have several visits, such as BraTS-GLI-00005-100 and -101.

    Raises:
        InputError: a modality is none of these four contrasts.
    """
    patterns = (("{subject}/{subject}-{modality}.nii.gz", ""),)
    words, fields = _words("brats23", modalities), {"subject": ANY_NAME}
    plain = _plain("brats23", patterns, words, fields, mask)
    return replace(plain, visit=r"(?<=\d)-\d{3}$")  # -100 is no visit of sub-100


def msd(modalities: Sequence[str], mask: str) -> Layout:
    """Medical Segmentation Decathlon, Task01: one 4-D file a subject in imagesTr or Ts.

    Its volumes are FLAIR, T1, T1gd, T2, unless a dataset.json beside the folder names
    others (`data.search` reads it).

    Raises:
        InputError: a modality is none of these four contrasts.
    """
    volumes = {m: int(place) for m, place in _words("msd", modalities).items()}
    file = "{subject}.nii.gz"
    patterns = ((f"imagesTr/{file}", FOUR_D), (f"imagesTs/{file}", FOUR_D))
    patterns += ((f"labelsTr/{file}", SEGMENTATION),)
    if mask:
        patterns += ((f"{mask}/{file}", mask),)
    words = {modality: modality for modality in modalities}
    # A name that ends in four digits is one channel of another format.
    fields = {"subject": r"[^/.][^/]*?(?<!_\d\d\d\d)"}
    written = (("{subject}_{modality}.nii.gz", ""),)
    plain = _plain("msd", patterns, words, fields, mask)
    return replace(plain, volumes=volumes, written=written)


def ixi(modalities: Sequence[str], mask: str) -> Layout:
    """IXI: IXI-T1/IXI002-Guys-0828-T1.nii.gz and so on, a folder for each contrast.

    Raises:
        InputError: a modality is none of T1, T2 and PD.
    """
    words = _words("ixi", modalities)
    file = "{subject}-{modality}.nii.gz"
    patterns = tuple((f"{above}{file}", "") for above in ("IXI-{modality}/", ""))
    patterns += (("{modality}/" + file, ""),)
    return _plain("ixi", patterns, words, {"subject": r"IXI\d+-[^/-]+-\d+"}, mask)


def bids(modalities: Sequence[str], mask: str, entities: Sequence[str]) -> Layout:
    """BIDS: sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,PDw}.nii[.gz]; T1w with ce- is T1c.

    Of several files of one contrast, `entities` choose: those with run-1 where
    ("run-1",) is asked for, else those without any run, never those of another run.
    ("desc-",) chooses those without any desc. The first named decides first.
    The segmentation is *_dseg or *_label-lesion_mask; a brain mask has the word
    brain_mask, for *_desc-brain_mask.

    Raises:
        InputError: a modality is none of these contrasts, or an entity is neither
            key-value nor key-.
    """
    check_entities(entities)
    words = _words("bids", modalities)
    file = "{entities}_{modality}.nii.gz"
    own = "{subject}/{session}/anat/{subject}_{session}", "{subject}/anat/{subject}"
    fields = {"subject": "sub-[A-Za-z0-9]+", "session": "ses-[A-Za-z0-9]+"}
    fields["entities"] = r"(?:_[A-Za-z]+-[A-Za-z0-9+]+)*"
    patterns = tuple((f"{path}{file}", "") for path in own)
    plain = _plain("bids", patterns, words, fields, mask)
    lesions = ("dseg", "lesion_mask")
    return replace(plain, segmentation=lesions, entities=tuple(entities))


def flat(modalities: Sequence[str], pattern: str, mask: str) -> Layout:
    """The layout of the user's `pattern`, each modality under its own name.

    Either one pattern with {modality}, or one for each, as in
    "t1=anat/{subject}_T1.nii.gz; pd=pd/{subject}.nii.gz".

    Raises:
        InputError: as `own_patterns`; or the modalities are none.
    """
    _check_modalities(modalities)
    others = (SEGMENTATION, mask) if mask else (SEGMENTATION,)
    patterns = own_patterns(pattern, modalities, others)
    words = {name: name for name in modalities}
    fields = {"group": r"[^/.][^/]*", "session": ANY_NAME, "subject": ANY_NAME}
    return _plain("flat", patterns, words, fields, mask)


def _plain(
    name: str, patterns: tuple, words: dict[str, str], fields: dict[str, str], mask: str
) -> Layout:
    """The layout in which every modality has a 3-D file, written where it is read."""
    own = (SEGMENTATION,)
    return Layout(name, patterns, patterns, words, fields, own, mask, {}, "", ())


def _words(layout: str, modalities: Sequence[str]) -> dict[str, str]:
    """The word of each of the modalities, by the contrast that its name means."""
    _check_modalities(modalities)
    known = KNOWN[layout]
    words: dict[str, str] = {}
    for modality in modalities:
        contrast = contrast_of(modality)
        if contrast not in known:
            raise InputError(
                f"config.data.modalities has {modality!r}; the layout {layout} knows "
                f"{', '.join(known)}"
            )
        if known[contrast] in words.values():
            raise InputError(
                f"config.data.modalities is {list(modalities)}: two of them are {contrast}"
            )
        words[modality] = known[contrast]
    return words


def _check_modalities(modalities: Sequence[str]) -> None:
    """`modalities` are some names, each once, and none is the segmentation's."""
    names = list(modalities)
    if not names or len(set(names)) < len(names) or SEGMENTATION in names:
        raise InputError(
            f"config.data.modalities is {names}; wanted one name or more, each once "
            f"and none of them {SEGMENTATION!r}"
        )
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s+,/\\{}=;]+", name):
            raise InputError(
                f"config.data.modalities has {name!r}; a name has no space and none of "
                "+ , / \\ { } = ;"
            )


def check_entities(entities: Sequence[str]) -> None:
    """Raises InputError unless each of config.data.entities is key-value or key-."""
    for entity in entities:
        if not re.fullmatch(r"[A-Za-z]+-[A-Za-z0-9+]*", entity):
            raise InputError(
                f"config.data.entities has {entity!r}; wanted key-value, like run-1, "
                "or key- for files without it, like desc-"
            )
