"""Wrong input gets one sentence with the name the user typed, code 2, nothing written.

Each case is one line of a table: what is wrong, and what the sentence must hold.
"""

import json
import shutil

import numpy as np
import pytest
from tiny_run import (
    AFFINE,
    MODALITIES,
    NAMES,
    SHAPE,
    files_under,
    image,
    path_of,
    run_main,
    start_main,
    tiny_config,
    write_config,
    write_subjects,
)

from ummcsgm.data.nifti import write_new

pytest_plugins = ["tiny_study"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """subjects/ and tiny.py, the config of a run that is not started."""
    root = tmp_path_factory.mktemp("untrained")
    write_config(root / "tiny.py", tiny_config(write_subjects(root / "subjects")))
    return root


def sentence(capsys, code, wanted=2):
    """The one line of stderr of a command that was refused."""
    said = capsys.readouterr().err
    assert code == wanted, (code, said)
    assert said.startswith("ummcsgm: ") and said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def assert_says(said, words, **places):
    for word in words:
        assert word.format(**places) in said, said


TRAINING = {  # flags after --config FILE --workdir DIR; {0} is a folder of subjects
    "no such section": ("--config.trian.steps=3", ["config.trian.steps", "not exist"]),
    "section": ("--config.train=3", ["config.train is a section: set its keys"]),
    "text for int": ("--config.train.steps=many", ["config.train.steps", "many"]),
    "float for int": ("--config.train.steps=1.5", ["config.train.steps", "1.5"]),
    "text for float": ("--config.sde.beta_max=big", ["config.sde.beta_max", "big"]),
    "text for bool": ("--config.data.flip=perhaps", ["config.data.flip", "perhaps"]),
    "int for tuple": ("--config.data.grid=56", ["config.data.grid", "56"]),
    "texts in tuple": (
        "--config.data.grid=('a','b')",
        ["config.data.grid[0] is 'a'", "whole number"],
    ),
    "range": (
        "--config.train.keep_checkpoints=0",
        ["config.train.keep_checkpoints is 0", "at least 1"],
    ),
    "batch": ("--config.train.batch=5", ["config.train.batch is 5", "multiple", "1 x 2"]),
    "accumulate": (
        "--config.train.accumulate=4",
        ["config.train.batch is 4", "config.train.accumulate", "4 x 2"],
    ),
    "warmup": (
        "--config.train.warmup=150",
        ["config.train.warmup is 150", "config.train.steps, 150"],
    ),
    "grid": ("--config.data.grid=(16,18)", ["config.data.grid is (16, 18)", "of 4"]),
    "levels": ("--config.network.blocks=(1,1)", ["config.network.blocks has 2", "1"]),
    "remat": ("--config.train.remat=(True,True)", ["config.train.remat has 2", "1"]),
    "widths": ("--config.network.widths=(48,)", ["config.network.widths is (48,)"]),
    "dtype": ("--config.network.dtype=int8", ["config.network.dtype", "bfloat16"]),
    "conditioning": ("--config.network.conditioning=no", ["config.network.cond"]),
    "sde": ("--config.sde.name=vpp", ["name is 'vpp' (did you mean vp?)", "sub_vp, ve"]),
    "betas": ("--config.sde.beta_max=0.01", ["config.sde.beta_max is 0.01"]),
    "weighting": ("--config.loss.weighting=x", ["config.loss.weighting", "min_snr"]),
    "schedule": ("--config.train.schedule=x", ["config.train.schedule", "cosine"]),
    "optimizer": ("--config.train.optimizer=muonn", ["did you mean muon?", "adam"]),
    "layout": ("--config.data.layout=brats1", ["config.data.layout", "auto, brats,"]),
    "pattern": ("--config.data.layout=flat", ["config.data.pattern", "{{subject}}"]),
    "sizes": (
        "--config.missingness.size_probabilities=1.0",
        ["config.missingness.size_probabilities", "1 to 4"],
    ),
    "sizes' words": (
        "--config.missingness.size_probabilities=even",
        ["size_probabilities is 'even'", "uniform"],
    ),
    "levels of ve": (
        "--config.sde.name=ve --config.sde.sigma_max=0.001",
        ["config.sde.sigma_max is 0.001", "above"],
    ),
    "modality": (
        "--config.data.modalities=('t1','x')",
        ["config.data.modalities has 'x'", "flair, t1, t1c, t2"],
    ),
    "modality twice": (
        "--config.data.modalities=('t1','t1')",
        ["config.data.modalities", "each once"],
    ),
    "no training subjects": (
        "--config.data.split=(0,1,1)",
        ["config.data.split is (0, 1, 1)", "above 0"],
    ),
    "no folder": ("--config.data.folder=/no/such", ["/no/such", "no such folder"]),
    "no data at all": (
        "--config.data.folder= --config.phantom.subjects=0",
        ["config.data.folder is empty", "--config.phantom.subjects"],
    ),
    "phantom's shape": (
        "--config.data.folder= --config.phantom.shape=(4,4,4)",
        ["(4, 4, 4)", "shape"],
    ),
    "a stray word": ("trian", ["'trian' is not a flag"]),
    "no such mode": ("--mode=trian", ["--mode is 'trian'", "prepare, train, evaluate"]),
}


@pytest.mark.parametrize("case", TRAINING)
def test_a_wrong_flag_is_named_and_nothing_is_written(untrained, tmp_path, capsys, case):
    flags, words = TRAINING[case]
    workdir = tmp_path / "run"
    arguments = ("--config", untrained / "tiny.py", "--workdir", workdir, "--mode", "train")
    said = sentence(capsys, run_main(*arguments, *flags.split()))
    assert_says(said, words)
    assert not workdir.exists()


FILES = {  # what a config file holds; what the sentence must
    "syntax error": ("def get_config(:\n    pass\n", ["{file}", "line 1"]),
    "unknown name": ("def get_config():\n    return x\n", ["{file}", "'x'", "line 2"]),
    "missing import": ("import no_such_module\n", ["{file}", "no_such_module"]),
    "own error": ("def get_config():\n    raise ValueError('odd')\n", ["{file}", "odd"]),
    "division": ("def get_config():\n    return 1 / 0\n", ["{file}", "zero"]),
    "no get_config": ("x = 1\n", ["{file}", "get_config"]),
    "nothing returned": ("def get_config():\n    pass\n", ["{file}", "ConfigDict"]),
    "a dict": ("def get_config():\n    return {'seed': 1}\n", ["{file}", "ConfigDict"]),
    "empty file": ("", ["{file}", "get_config"]),
}


@pytest.mark.parametrize("flags", ["", "--config.train.steps=3"])
@pytest.mark.parametrize("case", FILES)
def test_a_config_file_that_cannot_be_used_is_named(tmp_path, capsys, case, flags):
    text, words = FILES[case]
    file, workdir = tmp_path / "broken.py", tmp_path / "run"
    file.write_text(text)
    arguments = ("--config", file, "--workdir", workdir, *flags.split())
    said = sentence(capsys, run_main(*arguments))
    assert_says(said, words, file=file)
    assert not workdir.exists()


@pytest.mark.parametrize("mode", ["study", "train"])
@pytest.mark.parametrize("flags", ["", "--config.train.steps=3"])
def test_a_config_file_that_is_not_there_is_named(tmp_path, capsys, mode, flags):
    file, workdir = tmp_path / "nowhere.py", tmp_path / "run"
    arguments = ("--config", file, "--workdir", workdir, "--mode", mode)
    said = sentence(capsys, run_main(*arguments, *flags.split()))
    assert "--config" in said and str(file) in said and "No such file" in said
    assert not workdir.exists()


KEYS = {  # in the file, not on the command line
    "unknown": ("train.stepz", 3, ["config.train.stepz does not exist"]),
    "type": ("train.steps", "many", ["config.train.steps is 'many'"]),
    "tuple": ("data.grid", 56, ["config.data.grid is 56", "a tuple"]),
    "none": ("seed", None, ["config.seed is None", "whole number"]),
    "bool": ("train.batch", True, ["config.train.batch is True"]),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_wrong_key_in_a_config_file_is_named(untrained, tmp_path, capsys, case):
    key, value, words = KEYS[case]
    config = tiny_config(untrained / "subjects")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({key: value})
        *section, name = key.split(".")
        (config[section[0]] if section else config)[name] = value
    file, workdir = write_config(tmp_path / "c.py", config), tmp_path / "run"
    said = sentence(capsys, run_main("--config", file, "--workdir", workdir))
    assert_says(said, words)
    assert not workdir.exists()


def test_a_config_without_a_section_names_its_first_key(untrained, tmp_path, capsys):
    config = tiny_config(untrained / "subjects")
    del config["loss"]
    file, workdir = write_config(tmp_path / "c.py", config), tmp_path / "run"
    said = sentence(capsys, run_main("--config", file, "--workdir", workdir))
    assert "config.loss.weighting is missing" in said and not workdir.exists()


NO_RUN = {
    "no workdir": ("--mode train", ["--workdir is missing"]),
    "empty workdir": ("--workdir= --mode evaluate", ["--workdir is missing"]),
    "no config": ("--workdir {0}/run", ["--config is missing", "{0}/run"]),
    "nothing trained to evaluate": (
        "--workdir {0}/run --mode evaluate",
        ["{0}/run holds no checkpoint", "--mode train"],
    ),
    "nothing trained to complete with": (
        "--workdir {0}/run --mode complete --input {0} --output {0}/out",
        ["{0}/run holds no checkpoint", "--mode train"],
    ),
    "not an int": ("--workdir {0}/run --mode complete --draws few", ["--draws", "few"]),
}


@pytest.mark.parametrize("case", NO_RUN)
def test_without_a_run_the_sentence_says_what_is_missing(tmp_path, capsys, case):
    flags, words = NO_RUN[case]
    code = run_main(*(word.format(tmp_path) for word in flags.split()))
    said = sentence(capsys, code)
    assert_says(said, [word.format(tmp_path) for word in words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_in_the_place_of_a_folder_is_named(study, tmp_path, capsys):
    place = tmp_path / "taken"
    place.write_text("mine")
    code = run_main("--config", study / "tiny.py", "--workdir", place)
    assert str(place) in sentence(capsys, code)
    order = ("--input", study / "subjects", "--output", place, "--missing", "t2")
    code = run_main("--workdir", study / "run", "--mode", "complete", *order)
    assert capsys.readouterr().err.count(f"{place}") == 5 and code == 1
    assert place.read_text() == "mine"


def volume(change=lambda values: values, dtype=np.int16):
    """P2's t1c, changed."""
    return np.asarray(change(image("P2", "t1c").astype(float)), dtype)


def put(path, content, affine=AFFINE):
    write_new(path, content, affine)


def shifted(affine):
    moved = affine.copy()
    moved[0, 3] += 1
    return moved


def with_nan(values):
    values[5, 5, 3] = np.nan
    return values


DAMAGES = {  # what happens to one file of one subject
    "cut short": (
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        ["{path}", "damaged or cut short"],
    ),
    "not NIfTI": (lambda path: path.write_text("x" * 999), ["{path}", "not a NIfTI"]),
    "empty file": (lambda path: path.write_bytes(b""), ["{path}", "not a NIfTI"]),
    "NaN": (
        lambda path: put(path, volume(with_nan, np.float32)),
        ["{path}", "1 of 1920 voxels are NaN"],
    ),
    "empty volume": (lambda path: put(path, volume(lambda v: 0 * v)), ["{path}", "0"]),
    "constant": (lambda path: put(path, volume(lambda v: 0 * v + 7)), ["{path}", "7 everywhere"]),
    "all negative": (lambda path: put(path, volume(lambda v: -v)), ["{path}", "negative"]),
    "another shape": (
        lambda path: put(path, volume()[:, :, 1:]),
        ["{path}", "(16, 20, 5)", "(16, 20, 6)", "one grid"],
    ),
    "another affine": (
        lambda path: put(path, volume(), shifted(AFFINE)),
        ["{path}", "affine", "one grid"],
    ),
    "four dimensions": (
        lambda path: put(path, np.stack([volume()] * 2, -1)),
        ["{path}", "(16, 20, 6, 2)", "3-D"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_training_file_is_named(tmp_path, capsys, case):
    damage, words = DAMAGES[case]
    folder, workdir = write_subjects(tmp_path / "subjects"), tmp_path / "run"
    path = path_of(folder, "P2", "t1c")
    damage(path)
    # every subject trains, so that each file is read
    file = write_config(tmp_path / "c.py", tiny_config(folder, data__split=(1, 0, 0)))
    said = sentence(capsys, run_main("--config", file, "--workdir", workdir))
    assert_says(said, words, path=path)
    assert not (workdir / "checkpoints").exists()
    assert not (workdir / "manifest.json").exists()
    assert not [name for name in files_under(workdir) if "/." in f"/{name}"]


@pytest.mark.slow
def test_after_the_damage_is_mended_the_same_command_runs_on(tmp_path, capsys):
    folder, workdir = write_subjects(tmp_path / "subjects"), tmp_path / "run"
    path = path_of(folder, "P2", "t1c")
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    config = tiny_config(folder, data__split=(1, 0, 0), train__steps=2)
    file = write_config(tmp_path / "c.py", config)
    command = ("--config", file, "--workdir", workdir, "--mode", "train")
    assert run_main(*command) == 2
    path.write_bytes(whole)
    assert run_main(*command) == 0


FOLDERS = {
    "no subject": (lambda folder: shutil.rmtree(folder / "HGG"), ["no subject found"]),
    "only others": (
        lambda folder: (folder / "HGG").rename(folder / "XGG"),
        ["no subject found", "the layouts brats, brats23", "XGG/P1/P1_"],
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_in_which_no_subject_matches_is_named(tmp_path, capsys, case):
    change, words = FOLDERS[case]
    folder, workdir = write_subjects(tmp_path / "subjects", ("P1",)), tmp_path / "run"
    change(folder)
    file = write_config(tmp_path / "c.py", tiny_config(folder))
    said = sentence(capsys, run_main("--config", file, "--workdir", workdir))
    assert_says(said, [str(folder), *words])
    assert not workdir.exists()


def test_a_brain_larger_than_the_grid_is_named(untrained, tmp_path, capsys):
    file = write_config(
        tmp_path / "c.py",
        tiny_config(untrained / "subjects", data__grid=(12, 16), evaluate__block_sizes=(1, 12)),
    )
    code = run_main("--config", file, "--workdir", tmp_path / "run")
    said = sentence(capsys, code)
    assert_says(said, ["subject P", "15 x 13", "config.data.grid", "12 x 16"])


@pytest.mark.slow
def test_a_split_without_test_subjects_is_named_after_training(own_study, capsys):
    path = own_study / "run" / "split.json"
    split = json.loads(path.read_text())
    moved = {"train": split["train"], "validation": split["test"], "test": []}
    path.write_text(json.dumps(moved))
    code = run_main("--workdir", own_study / "run", "--mode", "evaluate")
    assert_says(sentence(capsys, code), [str(path), "no test subject"])


def test_a_split_without_training_subjects_is_named(untrained, tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    split = {"train": [], "validation": [], "test": list(NAMES)}
    (workdir / "split.json").write_text(json.dumps(split))
    code = run_main("--config", untrained / "tiny.py", "--workdir", workdir)
    assert_says(sentence(capsys, code), [str(workdir / "split.json"), "train"])


OTHERS = {
    "widths": ("--config.network.widths=(64,)", "network.widths", "(64,)", "(32,)"),
    "sde": ("--config.sde.beta_max=19.0", "sde.beta_max", "19.0", "20.0"),
    "grid": ("--config.data.grid=(20,16)", "data.grid", "(20, 16)", "(16, 16)"),
    "std": ("--config.data.image_std=0.5", "data.image_std", "0.5", "0.35"),
    "modalities": (
        "--config.data.modalities=('t1','flair','t1c','t2')",
        "data.modalities",
        "t1",
        "flair",
    ),
    "preconditioning": (
        "--config.network.preconditioning=edm --config.loss.weighting=edm "
        "--config.loss.levels_per_question=1 --config.loss.sigma_max_factor=0.0",
        "network.preconditioning",
        "edm",
        "mean",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["study", "evaluate", "complete"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_workdir_of_another_network_is_named_and_left_alone(study, tmp_path, capsys, case, mode):
    flag, key, _, _ = OTHERS[case]
    before = files_under(study / "run")
    arguments = ["--config", study / "tiny.py", "--workdir", study / "run"]
    arguments += [*flag.split(), "--mode", mode]
    if mode == "complete":
        arguments += ["--input", tmp_path, "--output", tmp_path / "out"]
    said = sentence(capsys, run_main(*arguments))
    assert_says(said, [str(study / "run"), "another network", f"config.{key}"])
    assert files_under(study / "run") == before


@pytest.mark.slow
def test_a_workdir_of_other_subjects_is_named(study, tmp_path, capsys):
    folder = write_subjects(tmp_path / "subjects", (*NAMES[:4], "P7"))
    before = files_under(study / "run")
    code = run_main(
        "--config", write_config(tmp_path / "c.py", tiny_config(folder)), "--workdir", study / "run"
    )
    assert_says(sentence(capsys, code), [str(study / "run" / "split.json"), "P5"])
    assert files_under(study / "run") == before


@pytest.mark.slow
def test_a_workdir_whose_training_files_changed_is_named(own_study, capsys):
    split = json.loads((own_study / "run" / "split.json").read_text())
    path = path_of(own_study / "subjects", split["train"][0], "t1c")
    path.unlink()
    write_new(path, image("P9", "t1c"), AFFINE)
    config = tiny_config(own_study / "subjects", train__steps=9)
    file = write_config(own_study / "longer.py", config)
    run = own_study / "run"
    code = run_main("--config", file, "--workdir", run, "--mode", "train")
    words = [str(run), "other slices", "new --workdir"]
    assert_says(sentence(capsys, code), words)


COMPLETING = {  # after --workdir RUN --mode complete; {0} the study, {1} a fresh folder
    "no input": ("--output {1}/out", ["--input is missing"]),
    "no output": ("--input {0}/subjects", ["--output is missing"]),
    "no such input": (
        "--input {1}/none --output {1}/out --missing t2",
        ["{1}/none", "no such folder"],
    ),
    "no subject": ("--input {0}/run --output {1}/out", ["{0}/run", "no subject found"]),
    "nothing missing": (
        "--input {0}/subjects --output {1}/out",
        ["{0}/subjects", "--missing t1c,flair"],
    ),
    "unknown": (
        "--input {0}/subjects --output {1}/out --missing t1c,pd",
        ["--missing names 'pd'", "flair, t1, t1c, t2"],
    ),
    "every": (
        "--input {0}/subjects --output {1}/out --missing t2,t1c,t1,flair",
        ["--missing names every modality"],
    ),
    "draws": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 0",
        ["--draws is 0", "at least 1"],
    ),
    "draws of the mean": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 2 --sampler mean",
        ["--draws is 2", "--sampler warm"],
    ),
    "quantiles of one": (
        "--input {0}/subjects --output {1}/out --missing t2 --quantiles 0.1",
        ["--quantiles wants at least 2 draws", "--draws 8"],
    ),
    "quantile beyond": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 4 --quantiles 1.0",
        ["--quantiles has 1", "above 0 and below 1"],
    ),
    "budget and draws": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 4 --budget-seconds 9",
        ["--budget-seconds chooses", "leave out"],
    ),
    "negative budget": (
        "--input {0}/subjects --output {1}/out --missing t2 --budget-seconds=-1",
        ["--budget-seconds is -1", "above 0"],
    ),
    "budget too small": (
        "--input {0}/subjects --output {1}/out --missing t2 --budget-seconds=1e-9",
        ["--budget-seconds is 1e-09", "wanted at least that"],
    ),
    "endless budget": (
        "--input {0}/subjects --output {1}/out --missing t2 --budget-seconds=inf",
        ["--budget-seconds is inf", "above 0"],
    ),
    "one level twice": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 4 --quantiles 0.5,0.5",
        ["--quantiles has one level twice"],
    ),
    "advice and quantiles": (
        "--input {0}/subjects --output {1}/out --missing t2 --advise --quantiles 0.5",
        ["--advise writes no draws", "leave out --quantiles"],
    ),
    "advice of one draw": (
        "--input {0}/subjects --output {1}/out --missing t2 --draws 1 --advise",
        ["--draws is 1", "--advise wants at least 2"],
    ),
    "sampler": (
        "--input {0}/subjects --output {1}/out --missing t2 --sampler huen",
        ["--sampler is 'huen' (did you mean heun?)", "mean, euler_maruyama"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPLETING)
def test_a_completion_that_cannot_be_made_writes_nothing(study, tmp_path, capsys, case):
    flags, words = COMPLETING[case]
    words = [word.format(study, tmp_path) for word in words]
    arguments = (word.format(study, tmp_path) for word in flags.split())
    workdir = ("--workdir", study / "run", "--mode", "complete")
    said = sentence(capsys, run_main(*workdir, *arguments))
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in DAMAGES if case != "all negative"])
def test_a_damaged_input_is_named_and_nothing_is_completed(study, tmp_path, capsys, case):
    damage, words = DAMAGES[case]
    folder = write_subjects(tmp_path / "subjects", ("P2",))
    path = path_of(folder, "P2", "t1c")
    damage(path)
    order = ("--input", folder, "--output", tmp_path / "out", "--missing", "flair")
    code = run_main("--workdir", study / "run", "--mode", "complete", *order)
    assert_says(sentence(capsys, code, wanted=1), words, path=path)
    assert files_under(tmp_path / "out") == {}


@pytest.mark.slow
def test_a_subject_with_nothing_left_to_complete_from_is_named(study, tmp_path, capsys):
    folder = write_subjects(tmp_path / "subjects", ("P1", "P2"))
    for modality in ("t1", "t1c", "t2"):
        path_of(folder, "P2", modality).unlink()
    order = ("--input", folder, "--output", tmp_path / "out", "--missing", "flair")
    code = run_main("--workdir", study / "run", "--mode", "complete", *order)
    words = ["subject P2", "nothing to go by", "trained on flair, t1, t1c, t2"]
    assert_says(sentence(capsys, code, wanted=1), words)
    written = [name for name in files_under(tmp_path / "out") if "nii" in name]
    assert written == [f"HGG/P1/P1_flair{end}.nii.gz" for end in ("", "_sd")]


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_2_and_one_line_on_stderr(study, tmp_path):
    order = ("--input", study / "subjects", "--output", tmp_path, "--missing", "pd")
    process = start_main("--workdir", study / "run", "--mode", "complete", *order)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert said.startswith("ummcsgm: --missing names 'pd'") and said.count("\n") == 1


def test_the_frame_of_these_tests_is_what_the_sentences_say():
    assert SHAPE == (16, 20, 6) and MODALITIES == ("flair", "t1", "t1c", "t2")
