"""The sprites of Figure 2: their bits, their order, their size."""

import base64
import io
import zlib

import numpy as np
import pytest
from made_study import METHODS, MODALITIES, gallery
from matplotlib.image import imread

from ummcsgm.reporting.gallery import error_limit, png, read_subject
from ummcsgm.types import InputError


def decoded(content):
    return np.round(imread(io.BytesIO(content), format="png") * 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 61)])
def test_a_png_holds_every_bit(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(decoded(png(image)), image)


def test_every_filter_is_undone_by_a_reader():
    """Lines that each kind of neighbour foretells best."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, 64).astype(np.uint8)
    ramp = (np.arange(64) * 3).astype(np.uint8)
    image = np.stack([ramp, noise, noise, noise // 2 + ramp // 2, ramp[::-1] + noise])
    smooth = (np.add.outer(np.arange(30) ** 2, np.arange(64) ** 2) / 20).astype(np.uint8)
    image = np.concatenate([image, smooth])
    np.testing.assert_array_equal(decoded(png(image)), image)


def test_smooth_images_are_small():
    y, x = np.indices((192, 640))
    noise = np.random.default_rng(0).normal(size=y.shape)
    image = (127 + 60 * np.sin(x / 20) * np.cos(y / 15) + noise).astype(np.uint8)
    assert len(png(image)) < 0.75 * len(zlib.compress(image.tobytes(), 9))


def saved(tmp_path, **changes):
    arrays = gallery(0, list(METHODS)) | changes
    path = tmp_path / "P005.npz"
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path, arrays


def test_a_sprite_has_a_row_a_method_and_a_column_a_modality(tmp_path):
    path, arrays = saved(tmp_path)
    shown = read_subject(path, ("ridge", "absent", "mm-csn"), "mm-csn")
    assert shown.rows == ("truth", "ridge", "mm-csn", "sd")
    assert shown.slices == (50, 52, 54, 56, 58, 60) and len(shown.sprites) == 6
    sprite = decoded(base64.b64decode(shown.sprites[2]))
    tall, wide = shown.size
    assert sprite.shape == (4 * tall, len(MODALITIES) * wide)
    inside = np.nonzero((arrays["truth"] > 0).any(axis=(0, 1)))
    low, left = (at.min() - 3 for at in inside)
    for r, row in enumerate(shown.rows):
        for m in range(len(MODALITIES)):
            tile = sprite[r * tall : (r + 1) * tall, m * wide : (m + 1) * wide]
            whole = arrays[row][m, 2, low : low + tall, left : left + wide]
            np.testing.assert_array_equal(tile, whole[::-1, ::-1])
    assert (arrays["truth"] > 0).sum() == sum(
        (decoded(base64.b64decode(s))[:tall] > 0).sum() for s in shown.sprites
    )


def test_the_networks_own_errors_have_a_scale_of_their_own(tmp_path):
    path, arrays = saved(tmp_path)
    limits = read_subject(path, ("mm-csn", "ridge"), "mm-csn").limits
    inside = arrays["truth"] > 0
    for view, names in {"error": ("mm-csn", "ridge"), "sd": ("mm-csn",)}.items():
        error = [np.abs(arrays[n] - arrays["truth"].astype(int))[inside] for n in names]
        assert limits[view] - 10 < np.percentile(error, 99) <= limits[view]
    assert limits["sd"] < limits["error"]
    alone = read_subject(path, ("ridge",), "mm-csn").limits
    assert alone["sd"] == alone["error"]


def test_without_a_predicted_sd_there_is_no_row_of_it(tmp_path):
    path, _ = saved(tmp_path, sd=None)
    assert read_subject(path, ("ridge",), "mm-csn").rows == ("truth", "ridge")


def test_a_black_subject_is_shown_whole(tmp_path):
    path, _ = saved(tmp_path, truth=np.zeros((4, 6, 56, 48), np.uint8))
    assert read_subject(path, ("ridge",), "mm-csn").size == (56, 48)


def test_one_percent_of_the_brains_errors_are_beyond_the_scale():
    truth = np.full((1, 1, 10, 200), 100, np.uint8)
    truth[..., 0] = 0
    estimates = np.stack([truth + 7, truth + 33]).astype(np.uint8)
    assert error_limit(truth, estimates) == 40
    assert error_limit(truth, estimates[:1]) == 10
    outside = np.where(truth > 0, truth + 5, 200).astype(np.uint8)
    assert error_limit(truth, outside[None]) == 10
    assert error_limit(truth, 0 * estimates) == 100
    few = np.array(estimates[:1])
    few.reshape(-1)[1:12] = 250  # 11 of 1990
    assert error_limit(truth, few) == 10


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "P1.npz"
    path.write_bytes(b"no arrays")
    with pytest.raises(InputError, match="P1.npz"):
        read_subject(path, (), "mm-csn")
    np.savez(path, truth=np.zeros((4, 2, 9, 9)), z=np.arange(2))
    path.write_bytes(path.read_bytes()[:-50])  # copied in part
    with pytest.raises(InputError, match="P1.npz"):
        read_subject(path, (), "mm-csn")
    np.savez(path, z=np.arange(2))
    with pytest.raises(InputError, match="truth"):
        read_subject(path, (), "mm-csn")
