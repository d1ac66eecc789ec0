"""What a replaced modality is worth: Dice and probability maps by hand, and in a study."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import MODALITIES, files_under, run_main
from tiny_slices import AFFINE, SETTINGS, SHAPE, look, write_three
from tiny_slices import MODALITIES as THREE
from tiny_table import table_config

from ummcsgm.config import build_data
from ummcsgm.config.build import build_evaluation_options, build_space
from ummcsgm.config.build_methods import SEGMENTER, build_trainable, method_config, method_folder
from ummcsgm.data.crop import ImageSpace
from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA
from ummcsgm.data.labels import region as region_of
from ummcsgm.data.nifti import is_synthetic, read_volume, write_new
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.evaluation.evaluate import EvaluationSpec
from ummcsgm.evaluation.methods import TrainedMethod, load_method
from ummcsgm.evaluation.subject import EvaluatedSubject, SubjectSlices
from ummcsgm.inference.outputs import RESEARCH, sidecar
from ummcsgm.study import downstream as downstream_module
from ummcsgm.study.downstream import (
    BINS,
    MAPS,
    REFERENCES,
    SegmentedSubject,
    Segmenter,
    compare_maps,
    dice_summary,
    load_segmenter,
    map_summary,
    overlaps,
    probability_map,
    score_map,
    segment_replaced,
    segmentation_name,
    segmentation_parts,
    segmented_subject,
    write_maps,
)
from ummcsgm.training import checkpoint
from ummcsgm.training.segmenter_step import regions
from ummcsgm.types import InputError

pytest_plugins = ["tiny_table"]
pytestmark = pytest.mark.timeout(900)
LABELS = np.array([[[CORE, OEDEMA, ENHANCING, 0]]])


def make_subject(present=(True, True, True), labels=None) -> SegmentedSubject:
    """Two slices of 1 x 4 pixels, the last of which is off the brain."""
    images = np.ones((2, 1, 4, 3), np.float32) * np.array(present)
    brain = np.tile([True, True, True, False], (2, 1, 1))
    return SegmentedSubject(
        {"subject": "P1", "group": "HGG"},
        ("a", "b", "c"),
        np.array(present),
        SubjectSlices("P1", np.array([3, 5]), images, brain, np.ones(3)),
        np.repeat(LABELS, 2, axis=0) if labels is None else labels,
    )


def enhancing_where_b(images):
    """Probabilities of CLASSES: what enhances is as probable as b is bright."""
    b = images[..., 1]
    return np.stack([1 - b, 0 * b, 0 * b, b], axis=-1)


def test_dice_is_the_one_that_is_counted_by_hand():
    found = np.array([[[[0.9, 0.9, 0.9], [0.4, 0, 0], [0.6, 0.6, 0.6], [0.6, 0, 0]]]])
    wt, tc, et = overlaps(found, LABELS)
    assert wt == {"region": "WT", "dice": 4 / 6, "voxels": 3, "predicted": 3}
    assert tc == {"region": "TC", "dice": 1.0, "voxels": 2, "predicted": 2}
    assert et == {"region": "ET", "dice": 2 / 3, "voxels": 1, "predicted": 2}


def test_a_region_that_is_not_there_has_no_dice_but_is_counted():
    labels = np.where(LABELS == ENHANCING, OEDEMA, LABELS)
    et = overlaps(np.full((1, 1, 4, 3), 0.7), labels)[2]
    assert et == {"region": "ET", "dice": None, "voxels": 0, "predicted": 4}
    nothing = overlaps(np.zeros((1, 1, 4, 3)), LABELS)[2]
    assert nothing == {"region": "ET", "dice": 0.0, "voxels": 1, "predicted": 0}


def test_only_the_missing_modality_is_replaced():
    """The segmentation reads b alone: nothing else that a method says can matter."""
    subject = make_subject()
    shown = []

    def segment(images):
        shown.append(images)
        return enhancing_where_b(images)

    def fill(channel):
        return np.full((2, 1, 4, 3), 0.2 + channel)

    records = segment_replaced(segment, subject, "method", fill)
    assert [(r["modality"], r["region"]) for r in records] == [
        *itertools.product("abc", ("WT", "TC", "ET"))
    ]
    for channel, images in enumerate(shown):
        others = np.delete(images, channel, axis=-1)
        assert np.array_equal(others, np.delete(subject.images, channel, axis=-1))
        expected = np.where(subject.slices.brain, 0.2 + channel, 0).astype(np.float32)
        assert np.array_equal(images[..., channel], expected)
    assert {r["predicted"] for r in records if r["modality"] == "b"} == {6}
    facts = {"subject": "P1", "group": "HGG", "method": "method"}
    assert all(facts.items() <= record.items() for record in records)


def test_zeros_and_truth_are_segmented_too():
    """b is bright in the brain, whose three pixels a slice are all tumour."""
    subject = make_subject()
    subject.images[..., 1] = subject.slices.brain
    told = {
        name: segment_replaced(enhancing_where_b, subject, name, lambda channel, i=images: i)
        for name, images in {"zeros": 0 * subject.images, "truth": subject.images}.items()
    }
    wt = {
        (name, r["modality"]): r["dice"]
        for name, records in told.items()
        for r in records
        if r["region"] == "WT"
    }
    assert wt == dict.fromkeys(wt, 1.0) | {("zeros", "b"): 0.0}
    assert len(wt) == 6


def test_what_a_method_does_not_predict_has_no_record():
    def fill(channel):
        images = np.full((2, 1, 4, 3), np.nan)
        if channel == 2:
            images[..., 2] = 0.5
        return images

    told = segment_replaced(enhancing_where_b, make_subject(), "some", fill)
    assert {record["modality"] for record in told} == {"c"}


def test_a_modality_that_was_never_scanned_is_not_replaced():
    assert make_subject((True, False, True)).replaceable() == [0, 2]
    assert make_subject((True, False, False)).replaceable() == []


def record(method, dice, predicted=10, modality="t1", region="ET"):
    facts = {"method": method, "modality": modality, "region": region}
    return facts | {"dice": dice, "predicted": predicted, "voxels": 1}


def test_the_summary_skips_and_counts_who_lacks_a_region():
    records = [record("m", 0.5), record("m", None, 4), record("m", 0.9)]
    records += [record("m", None, 7), record("n", None, 2), record("o", 0.25)]
    rows = {row["method"]: row for row in dice_summary(records)}
    assert rows["m"] == {
        "method": "m",
        "modality": "t1",
        "region": "ET",
        "dice": pytest.approx(0.7),
        "sd": pytest.approx(0.4 / np.sqrt(2)),
        "subjects": 2,
        "skipped": 2,
        "false_voxels": 5.5,
    }
    numbers = ("dice", "sd", "subjects", "skipped", "false_voxels")
    assert [rows["n"][name] for name in numbers] == [None, None, 0, 1, 2.0]
    assert [rows["o"][name] for name in numbers] == [0.25, None, 1, 0, None]


def test_methods_do_not_depend_on_one_another():
    rng = np.random.default_rng(0)
    records = [
        record(method, float(rng.uniform()), modality=modality)
        for method in "abc"
        for modality in ("t1", "t2")
        for _ in range(3)
    ]
    rows = dice_summary(records)
    backwards = dice_summary([r for m in "cab" for r in records if r["method"] == m])
    assert sorted(map(str, rows)) == sorted(map(str, backwards))
    assert dice_summary([r for r in records if r["method"] == "b"]) == [
        row for row in rows if row["method"] == "b"
    ]


def downstream(table):
    return json.loads((table / "run" / "study" / "results.json").read_text())["downstream"]


@pytest.fixture(scope="module")
def config(table):
    """Of the finished study."""
    return table_config(table / "subjects")


@pytest.mark.slow
def test_every_method_is_there_with_every_modality_and_region(table, config):
    """Of the test subjects all but the last one have a segmentation."""
    keys = [(r["method"], r["modality"], r["region"]) for r in downstream(table)["rows"]]
    assert keys == [
        (method, modality, region)
        for method in ("mm-csn", *config.study.methods, "zeros", "truth")
        for modality in MODALITIES
        for region in ("WT", "TC", "ET")
    ]


@pytest.mark.slow
def test_the_truth_is_the_same_whatever_it_replaces(table):
    dices = {}
    for row in downstream(table)["rows"]:
        dices.setdefault((row["method"], row["region"]), set()).add(row["dice"])
    assert all(len(values) == 1 for key, values in dices.items() if key[0] == "truth")


@pytest.mark.slow
def test_a_method_s_records_are_of_its_own_predictions(table, config):
    """As computed here by hand, for one subject and one modality."""
    segment = load_segmenter(table / "run", config)
    method = load_method(
        method_folder(table / "run", "regression"), build_evaluation_options(config)
    )
    cohort, _ = build_data.prepare(config, table / "run")
    record = next(r for r in downstream(table)["records"] if r["method"] == "regression")
    subject, view = cohort.subjects[record["subject"]], build_space(config).view
    prepared = prepare_subject(subject, MODALITIES, view)
    segmented = segmented_subject(EvaluatedSubject(subject, prepared, MODALITIES, None, None, None))
    predicted = method.predict(segmented.slices.images, segmented.missing(0)).mean
    assert np.array_equal(predicted[..., 1:], segmented.images[..., 1:])
    images = segmented.images.copy()
    images[..., 0] = predicted[..., 0] * segmented.slices.brain
    whole = 1 - segment(images)[..., 0] > 0.5
    assert (record["modality"], record["region"]) == (MODALITIES[0], "WT")
    assert abs(record["predicted"] - whole.sum()) <= 1  # 0.5 is met by rounding


@pytest.mark.slow
def test_the_maps_of_one_subject_are_written_and_scored(table):
    """Of the draws, the mean and the truth, in the slices that draws are measured on."""
    found = downstream(table)
    files = sorted((table / "run" / "study" / "segmentation").glob("*.nii.gz"))
    name = files[0].name.split("_")[0]
    assert [f.name for f in files] == sorted(
        f"{name}_without-{modality}_{region}-probability.nii.gz"
        for modality in MODALITIES
        for region in ("WT", "TC", "ET")
    )
    volumes = [read_volume(file)[0] for file in files]
    for et, tc, wt in zip(volumes[::3], volumes[1::3], volumes[2::3], strict=True):
        assert 0 < wt.max() <= 1
        assert (tc <= wt + 2e-3).all() and (et <= tc + 2e-3).all()
    keys = {(r["map"], r["modality"], r["region"]) for r in found["maps"]}
    assert len(keys) == len(found["maps"]) == 4 * len(MODALITIES) * 3
    assert {row["subjects"] for row in found["maps"]} == {1}
    assert all(0 <= row["brier"] <= 1 for row in found["maps"])


@pytest.mark.slow
def test_without_a_segmenter_there_is_nothing(own_table, capsys):
    run = own_table / "run"
    shutil.rmtree(method_folder(run, SEGMENTER))
    assert run_main("--workdir", run, "--mode", "evaluate") == 0
    assert "segmenter is not in" in capsys.readouterr().out
    assert downstream(own_table) is None


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("segmenter", {"network", "floor", *REFERENCES, MAPS}),
        ("network", {"network", MAPS}),
        ("floor", {"floor"}),
        ("profile", {"network", "floor", *REFERENCES, MAPS}),
        ("nothing", set()),
    ],
)
def test_segmentations_are_made_again_if_what_they_are_of_changed(
    tmp_path, subject, monkeypatch, changed, again
):
    options = build_evaluation_options(table_config(tmp_path))
    space = ImageSpace(THREE, SETTINGS.view)
    spec = EvaluationSpec(space, options, np.eye(3, dtype=bool), 0, (subject,))

    def keys():
        def digest(name):
            return f"{name}, changed" if name == made_of else name

        methods = [
            TrainedMethod(name, tmp_path, "", "", None, digest(name))
            for name in ("network", "floor")
        ]
        segmenter = Segmenter(digest("segmenter"), None)
        parts = segmentation_parts(tmp_path, spec, segmenter, methods)
        return {name: json.dumps(part.keys[subject.name]) for name, part in parts.items()}

    made_of = "nothing yet"
    before = keys()
    made_of = changed
    if changed == "profile":
        monkeypatch.setattr(downstream_module, "profile_hash", lambda profile: "other")
    found = {name for name, key in keys().items() if key != before[name]}
    assert found == {name if name == MAPS else segmentation_name(name) for name in again}


@pytest.mark.slow
def test_the_segmenter_s_config_is_the_study_s_with_its_own_steps(table, config):
    saved = checkpoint.restore_metadata(method_folder(table / "run", SEGMENTER))
    assert saved["method"] == SEGMENTER
    assert saved["config"]["train"]["steps"] == config.study.segmenter_steps
    none = config.copy_and_resolve_references()
    none.study.segmenter_steps = 0
    with pytest.raises(InputError, match="config.study.segmenter_steps is 0"):
        method_config(none, SEGMENTER)


@pytest.mark.slow
def test_the_segmenter_predicts_slices_by_themselves(table, config):
    """However many there are at once, and with the averaged parameters."""
    segment = load_segmenter(table / "run", config)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(11, 16, 16, len(MODALITIES))).astype(np.float32)
    whole = segment(images)
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    parts = [segment(images[:3]), segment(images[3:]), segment(images[:0])]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert np.ptp(whole[:, 8, 8, 0]) > 0 and len(segment.digest) == 64


def segmenter_state(config, workdir):
    """The leaves of the newest checkpoint's (state, ema)."""
    shapes = jax.eval_shape(build_trainable(config, SEGMENTER).start, jax.random.key(0))
    folder = method_folder(workdir, SEGMENTER)
    return jax.tree.leaves(checkpoint.restore(folder, shapes.replace(ema=None), shapes.ema))


@pytest.mark.slow
def test_a_resumed_segmenter_is_the_straight_one_bitwise(table, own_table, config):
    run = own_table / "run"
    steps = method_folder(run, SEGMENTER) / "checkpoints"
    shutil.rmtree(steps / "4")
    early = segmenter_state(config, run)
    arguments = ("--workdir", run, "--mode", "train", "--methods", SEGMENTER)
    assert run_main("--config", own_table / "table.py", *arguments) == 0
    straight, resumed = segmenter_state(config, table / "run"), segmenter_state(config, run)
    for a, b in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    moved = [np.any(a != b) for a, b in zip(early, resumed, strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.slow
def test_a_changed_segmentation_is_read_again(own_table):
    run = own_table / "run"
    before = files_under(run / "study")["subjects.csv"], downstream(own_table)
    name = next(r["subject"] for r in before[1]["records"])
    (path,) = (own_table / "subjects").rglob(f"{name}_seg.nii.gz")
    path.unlink()
    labels = np.zeros(tiny_run.SHAPE, np.uint8)
    labels[5:8, 6:10, 2:4] = 2
    write_new(path, labels, tiny_run.AFFINE)
    arguments = ("--workdir", run, "--mode", "evaluate")
    config = f"--config.data.folder={own_table / 'subjects'}"
    assert run_main("--config", own_table / "table.py", config, *arguments) == 0
    after = downstream(own_table)
    assert files_under(run / "study")["subjects.csv"] == before[0]
    assert after["records"] != before[1]["records"]


def segment(images):
    """Probabilities of CLASSES that are no linear function of the images."""
    first, second = images[..., 0], images[..., 1]
    logits = np.stack([1 + 0 * first, first * second, second, first - second], -1)
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


@pytest.fixture
def draws():
    return np.random.default_rng(0).normal(size=(3, 2, 4, 5, 3))


@pytest.fixture
def subject(tmp_path):
    """Its tumour is oedema about a core that enhances on one side."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 3:7, 3:5] = OEDEMA
    labels[4:6, 4:6, 3:5] = CORE
    labels[4:5, 4:6, 3:5] = ENHANCING
    write_three(tmp_path)
    write_new(tmp_path / "a" / "a-seg.nii.gz", labels, AFFINE)
    return look(tmp_path)[0]


@pytest.fixture
def both(subject):
    prepared = prepare_subject(subject, THREE, SETTINGS.view)
    evaluated = EvaluatedSubject(subject, prepared, THREE, None, None, None)
    return evaluated, segmented_subject(evaluated)


def test_draws_that_are_all_alike_give_the_one_segmentation(draws):
    same = np.repeat(draws[:1], 4, axis=0)
    found = probability_map(segment, same)
    np.testing.assert_allclose(found, regions(segment(draws[0])), rtol=1e-12)


def test_different_draws_give_the_mean_of_their_segmentations(draws):
    """Not the segmentation of their mean."""
    entry, other, _ = (regions(segment(images)) for images in draws)
    found = probability_map(segment, iter(draws[:2]))
    np.testing.assert_allclose(found, (entry + other) / 2, rtol=1e-12)
    of_mean = regions(segment(draws[:2].mean(axis=0)))
    assert np.abs(found - of_mean).max() > 0.02


def test_a_map_is_scored_as_by_hand():
    """Four voxels, one of them off the brain: the whole tumour is two of them."""
    labels = np.array([[[OEDEMA, OEDEMA, 0, 0]]])
    brain = np.array([[[True, True, True, False]]])
    maps = np.zeros((1, 1, 4, 3))
    maps[0, 0, :, 0] = [0.95, 0.25, 0.28, 0.4]
    wt, tc, _ = score_map(maps, labels, brain)
    assert wt["dice"] == 2 / 3 and wt["predicted"] == 1
    squares = 0.05**2, 0.75**2, 0.28**2
    assert wt["brier"] == pytest.approx(sum(squares) / 3)
    assert wt["bins"]["voxels"] == [0, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    said, true = np.zeros(BINS), np.zeros(BINS)
    said[[2, 9]], true[[2, 9]] = [0.53, 0.95], [1, 1]
    np.testing.assert_allclose(wt["bins"]["said"], said, rtol=1e-12)
    assert wt["bins"]["true"] == true.tolist()
    assert tc["dice"] is None and tc["brier"] == 0.0
    assert tc["bins"]["voxels"] == [3, *[0] * 9]
    json.dumps([wt, tc])


def test_what_is_certain_lies_in_the_last_bin():
    labels, brain = np.full((1, 1, 1), CORE), np.ones((1, 1, 1), bool)
    for record in score_map(np.ones((1, 1, 1, 3)), labels, brain):
        assert record["bins"]["voxels"] == [*[0] * 9, 1]


def map_record(dice, brier, voxels, said, true):
    bins = {"voxels": voxels, "said": said, "true": true}
    bins = {name: [*values, *[0] * (BINS - 2)] for name, values in bins.items()}
    facts = {"map": "draws", "modality": "t1", "region": "WT"}
    return facts | {"dice": dice, "brier": brier, "bins": bins}


def test_reliability_is_that_of_all_subjects_voxels():
    """In the second bin 4 voxels said 0.15 and 1 was: |0.6 - 1| of 14 voxels."""
    rows = map_summary(
        [
            map_record(0.5, 0.1, [10, 1], [0.3, 0.15], [0, 1]),
            map_record(None, 0.3, [0, 3], [0, 0.45], [0, 0]),
        ]
    )
    assert rows == [
        {
            "map": "draws",
            "modality": "t1",
            "region": "WT",
            "dice": 0.5,
            "brier": pytest.approx(0.2),
            "calibration": pytest.approx((0.3 + 0.4) / 14),
            "subjects": 2,
            "skipped": 1,
            "table": [
                {
                    "low": 0.0,
                    "high": 0.1,
                    "voxels": 10,
                    "probability": pytest.approx(0.03),
                    "frequency": 0.0,
                },
                {
                    "low": 0.1,
                    "high": 0.2,
                    "voxels": 4,
                    "probability": pytest.approx(0.15),
                    "frequency": 0.25,
                },
            ],
        }
    ]


def test_draws_mean_and_truth_are_scored_alike(both):
    """Of the draws only the missing modality is read; draws of the truth are it."""
    _, segmented = both
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(3, *segmented.images.shape))
    draws[..., 1] = segmented.images[..., 1]
    draws[0, ..., 1] *= 0.5  # the first draw is wrong, and the other two are right
    mean = segmented.images.copy()
    mean[..., 1] = 0
    records, maps = compare_maps(segment, segmented, 1, draws, mean)
    scores = {(r["map"], r["region"]): r for r in records}
    assert len(scores) == len(records) == 12
    right = regions(segment(segmented.images))
    half = segmented.images.copy()
    half[..., 1] *= 0.5
    wrong = regions(segment(half))
    for index, region in enumerate(("WT", "TC", "ET")):
        entry = scores["draws", region]
        assert entry["modality"] == THREE[1] and entry["subject"] == "a"
        for name, image in (
            ("one draw", wrong),
            ("truth", right),
            ("draws", (2 * right + wrong) / 3),
        ):
            said = image[..., index][segmented.slices.brain]
            true = region_of(segmented.labels, region)[segmented.slices.brain]
            brier = np.mean((said - true) ** 2)
            assert scores[name, region]["brier"] == pytest.approx(brier, rel=1e-5)
        assert scores["mean", region]["brier"] != pytest.approx(entry["brier"], rel=1e-3)
    np.testing.assert_allclose(maps, (2 * right + wrong) / 3, rtol=1e-5)


def test_maps_lie_on_the_scanner_s_grid(both, subject, tmp_path):
    """A map that is the labels is the segmentation's own file, in the slices asked."""
    evaluated, _ = both
    some = segmented_subject(evaluated, np.array([3, 50]))
    assert some.slices.z.tolist() == [3] and len(some.images) == len(some.labels) == 1
    maps = np.stack(
        [some.labels > 0, np.isin(some.labels, (CORE, ENHANCING)), some.labels == ENHANCING],
        axis=-1,
    )
    metadata = {"missing": "t1", "draws": 8, "sampler": "warm"}
    paths = write_maps(
        tmp_path / "maps", "a", evaluated.prepared, some.slices.z, 0.75 * maps, metadata
    )
    names = [f"a_without-t1_{name}-probability.nii.gz" for name in ("WT", "TC", "ET")]
    assert [path.name for path in paths] == names
    truth, _ = read_volume(subject.segmentation)
    of_region = truth > 0, np.isin(truth, (CORE, ENHANCING)), truth == ENHANCING
    for path, true in zip(paths, of_region, strict=True):
        volume, geometry = read_volume(path)
        assert np.array_equal(geometry.affine, evaluated.prepared.geometry.affine)
        expected = np.zeros(volume.shape)
        expected[3] = 0.75 * true[3]
        assert expected.any()
        np.testing.assert_allclose(volume, expected, atol=1e-3)
        assert is_synthetic(path)
        told = json.loads(sidecar(path).read_text())
        assert metadata.items() <= told.items()
        assert (told["note"], told["slices"]) == (RESEARCH, [3])
        assert told["region"] == path.name.split("_")[2].split("-")[0]


def test_off_the_brain_there_is_no_tumour(both, tmp_path):
    evaluated, segmented = both
    maps = np.ones((*segmented.labels.shape, 3))
    path, *_ = write_maps(
        tmp_path, "a", evaluated.prepared, segmented.slices.z, maps, {"missing": "t2"}
    )
    volume, _ = read_volume(path)
    np.testing.assert_allclose(volume, evaluated.prepared.brain, atol=1e-3)
