"""The command line: flags -> one command.

    python -m ummcsgm.main --config FILE [--config.key=value] --workdir DIR --mode MODE

study (default)   make the phantom if the config asks for it, train, evaluate, report
doctor            --input FOLDER: what is wrong with these scans; needs no --workdir
prepare           the slices that training reads, which it would prepare itself
train             the training alone
evaluate          tables and figure of the newest checkpoint; needs only --workdir
score             --predictions DIR --truth DIR [--output DIR]: under every profile;
                  needs no --workdir
complete          --input SUBJECT_OR_FOLDER --output DIR: writes the missing modalities
compare           RUN RUN ... --output DIR: one report of several studies
"""

import pathlib
import re
import runpy
import signal
import sys
import traceback
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from ummcsgm.types import InputError

MODES = ("study", "doctor", "prepare", "train", "evaluate", "score", "complete")
MODES += ("compare",)

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run lies.")
MODE = flags.DEFINE_string("mode", "study", f"One of {', '.join(MODES)}.")
INPUT = flags.DEFINE_string("input", None, "doctor, complete: a subject or a folder.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "score: a folder of NIfTI.")
TRUTH = flags.DEFINE_string("truth", None, "score: the folder of the real scans.")
OUTPUT = flags.DEFINE_string(
    "output", None, "complete, score, compare: where the files are written."
)
MISSING = flags.DEFINE_list("missing", [], "complete: modalities to do without.")
IGNORE = flags.DEFINE_list("ignore", [], "complete: scans that are not to be read.")
LEVELS = flags.DEFINE_list(
    "quantiles", None, "complete: of several draws; 0.05,0.5,0.95 if not given."
)
DRAWS = flags.DEFINE_integer("draws", None, "complete: draws of what is missing; 1.")
KEEP = flags.DEFINE_bool("keep_draws", True, "complete: several draws, each a file.")
SAMPLER = flags.DEFINE_string(
    "sampler", None, "complete: mean, warm, ...; warm with several draws, else mean."
)
SECONDS = flags.DEFINE_float(
    "budget-seconds", None, "complete: for each subject; chooses sampler and draws."
)
ADVISE = flags.DEFINE_bool("advise", False, "complete: which scan would help most.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "complete: also what is finished.")
PART = flags.DEFINE_string("part", None, "complete: k/n, every n-th from the k-th on.")
JSON = flags.DEFINE_bool("json", False, "doctor: findings as JSON, and no table.")
METHODS = flags.DEFINE_list("methods", [], "study, train: these of the study's methods alone.")
PROFILE = flags.DEFINE_bool("profile", False, "train: steps 11 to 20, in WORKDIR/profile.")
ALL = flags.DEFINE_bool("all_configurations", False, "evaluate: every configuration.")


def run() -> None:
    """The console script: exit code 0; 1 if a subject is ill or could not be completed,
    or a prediction not scored; 2 after one sentence on what is wrong; 75 if another
    process of this job ended."""
    app.define_help_flags()
    try:
        rest = _parse(sys.argv)
        if rest[1:] and MODE.value != "compare":
            raise InputError(f"{rest[1]!r} is not a flag: flags begin with --.")
        if not _command(MODE.value, rest[1:]):
            raise SystemExit(1)
    except Exception as error:
        code = _verdict(error)
        if code is None:
            raise
        raise SystemExit(code) from None
    except KeyboardInterrupt as error:
        raise SystemExit(_verdict(error)) from None


def _verdict(error: BaseException) -> int | None:
    """The exit code after an error that concerns the user, who is told; else None."""
    if isinstance(error, KeyboardInterrupt):
        print("ummcsgm: interrupted; the same command continues.", file=sys.stderr)
        return 130
    if isinstance(error, InputError | FloatingPointError | OSError):
        print(f"ummcsgm: {error}", file=sys.stderr, flush=True)
        return 2
    return None


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
    if MODE.value not in MODES:
        raise InputError(f"--mode is {MODE.value!r}; wanted one of {', '.join(MODES)}.")
    if not WORKDIR.value and MODE.value not in ("doctor", "score", "compare"):
        raise InputError("--workdir is missing: name the folder of the run.")
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


def _command(mode: str, words: list[str]) -> bool:
    """Does what was asked; whether every subject came through it."""
    # Here, not above: worker processes import this file, and need none of it.
    if mode == "doctor":
        from ummcsgm.cli import doctor

        _end_by_exception()
        return doctor.run_doctor(CONFIG.value, INPUT.value, JSON.value)
    if mode == "compare":
        from ummcsgm.reporting import page

        page.compare(words, OUTPUT.value)
        return True
    if mode == "score":
        from ummcsgm.evaluation import score_folder

        _end_by_exception()
        folders = (PREDICTIONS.value, TRUTH.value, OUTPUT.value)
        return score_folder.score_folder(CONFIG.value, folders)
    from ummcsgm.distributed import processes

    with processes.in_job(_verdict, _kept):
        _end_by_exception()  # JAX's runtime has a handler of its own
        return _network_command(mode)


def _end_by_exception() -> None:
    """SIGTERM is no sudden end: worker processes are told to stop."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _network_command(mode: str) -> bool:
    # What a mode does not need is not loaded: training begins a second sooner.
    from ummcsgm.distributed import devices
    from ummcsgm.utils import compilation_cache

    if PROFILE.value and mode not in ("study", "train"):
        raise InputError(f"--profile is of training: --mode {mode} has none.")
    compilation_cache.enable_compilation_cache()
    workdir, config = pathlib.Path(WORKDIR.value), CONFIG.value
    if config is None and mode in ("study", "train", "prepare"):
        from ummcsgm.config import build
        from ummcsgm.utils import provenance

        config = build.config_from_json(provenance.saved_config(workdir))
    devices.use_cpu_cores(_rows(mode, config))
    if mode == "complete":
        from ummcsgm.inference.complete import complete

        folders, part = (INPUT.value, OUTPUT.value), _part(PART.value)
        return complete(workdir, config, folders, _order(), part)
    failed = []  # methods
    with devices.silence_nonmain():
        if mode == "prepare":
            from ummcsgm.config.preparation import prepare

            prepare(config, workdir)
        if mode in ("study", "train"):
            from ummcsgm.study import train_methods

            names = tuple(METHODS.value) or train_methods.default_methods(config, mode)
            failed = train_methods.train_all(config, workdir, names, trace=PROFILE.value)
        if mode in ("study", "evaluate"):
            from ummcsgm.study import compare

            compare.conclude(workdir, CONFIG.value, ALL.value)
    return not failed


def _rows(mode: str, config: ConfigDict | None) -> int | None:
    """How many slices the devices share at a time; None where nothing says it."""
    from ummcsgm.config import build, build_data
    from ummcsgm.utils import provenance

    if mode in ("study", "train"):
        build_data.check_data(config)
        return config.train.batch // config.train.accumulate
    if config is None:
        try:
            fields = provenance.saved_config(pathlib.Path(WORKDIR.value))
        except InputError:  # nothing was begun there: what follows says so
            return None
        config = build.config_from_json(fields)
    build_data.check_data(config)
    return config.evaluate.microbatch


def _kept() -> str:
    """From where a command that was broken off goes on."""
    from ummcsgm.training import checkpoint

    step = checkpoint.latest_step(pathlib.Path(WORKDIR.value))
    if MODE.value in ("study", "train") and step is not None:
        return f"it continues from step {step}'s checkpoint"
    return "it continues with what is finished"


def _order() -> Any:
    """What the flags of `complete` want of every subject."""
    from ummcsgm.inference.results import CompletionOptions

    draws, sampler = DRAWS.value, SAMPLER.value
    if SECONDS.value is not None and (draws is not None or sampler or ADVISE.value):
        raise InputError(
            "--budget-seconds chooses sampler and draws itself: leave out --sampler, "
            "--draws and --advise."
        )
    if draws is None:
        draws = 8 if ADVISE.value else 1
    if ADVISE.value and (LEVELS.value is not None or not KEEP.value):
        raise InputError("--advise writes no draws: leave out --quantiles and --nokeep_draws.")
    several = draws > 1 or SECONDS.value is not None
    if LEVELS.value is not None and not several:
        raise InputError(
            f"--quantiles wants at least 2 draws, and --draws is {draws}: add --draws 8."
        )
    return CompletionOptions(
        missing=tuple(MISSING.value),
        ignored=tuple(IGNORE.value),
        draws=draws,
        levels=_levels(LEVELS.value or ["0.05", "0.5", "0.95"]),
        sampler=sampler or ("warm" if draws > 1 else "mean"),
        overwrite=OVERWRITE.value,
        keep=KEEP.value,
        spread=LEVELS.value is not None,
        seconds=SECONDS.value,
        advise=ADVISE.value,
    )


def _levels(words: list[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, words))
    except ValueError:
        raise InputError(f"--quantiles is {','.join(words)}; wanted numbers.") from None


def _part(text: str | None) -> tuple[int, int]:
    """(k - 1, n) of "k/n"; if it is None, this process's own part of its job's n."""
    from ummcsgm.distributed import devices

    if text is None:
        return devices.process_index_and_count()
    if devices.is_multiprocess():
        raise InputError(
            f"--part is {text!r}, and this is one of {devices.process_index_and_count()[1]} "
            "processes "
            "that take a part each: leave out --part."
        )
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= k <= n:
        raise InputError(f"--part is {text!r}; wanted k/n, with k from 1 to n.")
    return k - 1, n


if __name__ == "__main__":
    run()
