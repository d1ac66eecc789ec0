"""Help that fits a screen and a half, and the nearest word for whatever is mistyped."""

import subprocess
import sys

import pytest
from absl.testing import flagsaver
from tiny_run import QUICKSTART, run_main

from ummcsgm.cli import flags


def error_of(capsys, *arguments):
    """The sentence with which a command is refused."""
    assert run_main(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err.strip()


@pytest.mark.parametrize("flag", flags.HELP_FLAGS)
def test_the_help_lists_every_mode_and_under_it_every_flag_of_it(capsys, flag):
    assert run_main("--mode", "train", flag) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    listed, mode = {name: [] for name in flags.MODES}, None
    for line in lines[8:]:
        word = line.split()[0]
        if line.startswith(" "):
            listed[mode].append(word.removeprefix("--").removeprefix("[no]"))
        else:
            mode = word
    for name in flags.MODES:
        assert listed[name] == [flag.name for flag in flags.FLAG_TABLE if name in flag.modes]
    assert {flag.name for flag in flags.FLAG_TABLE} == set().union(*listed.values())


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("--mode complet", "--mode is 'complet' (did you mean complete?); wanted one of study, "),
        ("--wrkdir x", "--wrkdir is not a flag (did you mean --workdir?)"),
        ("--draw=3", "--draw is not a flag (did you mean --draws?)"),
        ("--zzzz", "--zzzz is not a flag; ummcsgm --help lists all flags"),
        ("--config.seed=3", "--config.seed changes a key of a config: add --config FILE"),
        (
            f"--config {QUICKSTART} --config.train.stepz=3",
            "--config.train.stepz does not exist (did you mean --config.train.steps?)",
        ),
        (f"--config={QUICKSTART} --noconfig.data.flap", "(did you mean --config.data.flip?)"),
        ("--workdir x --mode train --draws 2", "--draws is a flag of complete; --mode train has"),
        ("--workdir x --mode evaluate --profile", "--profile is a flag of study, train"),
    ],
)
def test_what_is_mistyped_gets_the_nearest_word(capsys, arguments, suggestion):
    assert suggestion in error_of(capsys, *arguments.split())


@flagsaver.flagsaver
def test_a_wrong_key_is_found_by_its_path_and_not_by_the_words_of_an_error(capsys, tmp_path):
    """Once the first argument that held the word of the error was blamed."""
    said = error_of(
        capsys, "--config", QUICKSTART, "--workdir", "run.stepz", "--config.train.stepz=3"
    )
    assert said.startswith("ummcsgm: --config.train.stepz does not exist")


def test_a_value_that_looks_like_a_wrong_key_is_a_value(tmp_path):
    with flagsaver.flagsaver():
        arguments = ["ummcsgm", "--config", str(QUICKSTART), "--workdir", "a.stepz"]
        assert flags.parse(arguments) == []
        assert flags.FLAGS.workdir == "a.stepz"


def test_the_doctor_without_a_config_does_not_import_jax(tmp_path):
    code = (
        "import sys\nfrom ummcsgm import main\n"
        f"sys.argv = ['ummcsgm', '--mode', 'doctor', '--input', {str(tmp_path)!r}]\n"
        "try:\n    main.run()\nfinally:\n    assert 'jax' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2 and "no subject found" in ended.stderr
    assert "AssertionError" not in ended.stderr
