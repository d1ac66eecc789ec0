"""`evaluate` and `--mode score` give the same numbers for the same estimate."""

import numpy as np
import pytest
from tiny_run import AFFINE, MODALITIES, brain, image, path_of, write_subjects

from ummcsgm.config import build_data
from ummcsgm.data.crop import ImageSpace, SliceView, uncrop
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.nifti import write_new
from ummcsgm.evaluation.metrics import NO_ERROR
from ummcsgm.evaluation.score_subject import Prediction, score_subject
from ummcsgm.evaluation.subject import read_subject, score_prediction


@pytest.mark.parametrize("gain", [1.1, 1.0])
def test_evaluate_and_score_agree_where_slices_have_no_error(gain, tmp_path):
    """T2 is dark in two slices of the brain, where the estimate is too; a gain of 1 is
    without any error, as of a constant image nothing is rounded."""
    folder = write_subjects(tmp_path / "truth", ["P1"])
    dark = image("P1", "t2") if gain > 1 else np.where(brain(), 512, 0).astype(np.int16)
    dark[:, :, 2:4] = 0
    write_new(path_of(folder, "P1", "t2"), dark, AFFINE)
    (subject,) = find_subjects(folder, build_data.named_layouts()).subjects
    space = ImageSpace(MODALITIES, SliceView((20, 16), 0.0, False, 0))
    channel = MODALITIES.index("t2")
    read = read_subject(subject, space, np.eye(4, dtype=bool))
    images = read.truth(read.z) * np.float32(gain)
    evaluated = score_prediction(read, read.z, read.missing[channel], channel, images)
    prepared = read.prepared
    estimate = np.full(prepared.brain.shape, 1e-3, np.float32)  # 0 outside the brain
    slices = uncrop(prepared.window, images[..., channel] * read.brain(read.z))
    estimate[read.z] = slices * prepared.scales["t2"]
    path = tmp_path / "P1_t2.nii"
    write_new(path, estimate[:, ::-1, ::-1].transpose(2, 1, 0), AFFINE)
    outcome = score_subject(False, (subject, (Prediction(path, "P1", "t2", ""),)))
    rows = [*outcome.rows, *outcome.skipped]
    scores = {
        row["metric"]: row.get("value", row.get("reason"))
        for row in rows
        if row["profile"] == "umm-csgm-table1"
    }
    if gain == 1:
        assert scores.pop("psnr") == NO_ERROR and evaluated["psnr"] is None
    else:
        assert 20 < scores["psnr"] < 30
    assert scores == {name: evaluated[name] for name in scores}
    assert {"ssim_global", "ssim_wang", "mae"} <= scores.keys()
