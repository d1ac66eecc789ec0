"""The sprites of Figure 2: their pixels, their order, their size."""

import base64
import io

import numpy as np
import pytest
from made_study import METHODS, MODALITIES, gallery
from PIL import Image

from ummcsgm.reporting.gallery import encode_png, read_sprites
from ummcsgm.types import InputError


def decode(text):
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.mode == "L"
    return np.asarray(image)


def saved(tmp_path, **changes):
    arrays = gallery(0, list(METHODS)) | changes
    path = tmp_path / "P005.npz"
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path, arrays


def test_a_png_holds_every_bit():
    image = np.random.default_rng(0).integers(0, 256, (40, 61)).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode_png(image)), image)
    np.testing.assert_array_equal(decode(encode_png(image[::-1, ::-1])), image[::-1, ::-1])


def test_a_sprite_has_a_row_for_each_method_and_a_column_for_each_modality(tmp_path):
    path, arrays = saved(tmp_path)
    subject = read_sprites(path, ("ridge", "absent", "mm-csn"), "mm-csn")
    assert subject.rows == ("truth", "ridge", "mm-csn", "sd")
    assert subject.slices == (50, 52, 54, 56, 58, 60) and len(subject.sprites) == 6
    sprite = decode(subject.sprites[2])
    height, width = subject.size
    assert sprite.shape == (4 * height, len(MODALITIES) * width)
    inside = np.nonzero((arrays["truth"] > 0).any(axis=(0, 1)))
    low, left = (k.min() - 3 for k in inside)
    for r, row in enumerate(subject.rows):
        for m in range(len(MODALITIES)):
            tile = sprite[r * height : (r + 1) * height, m * width : (m + 1) * width]
            whole = arrays[row][m, 2, low : low + height, left : left + width]
            np.testing.assert_array_equal(tile, whole[::-1, ::-1])
    assert (arrays["truth"] > 0).sum() == sum(
        (decode(sprite)[:height] > 0).sum() for sprite in subject.sprites
    )


def test_the_networks_errors_have_a_scale_of_their_own(tmp_path):
    path, arrays = saved(tmp_path)
    limits = read_sprites(path, ("mm-csn", "ridge"), "mm-csn").limits
    inside = arrays["truth"] > 0
    for view, names in {"error": ("mm-csn", "ridge"), "sd": ("mm-csn",)}.items():
        error = [np.abs(arrays[n] - arrays["truth"].astype(int))[inside] for n in names]
        assert limits[view] - 10 < np.percentile(error, 99) <= limits[view]
    assert limits["sd"] < limits["error"]
    alone = read_sprites(path, ("ridge",), "mm-csn").limits
    assert alone["sd"] == alone["error"]


def test_without_a_predicted_sd_there_is_no_row_of_it(tmp_path):
    path, _ = saved(tmp_path, sd=None)
    assert read_sprites(path, ("ridge",), "mm-csn").rows == ("truth", "ridge")


def test_a_black_subject_is_shown_whole(tmp_path):
    path, _ = saved(tmp_path, truth=np.zeros((4, 6, 56, 48), np.uint8))
    assert read_sprites(path, ("ridge",), "mm-csn").size == (56, 48)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "P1.npz"
    path.write_bytes(b"no arrays")
    with pytest.raises(InputError, match="P1.npz"):
        read_sprites(path, (), "mm-csn")
    np.savez(path, truth=np.zeros((4, 2, 9, 9)), z=np.arange(2))
    path.write_bytes(path.read_bytes()[:-50])  # copied in part
    with pytest.raises(InputError, match="P1.npz"):
        read_sprites(path, (), "mm-csn")
    np.savez(path, z=np.arange(2))
    with pytest.raises(InputError, match="truth"):
        read_sprites(path, (), "mm-csn")
