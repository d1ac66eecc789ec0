"""What the network answered as volumes in a scanner's units, and as a picture."""

import statistics

import numpy as np

from ummcsgm.data.crop import uncrop
from ummcsgm.data.intensity import denormalise
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import PreparedSubject, network_brain
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.reporting.figures import Preview
from ummcsgm.types import Array, Images


def units_of(trained: TrainedModel, prepared: PreparedSubject) -> dict[str, dict]:
    """For each missing modality, what its scale is and how it came about.

    Units that a scanner could have used: the training cohort's median scale of the
    modality, times how this subject's own scans compare with the cohort's.
    """
    gains = {name: scale / trained.scales[name] for name, scale in prepared.scales.items()}
    gain = statistics.median(gains.values())
    return {
        name: {
            "how": "training cohort's median scale x median ratio of this subject's "
            "own scales to the cohort's; a scale is twice the median magnitude of a "
            "volume's non-zero voxels; values are bounded by the cohort's range, in "
            "units of the scale",
            "cohort_scale": trained.scales[name],
            "range": list(trained.ranges[name]),
            "ratios": gains,
            "scale": gain * trained.scales[name],
        }
        for name in trained.space.modalities
        if name not in prepared.scales
    }


def volume_of(prepared: PreparedSubject, z: Array, slices: Array, scale: float) -> Array:
    """The answer [S, H, W] as a volume [Z, Y, X] in units, 0 outside the brain."""
    volume = np.zeros(prepared.brain.shape, np.float32)
    volume[z] = uncrop(prepared.window, slices * network_brain(prepared, z))
    return np.where(prepared.brain, denormalise(volume, scale), 0)


def preview_of(
    trained: TrainedModel, subject: Subject, prepared: PreparedSubject, images: Images, z: Array
) -> Preview:
    """The axial slice with the most brain, of all modalities."""
    most = int(np.argmax(prepared.brain[z].sum(axis=(1, 2))))
    brain = network_brain(prepared, z[most : most + 1])[0]
    shown = np.moveaxis(images[most] * brain[..., None], -1, 0)
    synthetic = [name not in prepared.scales for name in trained.space.modalities]
    title = f"{subject.name}, axial slice {z[most]}"
    return Preview(title, trained.space.modalities, shown, tuple(synthetic))
