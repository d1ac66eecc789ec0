"""The doctor's command: a table or JSON, and 1 where something would stop a run."""

import json
import shutil

import pytest
from tiny_run import run_main, tiny_config, write_config

from ummcsgm.data.phantom.make import write_phantom


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Two phantom subjects, without what a study writes beside them."""
    folder = tmp_path_factory.mktemp("doctor") / "subjects"
    write_phantom(folder, subjects=2, shape=(32, 32, 20), seed=3, processes=1)
    return folder


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Starting others takes seconds; test_examine has a test with two."""
    monkeypatch.setattr("ummcsgm.cli.doctor.os.cpu_count", lambda: 1)


def doctor(capsys, folder, *flags):
    code = run_main("--mode", "doctor", "--input", folder, *flags)
    said = capsys.readouterr()
    return code, said.out, said.err


def first_file(folder, modality):
    return sorted(folder.rglob(f"*_{modality}.nii.gz"))[0]


@pytest.fixture
def ill(healthy, tmp_path):
    """A copy in which one file is cut short and another is absent."""
    folder = shutil.copytree(healthy, tmp_path / "ill")
    path = first_file(folder, "t2")
    path.write_bytes(path.read_bytes()[:-300])
    first_file(folder, "flair").unlink()
    return folder


def test_of_healthy_scans_one_line_says_that_there_is_nothing(healthy, capsys):
    code, out, err = doctor(capsys, healthy)
    assert (code, err) == (0, "")
    *progress, last = out.splitlines()
    assert all(line.startswith("examining: ") for line in progress)
    assert last.startswith("2 subjects in the layout brats with flair, t1, t1c, t2: 0 ")
    assert last.endswith("0 are warnings, 0 notes.")


def test_what_would_stop_a_run_is_in_the_table_and_in_the_exit_code(ill, capsys):
    code, out, err = doctor(capsys, ill)
    assert (code, err) == (1, "")
    (row,) = (line for line in out.splitlines() if line.startswith("stop | "))
    assert str(first_file(ill, "t2")) in row and "cut short" in row
    assert [line for line in out.splitlines() if line.startswith("note | ")]
    assert "1 findings would stop or poison a run" in out


def test_json_has_the_same_findings_and_nothing_else(ill, capsys):
    code, out, err = doctor(capsys, ill, "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["layout"] == "brats" and report["subjects"] == 2
    assert report["modalities"] == ["flair", "t1", "t1c", "t2"]
    stops = [finding for finding in report["findings"] if finding["severity"] == "stop"]
    assert [finding["path"] for finding in stops] == [str(first_file(ill, "t2"))]
    assert {"severity", "subject", "modality", "path", "code", "sentence"} == set(stops[0])


def test_the_config_says_what_should_be_there(healthy, tmp_path, capsys):
    """Without one, contrasts that no subject has are not missed."""
    folder = shutil.copytree(healthy, tmp_path / "three")
    for path in folder.rglob("*_t1ce.nii.gz"):
        path.unlink()
    assert doctor(capsys, folder)[0] == 0
    file = write_config(tmp_path / "c.py", tiny_config(folder, data__grid=(32, 32)))
    code, out, _ = doctor(capsys, folder, "--config", file)
    assert code == 1 and "t1c" in out


def findings_of(capsys, folder, **changes):
    """The exit code with a config, and (severity, code) of each finding."""
    config = tiny_config(folder, **changes)
    file = write_config(folder.parent / "config.py", config)
    code, out, _ = doctor(capsys, folder, "--config", file, "--json")
    findings = json.loads(out)["findings"]
    return code, {(finding["severity"], finding["code"]) for finding in findings}


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({"min_brain_fraction": 0.9}, {("stop", "unfit")}),
        ({"mask": "brain"}, {("stop", "missing")}),
        pytest.param({"grid": (16, 16)}, {("stop", "unfit")}, marks=pytest.mark.slow),
        pytest.param({"spacing": 20.0}, {("stop", "unfit")}, marks=pytest.mark.slow),
        pytest.param({}, set(), marks=pytest.mark.slow),
    ],
)
def test_what_the_config_asks_of_every_subject_is_looked_for(healthy, capsys, changes, stops):
    fields = {"grid": (32, 32), "min_brain_fraction": 0.2} | changes
    fields = {f"data__{key}": value for key, value in fields.items()}
    assert findings_of(capsys, healthy, **fields) == (int(bool(stops)), stops)


@pytest.mark.slow
def test_the_quickstart_passes_its_phantom(tmp_path, capsys):
    folder = tmp_path / "subjects"
    write_phantom(folder, subjects=1, shape=(64, 64, 40), seed=3, processes=1)
    fields = {"data__grid": (56, 48), "data__min_brain_fraction": 0.3}
    assert findings_of(capsys, folder, **fields) == (0, set())


def test_a_file_of_no_subject_is_reported_and_stops_nothing(healthy, tmp_path, capsys):
    folder = shutil.copytree(healthy, tmp_path / "odd")
    path = first_file(folder, "t2")
    odd = path.rename(path.with_name(path.name.replace("_t2", "_T2_new")))
    code, out, _ = doctor(capsys, folder)
    (row,) = (line for line in out.splitlines() if line.startswith("warn | "))
    assert code == 0 and str(odd) in row and "no scan of the layout brats" in row


def test_a_subject_that_is_there_twice_stops_and_the_others_are_examined(healthy, tmp_path, capsys):
    folder = shutil.copytree(healthy, tmp_path / "twice")
    path = first_file(folder, "t2")
    shutil.copy(path, path.with_suffix(""))
    code, out, _ = doctor(capsys, folder, "--json")
    report = json.loads(out)
    (finding,) = report["findings"]
    assert (code, report["subjects"]) == (1, 1)
    assert (finding["severity"], finding["code"]) == ("stop", "ambiguous")
    assert finding["subject"] == path.parent.name and str(path) in finding["sentence"]


@pytest.mark.parametrize(
    ("flags", "word"), [((), "--input is missing"), (("--input", "/no/such"), "no such folder")]
)
def test_without_a_folder_it_says_so(capsys, flags, word):
    assert run_main("--mode", "doctor", *flags) == 2
    assert word in capsys.readouterr().err


def test_a_folder_of_something_else_is_no_clean_bill(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    code, _, err = doctor(capsys, tmp_path)
    assert code == 2 and "no subject found" in err and "notes.txt" in err
