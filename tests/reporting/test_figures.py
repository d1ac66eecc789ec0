"""Figures read back before they are saved, and pixel by pixel from their files."""

import os
import re

import matplotlib
import numpy as np
import pytest
from made_study import lesions, structure_row
from matplotlib.image import imread

from ummcsgm.reporting import figures
from ummcsgm.reporting.figures import (
    RELIABILITY,
    RESEARCH_ONLY,
    Panels,
    Preview,
    error_limit,
    thin_curve,
    training_curves_svg,
    write_coronal,
    write_figure,
    write_lesions,
    write_preview,
    write_rank_histograms,
    write_reliability,
    write_structure,
    write_two_sample,
    write_uncertainty,
)


def curve(*arrays):
    return dict(zip(("expected", "measured", "low", "high"), map(np.array, arrays), strict=True))


CURVE = curve([1.0, 4.0], [4.0, 16.0], [1.0, 9.0], [9.0, 36.0])
NINTH = np.full(9, 1 / 9)
SHARES = curve(NINTH, np.arange(1, 10) / 45, np.arange(9) / 45, np.arange(2, 11) / 45)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were to be saved."""
    found = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: found.append(figure))
    return found


def uncertainty(*errors):
    """A modality for each error of the mean."""
    truth = np.zeros((30, 20))
    truth[5:25, 4:16] = 100.0
    truth[20:24, 12:15] = 181.0  # anterior and on the patient's right
    images = {"truth": truth, "draws": np.stack([truth + 1, truth + 5, truth])}
    images["sd"] = np.where(truth > 0, 4.0, 0.0)
    images = {name: np.stack([image] * len(errors)) for name, image in images.items()}
    return images | {"mean": np.stack([truth - error for error in errors])}


def test_reliability_is_of_roots_with_the_diagonal_and_no_root_below_0(drawn):
    below = curve([1.0, 4.0], [-1.0, 4.0], [-2.0, 4.0], [-2.0, 4.0])
    write_reliability("unused", {"T1": CURVE, "T2": below}, "grey levels", RELIABILITY)
    (axes,) = drawn[0].axes
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 4]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[1, 3], [3, 6]]
    assert axes.containers[1].lines[0].get_ydata().tolist() == [0, 2]
    diagonal = axes.lines[-1].get_xydata()
    assert (diagonal[:, 0] == diagonal[:, 1]).all() and diagonal.max() > 6
    assert axes.get_xlim() == axes.get_ylim() == (0, diagonal.max())
    assert "grey levels" in axes.get_xlabel() and "grey levels" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()][-2:] == ["T1", "T2"]


def test_structure_is_a_curve_of_bands_and_one_of_blocks_about_1(drawn):
    structures = {name: structure_row(name)["structure"] for name in ("t1", "t2")}
    write_structure("unused", structures)
    power, skill = drawn[0].axes
    line, _, (bars,) = power.containers[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0.4, 0.5, 0.6, 0.7, 0.8])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.36, 0.48])
    assert abs(line.get_xdata() - np.arange(5)).max() < 0.2
    np.testing.assert_allclose(power.containers[1].lines[0].get_ydata()[0], 0.8)
    np.testing.assert_allclose(skill.containers[1].lines[0].get_ydata(), [0.4, np.nan])
    assert [text.get_text() for text in power.get_xticklabels()][1:4:2] == ["0.05-0.1", "0.2-0.3"]
    assert [text.get_text() for text in skill.get_xticklabels()] == ["1", "16"]
    for axes in (power, skill):
        (band,) = axes.patches
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.8, 1.2))
        assert axes.lines[-1].get_ydata() == [1, 1]
    assert power.get_yscale() == "log" and skill.get_ylim()[0] == 0
    assert power.get_ylim()[0] < 0.36 and power.get_ylim()[1] > 1.44 and skill.get_ylim()[1] > 1.2
    assert [text.get_text() for text in power.get_legend().get_texts()] == ["t1", "t2"]


def test_rank_histograms_are_relative_to_calibrated_draws_on_one_scale(drawn):
    write_rank_histograms("unused", {"T1": SHARES, "FLAIR": curve(*[NINTH] * 4)})
    first, second = drawn[0].axes
    np.testing.assert_allclose([bar.get_height() for bar in first.patches], np.arange(1, 10) / 5)
    np.testing.assert_allclose([bar.get_height() for bar in second.patches], 1)
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] > 2
    bars = first.collections[0].get_segments()
    np.testing.assert_allclose(bars[3][:, 1], [3 / 5, 1])
    assert [axes.get_title() for axes in (first, second)] == ["T1", "FLAIR"]
    assert "among 8 draws" in first.get_xlabel()


def test_lesions_are_reliability_and_strips_of_percentiles(drawn):
    strips = {"truth": np.array([1.0, 2.0]), "mean": np.array([1.5, 1.5])}
    strips["draws"] = np.arange(16) / 10
    write_lesions("unused", lesions()["enhancement"]["reliability"], {"t1c": strips, "t2": strips})
    reliability, right = drawn[0].axes
    (points,) = [c for c in reliability.collections if len(c.get_offsets()) == 2]
    np.testing.assert_allclose(points.get_offsets(), [[0, 1], [1, 0.4375]])
    assert points.get_sizes()[1] > points.get_sizes()[0]
    np.testing.assert_allclose(reliability.lines[0].get_xydata(), [[0, 0], [1, 1]])
    values = [line.get_ydata() for line in right.lines if len(line.get_ydata()) in (2, 16)]
    assert any(np.array_equal(v, strips["draws"]) for v in values)
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "truth",
        "mean",
        "draws",
    ]
    assert [label.get_text() for label in right.get_xticklabels()] == ["t1c", "t2"]
    write_lesions("unused", [], {"t2": strips})
    assert len(drawn[1].axes) == 1


def test_rows_of_uncertainty_have_one_scale_as_a_radiologist_sees_them(drawn):
    images = uncertainty(12.0, 29.0)
    write_uncertainty("unused", ["T1 of BraTS-GLI-00123", "T2"], images)
    tiles = [axes.images[0] for axes in drawn[0].axes[:7]]
    box = (..., slice(2, 28), slice(1, 19))  # the brain and 3 pixels around it
    truth, mean, draws, sd = (images[name][0][box] for name in ("truth", "mean", "draws", "sd"))
    error = np.full((26, 18), 12.0)
    assert drawn[0].axes[0].get_window_extent().width >= 200
    for tile, image in zip(tiles, [truth, mean, *draws, sd, error], strict=True):
        np.testing.assert_array_equal(tile.get_array(), image[::-1, ::-1])
    assert np.argwhere(tiles[0].get_array() == 181.0).min(0).tolist() == [4, 4]
    assert [tile.get_cmap().name for tile in tiles] == ["gray"] * 5 + ["inferno"] * 2
    assert {tile.get_clim() for tile in tiles[:5]} == {(0, 255)}
    limits = {drawn[0].axes[k].images[0].get_clim() for k in (5, 6, 12, 13)}
    assert limits == {(0, 30)}
    titles = [axes.get_title() for axes in drawn[0].axes[:7]]
    draws = ["draw 1", "draw 2", "draw 3"]
    assert titles == ["truth", "mean of draws", *draws, "sd of draws", "|error| of mean"]
    assert drawn[0].axes[7].get_ylabel() == "T2"
    drawn[0].draw_without_rendering()
    assert drawn[0].axes[0].yaxis.label.get_window_extent().x0 > 0


def test_patches_of_a_classifier_are_beside_their_residuals(drawn):
    rng = np.random.default_rng(0)
    names = {"drawn": 3, "real": 2}
    patches = {
        modality: {n: rng.uniform(0, 255, (count, 16, 16)) for n, count in names.items()}
        | {f"{n}_residual": rng.normal(size=(count, 16, 16)) for n, count in names.items()}
        for modality in ("T1", "T2")
    }
    write_two_sample("unused", patches)
    axes = np.reshape(drawn[0].axes, (2, 2, 2, 3))  # modality, residual, kind, patch
    for row, images in zip(axes, patches.values(), strict=True):
        for kind, name in enumerate(names):
            shown = row[:, kind, : names[name]]
            for tile, image in zip(shown[0], images[name], strict=True):
                np.testing.assert_array_equal(tile.images[0].get_array(), image[::-1, ::-1])
            for tile, image in zip(shown[1], images[f"{name}_residual"], strict=True):
                low, high = tile.images[0].get_clim()
                array = tile.images[0].get_array()[::-1, ::-1]
                np.testing.assert_allclose(array, image + high / 2)
    assert not axes[0, 0, 1, 2].images
    assert axes[1, 0, 0, 0].get_ylabel() == "T2" and axes[0, 0, 1, 0].get_title("left") == "truths"


def test_a_coronal_row_has_superior_up_and_right_on_the_left(drawn):
    images = np.random.default_rng(0).uniform(0, 300, (3, 6, 20))  # [n, Z, X] in RAS
    write_coronal("unused", {"T1": images, "T2": 2 * images}, ["a", "b", "c"], 2.5)
    axes = drawn[0].axes
    assert len(axes) == 6 and [tile.get_title() for tile in axes[:3]] == ["a", "b", "c"]
    for tile, image in zip(axes[:3], images, strict=True):
        np.testing.assert_array_equal(tile.images[0].get_array(), image[::-1, ::-1])
    assert {tile.images[0].get_clim() for tile in axes} == {(0, 255)}
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["T1", "T2"]
    box = axes[0].get_window_extent()
    assert box.width / 20 * 2.5 == pytest.approx(box.height / 6, rel=1e-3)
    assert [(t.get_text(), t.xy[0] < 0.5) for t in axes[0].texts] == [("R", True), ("L", False)]


def test_pngs_fit_their_captions_which_say_that_they_are_for_research(tmp_path, monkeypatch):
    found, save = [], figures._save
    monkeypatch.setattr(figures, "_save", lambda *a: (found.append(a[0]), save(*a)))
    write_reliability(tmp_path / "a.png", {"T1": CURVE}, "grey levels", RELIABILITY)
    write_rank_histograms(tmp_path / "b.png", {"T1": SHARES})
    write_uncertainty(tmp_path / "new" / "c.png", ["T1"], uncertainty(12.0))
    write_coronal(tmp_path / "d.png", {"T1": np.ones((4, 12, 20))}, [*"abcd"], 1.0)
    preview = Preview("P1", ("T1", "T2"), np.ones((2, 30, 20)), (False, True))
    write_preview(tmp_path / "e.png", preview)
    paths = ["a.png", "b.png", "new/c.png", "d.png", "e.png"]
    for path, figure in zip(paths, found, strict=True):
        size = figure.bbox.height, figure.bbox.width
        np.testing.assert_allclose(imread(tmp_path / path).shape[:2], size, atol=1)
        caption = figure.texts[0]
        assert RESEARCH_ONLY in " ".join(caption.get_text().split())
        box = caption.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    pixels = np.round(imread(tmp_path / "new/c.png")[..., :3] * 255).astype(int)
    tile = pixels[figures.SMALL_TOP :, figures.SMALL_LEFT :][: 26 * 13, : 18 * 13]  # the truth
    mark = (tile[40:120] == 181).all(-1)
    assert mark.sum() == 4 * 3 * 13 * 13  # enlarged by a whole factor and nothing else
    assert (tile == 100).all(-1).sum() > (20 * 12 - 4 * 3) * 13 * 13 - 400  # R and L


def panels():
    """Two subjects, two modalities: flat brains with a mark anterior on the right."""
    truth = np.zeros((2, 2, 60, 50))
    truth[..., 10:50, 8:40] = np.array([[100, 127], [154, 181]])[..., None, None]
    truth[..., 42:48, 30:38] = 211.0  # rows run to the anterior, columns to the right
    better, worse = truth.copy(), truth.copy()
    better[..., 12:20, 10:30] += 20
    worse[..., 12:20, 10:30] -= 40
    return Panels(("one", "two"), ("T1", "T2"), truth, {"better": better, "worse, by far": worse})


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.png"
    write_figure(path, panels())
    return np.round(imread(path)[..., :3] * 255).astype(int)


def solid(pixels, colour):
    """Rows and columns where a run of 20 pixels of a colour begins."""
    same = (pixels == colour).all(-1)
    return np.argwhere(np.lib.stride_tricks.sliding_window_view(same, 20, 1).all(-1))


def test_anterior_is_up_and_the_patients_right_is_on_the_left(pixels):
    brain, mark = solid(pixels, [100] * 3), solid(pixels, [211] * 3)
    first = mark[(mark < brain[0] + 100).all(1)]  # the truth's, of the first tile
    low, high = brain[brain[:, 0] < brain[0, 0] + 130].min(0), brain.max(0)
    assert 0 < first[0, 0] - low[0] < 20 * 1.5
    assert 0 <= first[:, 1].min() - low[1] < 20
    assert high[1] - first[:, 1].max() > 30


def test_rows_are_truth_then_each_synthesis_above_its_error(pixels):
    inferno, tops = matplotlib.colormaps["inferno"], {}
    for name, colour in {
        "truth": [100] * 3,
        "better": [120] * 3,
        "worse": [60] * 3,
        "small error": inferno(20 / 40, bytes=True)[:3],
        "large error": inferno(40 / 40, bytes=True)[:3],
    }.items():
        runs = solid(pixels, colour)
        left = solid(pixels, [100] * 3)[:, 1].min()
        tops[name] = runs[abs(runs[:, 1] - left) < 60][:, 0].min()
    order = sorted(tops, key=tops.get)
    assert order == ["truth", "better", "small error", "worse", "large error"]


def test_every_tile_has_the_same_grey_window_and_exact_pixels(pixels):
    factor = 4  # the brain is 32 wide with 3 of margin on each side: 38, of about 150
    flat = 40 * 32 - 6 * 8
    for level in (100, 127, 154, 181):
        area = (pixels == level).all(-1).sum() / factor**2
        assert area == pytest.approx(flat + 2 * (flat - 8 * 20), abs=12)  # R and L


def test_a_figure_of_one_black_tile_and_no_methods_is_written(tmp_path):
    path = tmp_path / "new" / "figure.png"
    write_figure(path, Panels(("one",), ("T1",), np.zeros((1, 1, 30, 30)), {}))
    assert (imread(path)[..., :3] == 0).all(-1).sum() > 100 * 100


def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("old")

    def full_disk(source, target):
        assert os.path.exists(source) and os.path.dirname(source) == str(tmp_path)
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_figure(path, Panels(("one",), ("T1",), np.ones((1, 1, 30, 30)), {}))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_one_percent_of_the_errors_in_the_brain_are_beyond_the_scale():
    errors = [np.full((1, 1, 4, 4), 17.0), np.full((1, 1, 4, 4), 33.0)]
    truth = np.ones((1, 1, 4, 4))
    assert error_limit(truth, errors) == 40
    assert error_limit(truth, [errors[0] * 0]) == 10
    assert error_limit(truth, [errors[0] * 100]) == 255
    truth[..., 0] = 0
    assert error_limit(truth, [np.where(truth > 0, 5.0, 200.0)]) == 10
    few = np.full((1, 1, 10, 200), 7, np.uint8)
    few.reshape(-1)[:11] = 150  # of 2000
    assert error_limit(np.ones_like(few), [few]) == 10


def curve_points(svg, colour):
    """The points of the curve with a colour of report.css, in units of the viewBox."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--kind{colour}\)', svg)
    return np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)


def test_training_curves_are_linear_or_logarithmic_where_losses_differ_tenfold():
    even = training_curves_svg("x", {"run": np.array([[0, 4.0], [50, 3.0], [100, 2.0]])})
    x, y = curve_points(even, 0).T
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.01)
    np.testing.assert_allclose(np.diff(y), np.diff(y)[0], atol=0.01)
    curves = {"a": np.array([[0, 10.0], [100, 1.0]]), "b": np.array([[0, 100.0], [50, 1.0]])}
    svg = training_curves_svg("x", curves)
    first, second = curve_points(svg, 0), curve_points(svg, 1)
    assert first[0, 1] == pytest.approx((second[0, 1] + second[1, 1]) / 2, abs=0.01)
    assert first[1, 1] == pytest.approx(second[1, 1], abs=0.01)  # one scale for both
    assert second[1, 0] == pytest.approx(first[:, 0].mean(), abs=0.01)
    width, height = figures.CURVE_SIZE
    for x, y in np.concatenate([first, second]):
        assert 0.1 * width < x < width and 0 < y < 0.9 * height
    labels = set(re.findall(r">([\d.]+k?)</text>", svg))
    assert {"1", "10", "100", "50"} <= labels


def test_flat_and_negative_losses_are_drawn_and_the_svg_can_be_inlined():
    for low, high in ((3.0, 3.0), (0.0, 0.0), (-1.0, 2.0), (1e-9, 5e6)):
        svg = training_curves_svg("x", {"a": np.array([[1, low], [9000, high]])})
        assert len(curve_points(svg, 0)) == 2 and "k</text>" in svg
        assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>")
        assert "xmlns" not in svg and "://" not in svg and "<style" not in svg
        assert "#0000" not in svg and 'id="axes' not in svg


def test_a_long_curve_is_the_means_of_its_parts():
    steps = np.arange(3000.0)
    found = thin_curve(np.column_stack([steps, 2 * steps]))
    assert found.shape == (300, 2)
    np.testing.assert_allclose(found[:2], [[4.5, 9], [14.5, 29]])
    short = np.column_stack([steps, steps])[:300]
    assert thin_curve(short) is short
