"""From images to tables and completed files, by the command line alone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_run import MODALITIES, NAMES, ROOT, TINY, files_under, quickstart, run_main, start_main

from ummcsgm.config import build, build_data
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.evaluation import evaluate
from ummcsgm.inference.predictor import load_trained_model
from ummcsgm.training import checkpoint, train

pytest_plugins = ["tiny_study"]

TABLES = ("table.csv", "subjects.csv", "metrics.json", "table.md", "figure.png")
TABLES += ("coherence.csv", "coherence.json", "coherence.md", "coherence.png")


def state_bits(workdir):
    """All that the newest checkpoint holds of the state, and the average, as bytes."""
    metadata = checkpoint.restore_metadata(workdir)
    config = build.config_from_json(metadata["config"])
    start = build_trainable(config, "mm-csn").start
    state = train.start_or_restore(workdir, start, 0)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def records(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_study_leaves_all_that_it_promises(study):
    run = study / "run"
    assert checkpoint.latest_step(run) == 150
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["120", "150"]
    steps = [record["step"] for record in records(run)]
    assert steps == list(range(25, 151, 25))
    means = [record["mean_loss"] for record in records(run)]
    assert means[-1] < 0.5 * means[0]
    losses = [record["loss"] for record in records(run)]  # 1 where the network says nothing
    assert losses[-1] < 0.9 * losses[0]
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert all((run / "evaluation" / name).is_file() for name in TABLES)
    assert (run / "config.py").is_file()
    split = json.loads((run / "split.json").read_text())
    assert sorted(sum(split.values(), [])) == list(NAMES)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["split"] == split
    assert len(manifest["starts"]) == 1 and manifest["starts"][0]["step"] == 0
    lines = (study / "stdout.txt").read_text().splitlines()
    assert lines[0].startswith("preparing: 5/5")
    assert lines[1].startswith("prepared: 15 train slices of 3 subjects, 10 test")
    assert lines[2].startswith("step 25/150: loss ")
    evaluated = [line for line in lines if line.startswith("evaluated 2/2: P")]
    assert evaluated[-1].endswith(", ridge")
    assert lines[-1].startswith("lesions: 1 subject without a score; no segmentation: P")
    assert not [p for p in files_under(run) if "tmp" in p or "/." in f"/{p}"]


def test_training_has_learned_more_than_the_average_image(study):
    """Signal reaches the tables: the network beats an answer of 0, in each modality."""
    with (study / "run" / "evaluation" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in MODALITIES:
        (psnr,) = (
            float(row["mean"])
            for row in rows
            if (row["method"], row["missing"], row["metric"]) == ("mean", name, "psnr")
        )
        assert 12 < psnr < 60, (name, psnr)  # 0 everywhere has 4 to 7 dB


def test_a_second_study_retrains_nothing_and_writes_the_same_tables(own_study, monkeypatch):
    run = own_study / "run"
    tables = files_under(run / "evaluation")
    checkpoints = files_under(run / "checkpoints")
    log = records(run)
    for name in TABLES:
        (run / "evaluation" / name).unlink()

    def refuse(*_):
        raise AssertionError("a finished study asked the network again")

    monkeypatch.setattr(evaluate, "read_subject", refuse)
    assert run_main("--config", own_study / "tiny.py", "--workdir", run) == 0
    assert files_under(run / "evaluation") == tables
    assert files_under(run / "checkpoints") == checkpoints
    assert records(run) == log


@pytest.mark.slow
def test_evaluate_needs_only_the_workdir_and_gives_the_studys_tables(own_study):
    run = own_study / "run"
    tables = files_under(run / "evaluation")
    shutil.rmtree(run / "evaluation" / "parts")
    assert run_main("--workdir", run, "--mode", "evaluate") == 0
    again = files_under(run / "evaluation")
    for name in TABLES:
        assert again[name] == tables[name], name


@pytest.mark.slow
def test_every_configuration_can_be_evaluated_by_flag(own_study):
    run = own_study / "run"
    assert run_main("--workdir", run, "--mode", "evaluate", "--all_configurations") == 0
    with (run / "evaluation" / "table.csv").open() as file:
        requested = {row["missing"] for row in csv.DictReader(file)}
    assert len(requested) == 14 and "flair+t1+t1c" in requested


@pytest.mark.slow
def test_a_workdirs_own_config_repeats_the_run_bit_for_bit(study, tmp_path):
    code = run_main(
        *("--config", study / "run" / "config.py"),
        *("--workdir", tmp_path / "new", "--mode", "train"),
    )
    assert code == 0
    assert state_bits(tmp_path / "new") == state_bits(study / "run")
    assert load_trained_model(tmp_path / "new").digest == load_trained_model(study / "run").digest
    split = (tmp_path / "new" / "split.json").read_text()
    assert split == (study / "run" / "split.json").read_text()
    old, new = records(study / "run"), records(tmp_path / "new")
    for record in old + new:
        del record["images_per_second"], record["seconds"]
    assert old == new


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_very_parameters_of_an_unbroken_one(study, tmp_path):
    """Two processes: SIGTERM in the midst of the first; the same command again."""
    arguments = ("--config", study / "tiny.py", "--workdir", tmp_path / "run")
    arguments += ("--mode", "train", "--config.train.log_every=1")
    first = start_main(*arguments)
    for line in first.stdout:
        if line.startswith("step 2/150"):
            first.send_signal(signal.SIGTERM)
            break
    output, said = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM and said == "", said
    last = output.splitlines()[-1]
    step = checkpoint.latest_step(tmp_path / "run")
    assert last == f"SIGTERM: saved at step {step}; the same command continues."
    assert 2 <= step < 150
    assert state_bits(tmp_path / "run") != state_bits(study / "run")
    second = start_main(*arguments)
    output, said = second.communicate(timeout=120)
    assert second.returncode == 0 and said == "", said
    assert output.splitlines()[1].startswith(f"step {step + 1}/150: loss ")
    assert state_bits(tmp_path / "run") == state_bits(study / "run")
    assert [r["step"] for r in records(tmp_path / "run")] == list(range(1, 151))
    starts = json.loads((tmp_path / "run" / "manifest.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, step]


def test_the_phantom_of_a_config_is_made_in_the_workdir_once(tmp_path):
    config = quickstart()
    changes = {"phantom.subjects": 4, "phantom.shape": (32, 32, 8)}
    changes |= {"data.grid": (32, 32), "data.folder": ""}
    config.update_from_flattened_dict({**TINY, **changes})
    first = build_data.build_cohort(config, tmp_path)
    assert len(first.subjects) == 4
    made = files_under(tmp_path)
    assert build_data.build_cohort(config, tmp_path).split == first.split
    assert files_under(tmp_path) == made
    store = build_data.build_stores(config, tmp_path, first, print)["train"]
    assert len(store) > 0 and len(store.subjects) == len(first.split["train"])
    for name, subject in first.subjects.items():
        assert sorted(subject.files) == sorted(MODALITIES)
        assert (tmp_path / "phantom" / subject.group / name).is_dir()


def test_the_command_explains_itself():
    process = start_main("--help")
    output, _ = process.communicate(timeout=60)
    for flag in ("--workdir", "--mode", "--config", "--input", "--missing", "--draws"):
        assert flag in output


@pytest.mark.parametrize("name", ["ummcsgm.main", "ummcsgm.data.phantom.make"])
def test_a_worker_process_does_not_load_jax(name):
    """Processes that only read files import the command line too."""
    code = f"import {name}, sys; sys.exit('jax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
