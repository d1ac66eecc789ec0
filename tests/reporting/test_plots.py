"""Pictures read back from the figure that is saved, and as files."""

import numpy as np
import pytest
from matplotlib.image import imread

from ummcsgm.reporting import plots
from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.reporting.plots import (
    RELIABILITY,
    Curve,
    Uncertainty,
    write_coronal,
    write_rank_histograms,
    write_reliability,
    write_uncertainty,
)

CURVE = Curve(*map(np.array, ([1.0, 4.0], [4.0, 16.0], [1.0, 9.0], [9.0, 36.0])))
NINTH = np.full(9, 1 / 9)
SHARES = Curve(NINTH, np.arange(1, 10) / 45, np.arange(9) / 45, np.arange(2, 11) / 45)


@pytest.fixture
def saved(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def _uncertainty(label="T1", error=2.0):
    truth = np.zeros((30, 20))
    truth[5:25, 4:16] = 100.0
    truth[20:24, 12:15] = 181.0  # anterior and on the patient's right
    draws = np.stack([truth + 1, truth + 5, truth])
    sd = np.where(truth > 0, 4.0, 0.0)
    return Uncertainty(label, truth, truth - error, draws, sd, 255.0)


def test_reliability_is_of_roots_with_the_diagonal_to_compare_with(saved):
    write_reliability("unused", {"T1": CURVE}, "grey levels", RELIABILITY)
    (axes,) = saved[0].axes
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 4]]
    low_high = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert low_high == [[1, 3], [3, 6]]
    diagonal = axes.lines[-1].get_xydata()
    assert (diagonal[:, 0] == diagonal[:, 1]).all() and diagonal.max() > 6
    assert axes.get_xlim() == axes.get_ylim() == (0, diagonal.max())
    assert "grey levels" in axes.get_xlabel() and "grey levels" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "T1"


def test_a_bin_whose_error_is_below_0_is_drawn_at_0(saved):
    below = Curve(CURVE.expected, np.array([-1.0, 4.0]), *[np.array([-2.0, 4.0])] * 2)
    write_reliability("unused", {"T1": below}, "grey levels", RELIABILITY)
    assert saved[0].axes[0].containers[0].lines[0].get_ydata().tolist() == [0, 2]


def test_rank_histograms_are_relative_to_calibrated_draws_on_one_scale(saved):
    flat = Curve(NINTH, NINTH, NINTH, NINTH)
    write_rank_histograms("unused", {"T1": SHARES, "FLAIR": flat})
    first, second = saved[0].axes
    heights = [bar.get_height() for bar in first.patches]
    np.testing.assert_allclose(heights, np.arange(1, 10) / 5)
    np.testing.assert_allclose([bar.get_height() for bar in second.patches], 1)
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] > 2
    bars = first.collections[0].get_segments()
    np.testing.assert_allclose(bars[3][:, 1], [3 / 5, 1])
    assert [axes.get_title() for axes in (first, second)] == ["T1", "FLAIR"]
    assert "among 8 draws" in first.get_xlabel()


def test_a_row_is_truth_mean_draws_sd_and_error_as_a_radiologist_sees_them(saved):
    row = _uncertainty("T1 of BraTS-GLI-00123")
    write_uncertainty("unused", [row])
    tiles = [axes.images[0] for axes in saved[0].axes[:7]]
    error = np.full((30, 20), 2.0)
    wanted = [row.truth, row.mean, *row.draws, row.sd, error]
    for tile, image in zip(tiles, wanted, strict=True):
        np.testing.assert_array_equal(tile.get_array(), image[::-1, ::-1])
    assert np.argwhere(tiles[0].get_array() == 181.0).min(0).tolist() == [6, 5]
    assert {tile.get_clim() for tile in tiles[:5]} == {(0, 255)}
    assert [tile.get_cmap().name for tile in tiles] == ["gray"] * 5 + ["inferno"] * 2
    heads = [axes.get_title() for axes in saved[0].axes[:7]]
    draws = ["draw 1", "draw 2", "draw 3"]
    assert heads == ["truth", "mean of draws", *draws, "sd of draws", "|error| of mean"]
    saved[0].draw_without_rendering()
    label = saved[0].axes[0].yaxis.label.get_window_extent()
    assert label.x0 > 0


def test_sd_and_error_have_one_scale_for_all_rows(saved):
    write_uncertainty("unused", [_uncertainty(), _uncertainty("T2", 9.0)])
    axes = saved[0].axes
    limits = {axes[i].images[0].get_clim() for i in (5, 6, 12, 13)}
    assert limits == {(0, 9.0)}
    assert axes[0].get_ylabel() == "T1" and axes[7].get_ylabel() == "T2"


def test_a_coronal_row_has_superior_up_and_right_on_the_left(saved):
    images = np.random.default_rng(0).uniform(0, 300, (3, 6, 20))  # [n, Z, X] in RAS
    write_coronal("unused", {"T1": images, "T2": 2 * images}, ["a", "b", "c"], 2.5)
    axes = saved[0].axes
    assert len(axes) == 6 and [tile.get_title() for tile in axes[:3]] == ["a", "b", "c"]
    for tile, image in zip(axes[:3], images, strict=True):
        np.testing.assert_array_equal(tile.images[0].get_array(), image[::-1, ::-1])
    assert {tile.images[0].get_clim() for tile in axes} == {(0, 255)}
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["T1", "T2"]
    box = axes[0].get_window_extent()
    assert box.width / 20 * 2.5 == pytest.approx(box.height / 6, rel=1e-3)
    assert [(t.get_text(), t.xy[0] < 0.5) for t in axes[0].texts] == [("R", True), ("L", False)]


def test_pictures_are_files_that_say_they_are_for_research(tmp_path, monkeypatch):
    figures, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda *a: (figures.append(a[0]), save(*a)))
    write_reliability(tmp_path / "a.png", {"T1": CURVE}, "grey levels", RELIABILITY)
    write_rank_histograms(tmp_path / "b.png", {"T1": SHARES})
    write_uncertainty(tmp_path / "new" / "c.png", [_uncertainty()])
    write_coronal(tmp_path / "d.png", {"T1": np.ones((4, 12, 20))}, [*"abcd"], 1.0)
    paths = ["a.png", "b.png", "new/c.png", "d.png"]
    for path, figure in zip(paths, figures, strict=True):
        pixels = imread(tmp_path / path)
        size = figure.bbox.height, figure.bbox.width
        np.testing.assert_allclose(pixels.shape[:2], size, atol=1)
        (caption,) = figure.texts
        assert RESEARCH_ONLY in " ".join(caption.get_text().split())
        box = caption.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_a_slice_is_enlarged_by_a_whole_factor_and_nothing_else(tmp_path):
    write_uncertainty(tmp_path / "c.png", [_uncertainty()])
    pixels = np.round(imread(tmp_path / "c.png")[..., :3] * 255).astype(int)
    tile = pixels[plots.HEAD :, plots.LEFT : plots.LEFT + 160]  # the truth's, 8 times
    mark = (tile[40:100] == 181).all(-1)
    assert mark.sum() == 4 * 3 * 8 * 8
    assert (tile[:240] == 100).all(-1).sum() == (20 * 12 - 4 * 3) * 8 * 8
