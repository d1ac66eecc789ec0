"""Every method by one command: the same questions, the same table, however it ran."""

import collections
import csv
import json
import shutil

import numpy as np
import pytest
from tiny_run import AFFINE, MODALITIES, files_under, image, path_of, run_main, write_config
from tiny_table import METHODS, OTHERS, table_config

from ummcsgm.config import build, build_methods
from ummcsgm.data.nifti import write_new
from ummcsgm.evaluation import subject as evaluated_subject
from ummcsgm.evaluation.methods import load_method
from ummcsgm.evaluation.protocols import TABLE1, profile_hash
from ummcsgm.study import train_methods
from ummcsgm.training import checkpoint

pytest_plugins = ["tiny_table"]
pytestmark = pytest.mark.timeout(900)  # seven networks are trained before the first
TRAINED = ("mm-csn", *METHODS)
ROWS = ("mm-csn", "warm", "algorithm1", "ridge2", "ridge", *METHODS)
TABLES = ("table.csv", "subjects.csv", "crps.csv", "significance.csv")


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def results(workdir):
    return json.loads((workdir / "study" / "results.json").read_text())


def report(table):
    return (table / "run" / "study" / "report.html").read_text()


def folder_of(workdir, name):
    return workdir if name == "mm-csn" else workdir / "methods" / name


def tables(workdir):
    """All that must be the same for the same seed."""
    files = files_under(workdir / "study")
    return {
        name: content
        for name, content in files.items()
        if name.endswith((".csv", ".npz", ".nii.gz"))
    }


def test_every_method_predicts_every_pattern_of_the_same_subjects(table):
    rows = read(table / "run" / "study" / "subjects.csv")
    arguments = {}
    for row in rows:
        answer = (row["subject"], row["missing"], row["modality"], row["slices"])
        arguments.setdefault(row["method"], set()).add(answer)
    assert tuple(dict.fromkeys(row["method"] for row in rows)) == ROWS
    for name in TRAINED + ("ridge", "ridge2"):
        assert arguments[name] == arguments["mm-csn"] and len(arguments[name]) == 2 * 4, name
    assert {row["missing"] for row in rows} == set(MODALITIES)


def test_the_tables_are_means_of_the_subjects(table):
    folder = table / "run" / "study"
    subjects = read(folder / "subjects.csv")
    for row in read(folder / "table.csv"):
        group = [
            float(entry[row["metric"]])
            for entry in subjects
            if all(entry[key] == row[key] for key in ("method", "missing", "modality"))
        ]
        assert float(row["mean"]) == pytest.approx(np.mean(group))
        assert int(row["subjects"]) == len(group)
    for row in read(folder / "crps.csv"):
        group = [
            float(entry["crps"])
            for entry in subjects
            if (entry["method"], entry["modality"]) == (row["method"], row["modality"])
            and entry["crps"]
        ]
        assert float(row["mean"]) == pytest.approx(np.mean(group))


def test_the_draws_crps_and_the_means_are_those_of_calibration(table):
    facts = json.loads((table / "run" / "evaluation" / "metrics.json").read_text())
    found = facts["facts"]["calibration"]["summaries"]
    crps = {
        (row["method"], row["modality"]): float(row["mean"])
        for row in read(table / "run" / "study" / "crps.csv")
    }
    for row in found:
        assert crps["warm", row["modality"]] == pytest.approx(row["crps"])
        mean = row["mae_of_mean"]
        assert crps["mm-csn", row["modality"]] == pytest.approx(mean, rel=1e-5)
    structure = [row["structure"] for row in found]
    assert [row["structure"] for row in results(table / "run")["structure"]] == structure
    assert "Spread-skill ratio of block means" in report(table)
    tests = facts["facts"]["two_sample"]
    assert results(table / "run")["two_sample"] == tests and tests[0]["skipped"]
    assert "Draws told from truths" in report(table)


def test_every_other_method_is_compared_with_the_mean(table):
    rows = read(table / "run" / "study" / "significance.csv")
    others = {row["method"] for row in rows}
    assert others == {*METHODS, "ridge", "ridge2"}
    assert {row["reference"] for row in rows} == {"mm-csn"}
    subjects = read(table / "run" / "study" / "subjects.csv")
    psnr = {
        (row["method"], row["subject"], row["modality"]): float(row["psnr"]) for row in subjects
    }
    names = {row["subject"] for row in subjects}
    for row in rows:
        if row["metric"] == "psnr":
            key = row["modality"]
            gaps = [psnr["mm-csn", n, key] - psnr[row["method"], n, key] for n in names]
            assert float(row["difference"]) == pytest.approx(np.mean(gaps))


def test_costs_and_facts_are_those_of_the_run(table):
    found = results(table / "run")
    costs = {entry["name"]: entry["costs"] for entry in found["methods"]}
    for name in TRAINED:
        assert costs[name]["steps"] == 4 and costs[name]["images_seen"] == 16
        assert costs[name]["train_seconds"] > 0 < costs[name]["seconds_per_slice"]
    metadata = checkpoint.restore_metadata(table / "run")
    assert found["facts"]["data_sha256"] == metadata["data"]
    assert found["facts"]["split"] == {"train": 3, "validation": 0, "test": 2}
    assert "same number of images, 16, the" in found["facts"]["budget"]
    # regression has the mm-CSN's network of the mean, of which an answer needs the same
    ours, other = costs["mm-csn"], costs["regression"]
    assert ours["parameters"] == other["parameters"]
    assert ours["gflop"] == pytest.approx(other["gflop"], rel=0.01)
    notes = {entry["name"]: entry["note"] for entry in found["methods"]}
    assert "dapted" in notes["mm-gan"]
    assert "0.02 of its channels, its learning rates times 1, 2 missing" in notes["mm-gan"]
    assert "On 8 slices of the other rows' " in notes["algorithm1"]
    assert found["paper"] == []


@pytest.mark.slow
def test_the_other_published_methods_are_evaluated_too(own_table):
    """In the finished study's workdir, to which they add only their own parts."""
    names = METHODS + OTHERS
    changes = {
        "study__methods": names,
        "study__width_scale": (1.0, *[0.02] * 5),
        "study__lr_scale": (1.0,) * 6,
        "study__patterns_per_image": (1, 2, 2, 1, 1, 1),
    }
    config = write_config(own_table / "all.py", table_config(own_table / "subjects", **changes))
    run = own_table / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("parts/**/*.npz")}
    assert run_main("--config", config, "--workdir", run) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    notes = {method["name"]: method["note"] for method in results(run)["methods"]}
    assert "econstructed" in notes["ucdgan"] and "econstructed" in notes["cocagan"]
    assert "dapted" in notes["hi-net"] and "dapted" in notes["mm-syn"]
    rows = read(run / "study" / "subjects.csv")
    assert tuple(dict.fromkeys(row["method"] for row in rows)) == (*ROWS, *OTHERS)


def test_the_gallery_shows_what_was_scored(table):
    found = results(table / "run")
    for row in found["subjects"]:
        path = table / "run" / "study" / "gallery" / f"{row['subject']}.npz"
        if row["method"] not in ("mm-gan", "mm-csn"):
            continue
        with np.load(path) as shown:
            channel = MODALITIES.index(row["modality"])
            both = [shown[name][channel] for name in ("truth", row["method"])]
            assert len(shown["z"]) == 3
        error = np.abs(both[0].astype(float) - both[1]).mean()
        # All slices are shown; the frame is 16 x 20 of which the grid is 16 x 16.
        assert row["mae"] * 20 / 16 == pytest.approx(error, rel=0.1)


def test_a_method_predicts_each_slice_by_itself(table):
    """Whatever its batch-mates are, and however many: seen bits, and the missing."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (11, 16, 16, 4)).astype(np.float32)
    missing = np.eye(4, dtype=bool)[np.arange(11) % 4]
    missing[5] |= missing[6]
    options = build.build_evaluation_options(table_config(table))
    for name in METHODS:
        method = load_method(folder_of(table / "run", name), options)
        answer = method.predict(images, missing).mean
        seen = np.broadcast_to(~missing[:, None, None], images.shape)
        np.testing.assert_array_equal(answer[seen], images[seen])
        some = method.predict(images[3:8], missing[3:8]).mean
        np.testing.assert_allclose(some, answer[3:8], atol=1e-5)
        hidden = np.where(seen, images, 9)
        again = method.predict(hidden.astype(np.float32), missing).mean
        np.testing.assert_array_equal(again, answer)


def test_the_same_command_does_nothing_twice(own_table, capsys):
    before = files_under(own_table / "run")
    code = run_main("--config", own_table / "table.py", "--workdir", own_table / "run")
    assert code == 0
    after = files_under(own_table / "run")
    changed = {name for name in after if before.get(name) != after[name]}
    assert not {name for name in changed if name.endswith((".csv", ".npz", ".png"))}
    assert "step " not in capsys.readouterr().out


@pytest.mark.slow
def test_each_test_subject_is_read_once_and_a_validation_subject_for_each_rho(
    own_table, monkeypatch
):
    """Of a study whose first test subject is a validation subject now."""
    reads, prepare = collections.Counter(), evaluated_subject.prepare_subject

    def counted(subject, *rest):
        reads[subject.name] += 1
        return prepare(subject, *rest)

    run = own_table / "run"
    split = json.loads((run / "split.json").read_text())
    split["validation"] = [split["test"].pop(0)]
    (run / "split.json").write_text(json.dumps(split))
    for folder in (*run.rglob("parts"), *run.rglob("costs")):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run / "study")
    monkeypatch.setattr(evaluated_subject, "prepare_subject", counted)
    assert run_main("--workdir", run, "--mode", "evaluate") == 0
    tried = json.loads((run / "calibration.json").read_text())["coherence"]["draws"]
    assert reads == dict.fromkeys(split["test"], 1) | {split["validation"][0]: len(tried)}
    assert any((run / "study" / "segmentation").glob("*.nii.gz"))


@pytest.mark.slow
def test_a_study_in_parts_is_the_study(table, own_table, tmp_path):
    """Two methods from another workdir, where they were stopped half-way; everything
    that was made of answers is made again."""
    run, other = own_table / "run", tmp_path / "other"
    for name in ("study", "evaluation"):
        shutil.rmtree(run / name)
    for name in ("mm-gan", "segmenter"):
        arguments = ("--config", table / "table.py", "--methods", name)
        assert run_main(*arguments, "--workdir", other, "--mode", "train") == 0
        shutil.rmtree(folder_of(other, name) / "checkpoints" / "4")
        assert checkpoint.latest_step(folder_of(other, name)) == 2
        assert run_main(*arguments, "--workdir", other, "--mode", "train") == 0
        shutil.rmtree(folder_of(run, name))
        shutil.copytree(folder_of(other, name), folder_of(run, name))
    assert run_main("--config", table / "table.py", "--workdir", run) == 0
    assert tables(run) == tables(table / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm-gan", "segmenter"])
def test_what_was_trained_on_other_slices_is_refused(own_table, capsys, name):
    files = folder_of(own_table / "run", name)
    others = shutil.copytree(own_table / "subjects", own_table / "others")
    split = json.loads((own_table / "run" / "split.json").read_text())
    scan = path_of(others, split["train"][0], "t1c")
    scan.unlink()
    write_new(scan, image("P9", "t1c"), AFFINE)
    config = write_config(own_table / "other.py", table_config(others))
    elsewhere = own_table / "elsewhere"
    arguments = ("--methods", name, "--workdir", elsewhere, "--mode", "train")
    assert run_main("--config", config, *arguments) == 0
    shutil.rmtree(files)
    shutil.copytree(folder_of(elsewhere, name), files)
    code = run_main("--workdir", own_table / "run", "--mode", "evaluate")
    assert code == 2
    assert "was trained on other slices than the mm-CSN" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_of_another_task_is_refused(own_table, capsys):
    """As where it was trained on another machine, by another config."""
    other = table_config(own_table / "subjects", missingness__size_probabilities="0.2,0.2,0.6")
    config = write_config(own_table / "other.py", other)
    elsewhere = own_table / "elsewhere"
    arguments = ("--methods", "regression", "--workdir", elsewhere, "--mode", "train")
    assert run_main("--config", config, *arguments) == 0
    folder = folder_of(own_table / "run", "regression")
    shutil.rmtree(folder)
    shutil.copytree(folder_of(elsewhere, "regression"), folder)
    code = run_main("--workdir", own_table / "run", "--mode", "evaluate")
    found = capsys.readouterr().err
    assert code == 2 and "regression was trained with another task" in found
    assert "config.missingness.size_probabilities is '0.2,0.2,0.6'" in found


@pytest.mark.slow
def test_the_report_has_the_config_that_was_trained(own_table):
    arguments = table_config(
        own_table / "subjects", loss__uniform_fraction=0.9, study__gallery_slices=2
    )
    config = write_config(own_table / "other.py", arguments)
    run = own_table / "run"
    assert run_main("--config", config, "--workdir", run, "--mode", "evaluate") == 0
    found = results(run)["facts"]["config"]
    trained = checkpoint.restore_metadata(run)["config"]
    assert found["loss"] == trained["loss"] and trained["loss"]["uniform_fraction"] != 0.9
    assert found["study"]["gallery_slices"] == 2 != trained["study"]["gallery_slices"]


@pytest.mark.slow
def test_a_task_does_not_change_on_the_way(own_table, capsys):
    config = table_config(own_table / "subjects", train__batch=2, train__steps=6)
    file = write_config(own_table / "other.py", config)
    code = run_main("--config", file, "--workdir", own_table / "run")
    found = capsys.readouterr().err
    where = f"{own_table / 'run'} was trained with another task: its config.train.batch"
    assert code == 2 and where in found


@pytest.mark.slow
def test_one_that_diverges_leaves_the_others_alone(own_table, monkeypatch, capsys):
    run, train_method = own_table / "run", train_methods.train_method

    def train(config, workdir, *, method="mm-csn", **rest):
        if method == "regression":
            raise FloatingPointError("not finite at step 3")
        train_method(config, workdir, method=method, **rest)

    monkeypatch.setattr(train_methods, "train_method", train)
    for name in METHODS:
        shutil.rmtree(folder_of(run, name))
    command = ("--config", own_table / "table.py", "--workdir", run)
    assert run_main(*command) == 1
    assert "training: regression is left as it is: not finite" in capsys.readouterr().out
    names = [entry["name"] for entry in results(run)["methods"]]
    assert "mm-gan" in names and "regression" not in names
    assert run_main(*command, "--mode", "train", "--methods", "regression") == 2
    assert "not finite at step 3" in capsys.readouterr().err


def test_a_part_that_was_copied_half_is_made_again(own_table):
    part = min(folder_of(own_table / "run", "mm-gan").glob("parts/*.npz"))
    part.write_bytes(part.read_bytes()[:-100])
    before = tables(own_table / "run")
    assert run_main("--workdir", own_table / "run", "--mode", "evaluate") == 0
    assert tables(own_table / "run") == before
    with np.load(part) as whole:
        assert whole["key"]


def test_every_number_of_the_table_has_its_rulers_hash(table):
    rows = read(table / "run" / "study" / "table.csv")
    ruler = (TABLE1.name, profile_hash(TABLE1))
    assert {(row["profile"], row["profile_hash"]) for row in rows} == {ruler}
    said = (table / "run" / "study" / "report.md").read_text()
    assert f"{ruler[0]} ({ruler[1]})" in said.replace("\\", "").replace("`", "")


def test_a_method_that_is_not_trained_yet_is_left_out_with_a_message(own_table, capsys):
    shutil.rmtree(folder_of(own_table / "run", "mm-gan"))
    assert run_main("--workdir", own_table / "run", "--mode", "evaluate") == 0
    assert "study: mm-gan is not in" in capsys.readouterr().out
    assert "mm-gan" not in {m["name"] for m in results(own_table / "run")["methods"]}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"study__methods": ("mm-gan", "mm-gn")}, "has 'mm-gn'; wanted some of"),
        ({"study__methods": ("mm-gan", "mm-gan")}, "name each once"),
        ({"study__width_scale": (1.0,)}, "config.study.width_scale has 1 numbers"),
        ({"study__lr_scale": ()}, "config.study.lr_scale has 0 numbers"),
        ({"study__patterns_per_image": (1, 2, 1)}, "config.study.patterns_per_image has 3 numbers"),
        ({"data__labels": False}, "set config.data.labels to True"),
        ({"study__budget": "euros"}, "config.study.budget is 'euros'"),
        ({"study__cocagan_input": "pd"}, "config.study.cocagan_input is 'pd'"),
        ({"missingness__patterns_per_image": 2}, "has 1 for regression, which is trained as"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_sentence(tmp_path, capsys, changes, sentence):
    if "study__methods" in changes:
        changes |= {f"study__{key}": (1.0, 1.0) for key in ("width_scale", "lr_scale")}
        changes |= {"study__patterns_per_image": (1, 1)}
    config = write_config(tmp_path / "c.py", table_config(tmp_path, **changes))
    code = run_main("--config", config, "--workdir", tmp_path / "run")
    found = capsys.readouterr().err
    assert code == 2 and sentence in found and found.count("\n") == 1


def test_a_name_that_is_no_method_is_one_sentence(table, tmp_path, capsys):
    arguments = ("--config", table / "table.py", "--workdir", tmp_path, "--methods", "gan")
    assert run_main(*arguments) == 2
    assert "--methods has 'gan'; wanted some of mm-csn" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_goes_on_with_the_width_it_was_begun_with(own_table, capsys):
    other = table_config(own_table / "subjects", study__width_scale=(1.0, 0.5))
    config = write_config(own_table / "wide.py", other)
    arguments = ("--config", config, "--workdir", own_table / "run", "--mode", "train")
    assert run_main(*arguments, "--methods", "regression") == 0
    assert run_main(*arguments, "--methods", "mm-gan") == 2
    assert "config.study.width_scale: 0.02, and yours is 0.5" in capsys.readouterr().err


def test_regression_is_the_mm_csn_where_every_row_is_a_token(table):
    metadata = checkpoint.restore_metadata(folder_of(table / "run", "regression"))
    group = checkpoint.restore_metadata(table / "run")["config"]
    config = build_methods.regression_config(build.config_from_json(group))
    assert metadata["config"] == build.config_to_json(config)
    assert metadata["config"]["loss"]["mean_fraction"] == 1.0


@pytest.mark.slow
def test_equal_seconds_are_the_mm_csns(own_table, capsys):
    """Steps of a method are counted once, of what a step takes here, and kept."""
    other = table_config(own_table / "subjects", study__budget="seconds")
    config = write_config(own_table / "seconds.py", other)
    run = own_table / "run"
    arguments = ("--config", config, "--mode", "train", "--methods", "mm-gan")
    assert run_main(*arguments, "--workdir", own_table / "empty") == 2
    assert "train it there first" in capsys.readouterr().err
    shutil.rmtree(folder_of(run, "mm-gan"))
    log = run / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [json.dumps(record | {"seconds": 0.05}) for record in records]
    log.write_text("\n".join(lines) + "\n")
    assert run_main(*arguments, "--workdir", run) == 0
    found = json.loads((folder_of(run, "mm-gan") / "allowance.json").read_text())
    assert found["seconds"] == pytest.approx(0.05 * len(records))
    assert checkpoint.latest_step(folder_of(run, "mm-gan")) == found["steps"]
    saved = (folder_of(run, "mm-gan") / "allowance.json").read_bytes()
    assert run_main(*arguments, "--workdir", run) == 0
    assert (folder_of(run, "mm-gan") / "allowance.json").read_bytes() == saved
