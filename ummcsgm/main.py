"""The command line: flags -> one command.

    python -m ummcsgm.main --config FILE [--config.key=value] --workdir DIR --mode MODE

study (default)   make the phantom if the config asks for it, train, evaluate, report
train             the training alone
evaluate          tables and figure of the newest checkpoint; needs only --workdir
complete          --input SUBJECT_OR_FOLDER --output DIR: writes the missing modalities
"""

import pathlib
import re
import runpy
import signal
import sys
import traceback

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from ummcsgm.types import InputError

MODES = ("study", "train", "evaluate", "complete")

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run lies.")
MODE = flags.DEFINE_string("mode", "study", "study, train, evaluate or complete.")
INPUT = flags.DEFINE_string("input", None, "complete: a subject, or a folder of them.")
OUTPUT = flags.DEFINE_string("output", None, "complete: where the files are written.")
MISSING = flags.DEFINE_list("missing", [], "complete: modalities to do without.")
DRAWS = flags.DEFINE_integer("draws", 1, "complete: draws of each missing modality.")
SAMPLER = flags.DEFINE_string("sampler", "mean", "complete: mean or euler_maruyama.")
ALL = flags.DEFINE_bool("all_configurations", False, "evaluate: every configuration.")


def run() -> None:
    """The console script: exit code 0, or 2 after one sentence on what is wrong."""
    app.define_help_flags()
    # An exception, not a sudden end: worker processes are told to stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        rest = _parse(sys.argv)
        if rest[1:]:
            raise InputError(f"{rest[1]!r} is not a flag: flags begin with --.")
        _command(pathlib.Path(WORKDIR.value))
    except (InputError, FloatingPointError, OSError) as error:
        print(f"ummcsgm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("ummcsgm: interrupted; the same command continues.", file=sys.stderr)
        raise SystemExit(130) from None


def _parse(arguments: list[str]) -> list[str]:
    _check_config_file(arguments)
    try:
        rest = flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:
        name = re.findall(r"'(\w+)", str(error))[0]
        keys = [word[2:].split("=")[0] for word in arguments if f".{name}" in word]
        raise InputError(f"{(keys or [name])[0]} does not exist.") from None
    except (flags.Error, IndexError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    if not WORKDIR.value:
        raise InputError("--workdir is missing: name the folder of the run.")
    if MODE.value not in MODES:
        raise InputError(f"--mode is {MODE.value!r}; wanted one of {', '.join(MODES)}.")
    return rest


def _check_config_file(arguments: list[str]) -> None:
    """Raises InputError unless the file given to --config makes a config."""
    words = [part for word in arguments for part in word.split("=", 1)]
    if "--config" not in words[:-1]:
        return
    path, *options = words[words.index("--config") + 1].split(":", 1)
    try:
        config = runpy.run_path(path)["get_config"](*options)
    except Exception as error:  # a file of Python may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"--config {where}: {why}.") from None
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise InputError(f"--config {path}: get_config() gives {kind}, no ConfigDict.")


def _command(workdir: pathlib.Path) -> None:
    # Here, not above: worker processes import this file, and need none of it.
    from ummcsgm import build, complete, evaluate, manifest, report, train

    if MODE.value in ("study", "train"):
        config = CONFIG.value
        if config is None:
            config = build.config_from_json(manifest.config_of_run(workdir))
        train.train(config, workdir)
    if MODE.value in ("study", "evaluate"):
        measured = evaluate.evaluate(workdir, CONFIG.value, ALL.value)
        report.write(measured, workdir / "evaluation")
    if MODE.value == "complete":
        order = complete.Order(tuple(MISSING.value), DRAWS.value, SAMPLER.value)
        complete.complete(workdir, CONFIG.value, (INPUT.value, OUTPUT.value), order)


if __name__ == "__main__":
    run()
