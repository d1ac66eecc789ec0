"""The named layouts: BraTS, BraTS 2023, Medical Segmentation Decathlon, IXI and BIDS.

Each raises InputError for a modality that it does not know, and for two names of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence

from ummcsgm.data.layouts.layout import (
    FOUR_D,
    NAME_EXPRESSION,
    SEGMENTATION,
    Layout,
    check_entities,
    check_modalities,
    contrast_of,
)
from ummcsgm.types import InputError

# What each layout has for {modality}, by contrast; in msd the index of the volume.
KNOWN_SUFFIXES = {
    "brats": {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"},
    "brats23": {"flair": "t2f", "t1": "t1n", "t1c": "t1c", "t2": "t2w"},
    "msd": {"flair": "0", "t1": "1", "t1c": "2", "t2": "3"},
    "ixi": {"t1": "T1", "t2": "T2", "pd": "PD"},
    "bids": {"flair": "FLAIR", "t1": "T1w", "t1c": "ce-gadolinium_T1w", "t2": "T2w", "pd": "PDw"},
}


def named_layout(
    name: str, modalities: Sequence[str], mask: str, entities: Sequence[str] = ()
) -> Layout:
    """The layout called `name`, one of KNOWN_SUFFIXES; only bids has `entities`."""
    if name == "bids":
        return bids(modalities, mask, entities)
    make = {"brats": brats, "brats23": brats23, "msd": msd, "ixi": ixi}[name]
    return make(modalities, mask)


def named_layouts() -> list[Layout]:
    """All named layouts, with every contrast that they know and no mask."""
    return [named_layout(name, tuple(contrasts), "") for name, contrasts in KNOWN_SUFFIXES.items()]


def brats(modalities: Sequence[str], mask: str) -> Layout:
    """BraTS 2018 to 2021: [HGG|LGG/]SUBJECT/SUBJECT_{flair,t1,t1ce,t2,seg}.nii[.gz]."""
    path = "{subject}/{subject}_{modality}.nii.gz"
    patterns = (("{group}/" + path, ""), (path, ""))
    fields = {"group": "HGG|LGG", "subject": NAME_EXPRESSION}
    return Layout("brats", patterns, _suffixes("brats", modalities), fields, mask)


def brats23(modalities: Sequence[str], mask: str) -> Layout:
    """BraTS 2023 to 2025: PATIENT-VISIT/PATIENT-VISIT-{t1n,t1c,t2w,t2f,seg}.nii[.gz].

    A patient may have several visits, such as BraTS-GLI-00005-100 and -101.
    """
    return Layout(
        "brats23",
        (("{subject}/{subject}-{modality}.nii.gz", ""),),
        _suffixes("brats23", modalities),
        {"subject": NAME_EXPRESSION},
        mask,
        visit_expression=r"(?<=\d)-\d{3}$",  # -100 is no visit of sub-100
        tumour_values=(1, 2, 3),
        cavity_value=4,  # BraTS 2024, after treatment
    )


def msd(modalities: Sequence[str], mask: str) -> Layout:
    """Medical Segmentation Decathlon, Task01: one 4-D file a subject in imagesTr or Ts.

    Its volumes are FLAIR, T1, T1gd, T2, unless a dataset.json beside the folder names
    others (`layouts.find` reads it).
    """
    file = "{subject}.nii.gz"
    patterns = ((f"imagesTr/{file}", FOUR_D), (f"imagesTs/{file}", FOUR_D))
    patterns += ((f"labelsTr/{file}", SEGMENTATION),)
    if mask:
        patterns += ((f"{mask}/{file}", mask),)
    return Layout(
        "msd",
        patterns,
        {modality: modality for modality in modalities},
        # A name that ends in four digits is one channel of another format.
        {"subject": r"[^/.][^/]*?(?<!_\d\d\d\d)"},
        mask,
        output_patterns=(("{subject}_{modality}.nii.gz", ""),),
        volume_indices={m: int(index) for m, index in _suffixes("msd", modalities).items()},
        tumour_values=(2, 1, 3),
    )


def ixi(modalities: Sequence[str], mask: str) -> Layout:
    """IXI: IXI-T1/IXI002-Guys-0828-T1.nii.gz and so on, a folder for each contrast."""
    file = "{subject}-{modality}.nii.gz"
    patterns = tuple((f"{above}{file}", "") for above in ("IXI-{modality}/", "", "{modality}/"))
    fields = {"subject": r"IXI\d+-[^/-]+-\d+"}
    return Layout("ixi", patterns, _suffixes("ixi", modalities), fields, mask)


def bids(modalities: Sequence[str], mask: str, entities: Sequence[str]) -> Layout:
    """BIDS: sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,PDw}.nii[.gz]; T1w with ce- is T1c.

    Of several files of one contrast, `entities` choose: ("run-1",) the files with run-1, else files
    without any run, never files of another run; ("desc-",) the files without any desc. The first
    entity decides first. The segmentation is *_dseg or *_label-lesion_mask; a brain mask has the
    suffix brain_mask, for *_desc-brain_mask.

    Raises InputError for an entity that is neither key-value nor key-.
    """
    check_entities(entities)
    file = "{entities}_{modality}.nii.gz"
    paths = "{subject}/{session}/anat/{subject}_{session}", "{subject}/anat/{subject}"
    return Layout(
        "bids",
        tuple((f"{path}{file}", "") for path in paths),
        _suffixes("bids", modalities),
        {
            "subject": "sub-[A-Za-z0-9]+",
            "session": "ses-[A-Za-z0-9]+",
            "entities": r"(?:_[A-Za-z]+-[A-Za-z0-9+]+)*",
        },
        mask,
        segmentation=("dseg", "lesion_mask"),
        entities=tuple(entities),
    )


def _suffixes(layout: str, modalities: Sequence[str]) -> dict[str, str]:
    """The suffix of each modality, by the contrast that its name means."""
    check_modalities(modalities)
    known = KNOWN_SUFFIXES[layout]
    suffixes: dict[str, str] = {}
    for modality in modalities:
        contrast = contrast_of(modality)
        if contrast not in known:
            raise InputError(
                f"config.data.modalities has {modality!r}; the layout {layout} knows "
                f"{', '.join(known)}"
            )
        if known[contrast] in suffixes.values():
            raise InputError(
                f"config.data.modalities is {list(modalities)}: two of them are {contrast}"
            )
        suffixes[modality] = known[contrast]
    return suffixes
