"""Subjects that lack modalities train, and are asked what they can be asked."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import MODALITIES, NAMES, path_of, run_main, tiny_config, write_config, write_subjects
from tiny_slices import open_store

from ummcsgm.diffusion.missingness import missing_patterns
from ummcsgm.evaluation.subject import possible_patterns

LACKS = dict(zip(NAMES, ("flair", "t1", "t1c", "t2", "t1"), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study of a cohort in which no subject has all modalities, and what it said."""
    root = tmp_path_factory.mktemp("incomplete")
    folder = write_subjects(root / "subjects", (*NAMES, "P6"))
    for name, modality in LACKS.items():
        path_of(folder, name, modality).unlink()
    for modality in ("flair", "t1c", "t2"):
        path_of(folder, "P6", modality).unlink()
    config = tiny_config(folder, train__steps=60, train__warmup=5)
    file = write_config(root / "c.py", config)
    code = run_main("--config", file, "--workdir", root / "run")
    assert code == 0
    return root / "run"


def table(run, name):
    with (run / "evaluation" / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_cohort_in_which_no_subject_has_everything_trains(run):
    split = json.loads((run / "split.json").read_text())
    # one modality alone is neither seen nor missing: P6 takes no part
    assert sorted(sum(split.values(), [])) == list(NAMES)
    store = open_store(run / "prepared", "train")
    for entry in store.subjects:
        lacking = [m for m, p in zip(MODALITIES, entry.present, strict=True) if not p]
        assert lacking == [LACKS[entry.name]]
        channel = MODALITIES.index(LACKS[entry.name])
        slices = store.subject_slices(entry.name)
        assert not slices[..., channel].any() and slices.any()
    losses = [json.loads(x)["loss"] for x in (run / "log.jsonl").read_text().split("\n")[:-1]]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow
def test_only_what_has_a_truth_is_scored_under_the_name_of_all_that_is_missing(run):
    rows = table(run, "subjects.csv")
    assert rows
    for row in rows:
        lacking = LACKS[row["subject"]]
        missing = row["missing"].split("+")
        assert row["modality"] != lacking and lacking in missing
        assert sorted(missing, key=MODALITIES.index) == missing and len(missing) == 2
        assert np.isfinite(float(row["psnr"]))
    asked = {(r["subject"], r["modality"]) for r in rows if r["method"] == "mean"}
    tested = {row["subject"] for row in rows}
    assert len(tested) == 2 and len(asked) == 2 * 3
    facts = json.loads((run / "evaluation" / "metrics.json").read_text())["facts"]
    assert (facts["questions"], facts["scored"]) == (8, 6)
    text = (run / "evaluation" / "table.md").read_text()
    assert "6 of 8 missing patterns were scored" in text
    assert (run / "evaluation" / "figure.png").is_file()


@pytest.mark.slow
def test_the_table_has_its_columns_in_order_and_says_how_many(run):
    lines = (run / "evaluation" / "table.md").read_text().splitlines()
    heads = [line.split() for line in lines if line.startswith("| missing")]
    assert heads == 4 * ["| missing | method | flair | t1 | t1c | t2 |".split()]  # a metric each
    mean, *_ = (line for line in lines if line.startswith("| 2       | mm-CSN mean"))
    asked = [row for row in table(run, "subjects.csv") if row["method"] == "mean"]
    for cell, name in zip(mean.split(" | ")[2:], MODALITIES, strict=True):
        assert f"n = {sum(row['modality'] == name for row in asked)}" in cell


@pytest.mark.slow
def test_a_floor_is_there_where_some_training_subject_had_all_that_it_needs(run):
    """Of three training subjects each lacks another: to answer t1 from flair and t1c
    one must have all three."""
    split = json.loads((run / "split.json").read_text())
    sets = [set(MODALITIES) - {LACKS[name]} for name in split["train"]]
    rows = table(run, "subjects.csv")
    for row in (row for row in rows if row["method"] == "mean"):
        seen = set(MODALITIES) - set(row["missing"].split("+"))
        possible = any(seen | {row["modality"]} <= one for one in sets)
        asked = (row["subject"], row["missing"], row["modality"])
        for floor in ("ridge", "ridge2"):
            there = [
                r
                for r in rows
                if (r["method"], r["subject"], r["missing"], r["modality"]) == (floor, *asked)
            ]
            assert len(there) == possible


@pytest.mark.slow
def test_an_incomplete_subject_is_completed(run, tmp_path):
    folder = run.parent / "subjects"
    order = ("--input", folder, "--output", tmp_path)
    assert run_main("--workdir", run, "--mode", "complete", *order) == 0
    for name, modality in LACKS.items():
        assert path_of(tmp_path, name, modality).is_file()
    assert len(list(tmp_path.rglob("P6_*.nii.gz"))) == 2 * 3  # each with its sd


@pytest.mark.parametrize(
    "present, singles, every", [("1111", 4, 14), ("1011", 3, 6), ("1010", 2, 2), ("0100", 0, 0)]
)
def test_what_a_subject_can_be_asked(present, singles, every):
    has = np.array([flag == "1" for flag in present])
    table = missing_patterns(4, proper=True)
    for questions, count in ((table[table.sum(axis=1) == 1], singles), (table, every)):
        missing, scored = possible_patterns(questions, has)
        assert len(missing) == len(scored) == count
        assert not (scored & ~has).any()  # there is a truth
        assert (missing >= ~has).all()  # what is not there is missing
        assert ((has & ~missing).sum(axis=1) > 0).all()  # something is seen
        assert np.array_equal(missing, scored | ~has)


def test_what_was_never_scanned_is_nothing_at_any_time():
    """It has neither a_t nor an influence, whatever its channel happens to hold."""
    from ummcsgm.diffusion.loss import DSMInputs, dsm_loss
    from ummcsgm.diffusion.sde import VP

    shown = []

    def spy(x, t):
        shown.append(np.asarray(x))
        return jnp.zeros_like(x)

    scored = jnp.array([[True, False, False], [False, True, False]])
    missing = jnp.array([[True, False, True], [True, True, False]])
    noise = jnp.ones((2, 4, 4, 3))
    token, t = jnp.zeros(2, bool), jnp.array([0.3, 0.8])
    questions = DSMInputs(scored, missing, t, noise, token)
    images = jnp.full((2, 4, 4, 3), 0.5)
    dsm_loss(spy, images, questions, VP(0.1, 20.0), jnp.ones(2))
    (x,) = shown
    drawn = np.asarray(scored)[:, None, None]
    assert (x[~np.broadcast_to(drawn, x.shape)] == 0).all()
    assert (x[np.broadcast_to(drawn, x.shape)] != 0).all()
