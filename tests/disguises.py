"""The two real subjects of open_ms in four disguises; `python tests/disguises.py DIR`.

Three change no voxel: the names of BraTS 2023, those of BIDS, and one 4-D file a
subject as in the Medical Segmentation Decathlon. The fourth is another acquisition:
axes turned to PIR, so that slices are sagittal, each the mean of three: 1 x 1 x 3 mm.
"""

import json
import pathlib
import sys

import nibabel as nib
import numpy as np

OPEN_MS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "open_ms"
SUBJECTS = ("patient07", "patient19")
SUFFIXES = {"flair": "t2f", "t1": "t1n", "t1c": "t1c", "t2": "t2w"}  # in open_ms
BIDS = {"flair": "FLAIR", "t1": "T1w", "t1c": "ce-gd_T1w", "t2": "T2w"}
DISGUISES = ("brats23", "bids", "msd", "pir")


def original(subject: str, modality: str) -> nib.Nifti1Image:
    """The scan as it is."""
    return nib.load(OPEN_MS / subject / f"{subject}-{SUFFIXES[modality]}.nii.gz")


def brats23_name(subject: str) -> str:
    return f"BraTS-GLI-000{subject[-2:]}-000"


def write_brats23(folder: pathlib.Path, subject: str) -> pathlib.Path:
    """Links under other names; returns the subject's folder."""
    name = brats23_name(subject)
    (folder / name).mkdir(parents=True)
    for suffix in (*SUFFIXES.values(), "seg"):
        target = OPEN_MS / subject / f"{subject}-{suffix}.nii.gz"
        (folder / name / f"{name}-{suffix}.nii.gz").symlink_to(target.resolve())
    return folder / name


def write_bids(folder: pathlib.Path, subject: str) -> pathlib.Path:
    name = f"sub-{subject[-2:]}"
    (folder / name / "anat").mkdir(parents=True)
    for modality, suffix in BIDS.items():
        target = OPEN_MS / subject / f"{subject}-{SUFFIXES[modality]}.nii.gz"
        path = folder / name / "anat" / f"{name}_{suffix}.nii.gz"
        path.symlink_to(target.resolve())
    return folder / name


def write_msd(folder: pathlib.Path, subject: str) -> pathlib.Path:
    """One 4-D file; returns the folder, which holds this subject alone."""
    images = [original(subject, modality) for modality in SUFFIXES]
    stacked = np.stack([np.asarray(image.dataobj) for image in images], -1)
    place = folder / subject / "imagesTr"
    place.mkdir(parents=True)
    path = place / f"BRATS_0{subject[-2:]}.nii.gz"
    nib.save(nib.Nifti1Image(stacked, images[0].affine, images[0].header), path)
    told = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}
    (folder / subject / "dataset.json").write_text(json.dumps(told))
    return folder / subject


def write_pir(folder: pathlib.Path, subject: str) -> pathlib.Path:
    name = brats23_name(subject)
    (folder / name).mkdir(parents=True)
    for modality, suffix in SUFFIXES.items():
        image = thick(original(subject, modality))
        nib.save(image, folder / name / f"{name}-{suffix}.nii.gz")
    return folder / name


def thick(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image in PIR, each sagittal slice the mean of three; 0 where one of them is.

    A voxel half outside the brain is none of it, as after skull-stripping.
    """
    turned = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIR")
    )
    image = image.as_reoriented(turned)
    values = np.asarray(image.dataobj)
    count = values.shape[2] // 3
    threes = values[..., : 3 * count].reshape(*values.shape[:2], count, 3)
    values = np.where((threes != 0).all(-1), threes.mean(-1), 0).astype(np.float32)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2]  # the middle one of the first three
    affine[:3, 2] *= 3
    return nib.Nifti1Image(values, affine)


WRITERS = dict(zip(DISGUISES, (write_brats23, write_bids, write_msd, write_pir), strict=True))


if __name__ == "__main__":
    for disguise, write in WRITERS.items():
        for subject in SUBJECTS:
            print(write(pathlib.Path(sys.argv[1]) / disguise, subject))
