"""The modes, the flags of each, their help, and how a command line is parsed."""

import re
import runpy
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from ummcsgm.types import InputError
from ummcsgm.utils.suggest import did_you_mean

FLAGS = flags.FLAGS
MODES = {
    "study": "the default: phantom if the config wants one, training, evaluation, report",
    "doctor": "finds what is wrong with a folder of scans",
    "prepare": "prepares the slices for training (training does it by itself)",
    "train": "trains",
    "evaluate": "makes tables and figures from the newest checkpoint",
    "score": "scores a folder of predictions under every profile",
    "complete": "writes the missing modalities of subjects",
    "compare": "RUN RUN ... --output DIR: one report of several studies",
}
WITHOUT_WORKDIR = ("doctor", "score", "compare")
HELP_FLAGS = ("-h", "-help", "--help", "--helpshort", "--helpfull")


class Flag(NamedTuple):
    """A flag: its name with the example value of the help, kind, default and modes."""

    name: str
    example: str
    kind: str
    default: Any
    modes: tuple[str, ...]
    help: str


DRAWS = "draws of what is missing; 1, or 8 with --advise"
FLAG_TABLE = (
    Flag("input", "PATH", "string", None, ("doctor", "complete"), "a subject or a folder of them"),
    Flag("predictions", "DIR", "string", None, ("score",), "the folder of predicted scans"),
    Flag("truth", "DIR", "string", None, ("score",), "the folder of real scans"),
    Flag("output", "DIR", "string", None, ("complete", "score", "compare"), "where to write"),
    Flag("missing", "A,B", "list", [], ("complete",), "modalities to do without"),
    Flag("ignore", "A,B", "list", [], ("complete",), "scans not to read"),
    Flag("draws", "N", "integer", None, ("complete",), DRAWS),
    Flag(
        "sampler",
        "NAME",
        "string",
        None,
        ("complete",),
        "mean, warm, ddim, ...: docs/completing.md",
    ),
    Flag(
        "quantiles",
        "Q,Q",
        "list",
        None,
        ("complete",),
        "of several draws: 0.05,0.5,0.95",
    ),
    Flag("keep_draws", "", "bool", True, ("complete",), "write each of several draws"),
    Flag("budget-seconds", "S", "float", None, ("complete",), "chooses sampler and draws"),
    Flag("advise", "", "bool", False, ("complete",), "which missing scan would help most"),
    Flag("overwrite", "", "bool", False, ("complete",), "also subjects that are finished"),
    Flag("part", "K/N", "string", None, ("complete",), "every N-th subject from the K-th on"),
    Flag("json", "", "bool", False, ("doctor",), "print the findings as JSON"),
    Flag("methods", "A,B", "list", [], ("study", "train"), "these methods of the study only"),
    Flag("profile", "", "bool", False, ("study", "train"), "trace steps 11-20: WORKDIR/profile"),
    Flag("all_configurations", "", "bool", False, ("study", "evaluate"), "every missing pattern"),
)
NAMES = ("config", "workdir", "mode", "help", *(flag.name for flag in FLAG_TABLE))

config_flags.DEFINE_config_file("config", None, "The experiment.")
flags.DEFINE_string("workdir", None, "The folder of the run.")
flags.DEFINE_string("mode", "study", f"One of {', '.join(MODES)}.")
for _flag in FLAG_TABLE:
    getattr(flags, f"DEFINE_{_flag.kind}")(_flag.name, _flag.default, _flag.help)


def help_text() -> str:
    """Returns the help: every mode in one line, and under it its flags."""
    lines = [
        "ummcsgm --config FILE [--config.key=value] --workdir DIR --mode MODE [flags]",
        "",
        "  --config FILE       the experiment, such as configs/quickstart.py; FILE:preset too",
        "  --config.KEY=VALUE  changes one key of it; docs/config.md lists all keys",
        "  --workdir DIR       the folder of the run; a run in it continues without --config",
        f"                      ({', '.join(WITHOUT_WORKDIR)} need none)",
        "  --mode MODE         one of:",
        "",
    ]
    for mode, summary in MODES.items():
        lines.append(f"{mode:<9} {summary}")
        for flag in FLAG_TABLE:
            if mode in flag.modes:
                no = "no" if flag.default is True else ""
                usage = f"--{'[no]' if no else ''}{flag.name} {flag.example}".rstrip()
                lines.append(f"    {usage:<22} {flag.help}")
    return "\n".join(lines)


def parse(arguments: list[str]) -> list[str]:
    """Sets FLAGS from the command line; returns the words that are no flags.

    Raises:
        InputError: a flag, a value, the config file or a key of it is wrong.
        SystemExit: the help was asked for, and is printed.
    """
    if set(HELP_FLAGS) & set(arguments[1:]):
        print(help_text())
        raise SystemExit(0)
    _check_config(arguments)
    try:
        words = FLAGS(arguments)[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(error.flagname)) from None
    except (flags.Error, IndexError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    _check_mode(words)
    return words


def _check_mode(words: list[str]) -> None:
    mode = FLAGS.mode
    if mode not in MODES:
        hint = did_you_mean(mode, MODES)
        raise InputError(f"--mode is {mode!r}{hint}; wanted one of {', '.join(MODES)}.")
    if words and mode != "compare":
        raise InputError(f"{words[0]!r} is not a flag: flags begin with --.")
    for flag in FLAG_TABLE:
        if FLAGS[flag.name].present and mode not in flag.modes:
            raise InputError(
                f"--{flag.name} is a flag of {', '.join(flag.modes)}; --mode {mode} has none: "
                "leave it out."
            )
    if not FLAGS.workdir and mode not in WITHOUT_WORKDIR:
        raise InputError("--workdir is missing: name the folder of the run (--help has all flags).")


def _unknown_flag(name: str) -> str:
    if name.startswith("config."):
        return f"--{name} changes a key of a config: add --config FILE."
    hint = did_you_mean(name, NAMES, "--")
    return f"--{name} is not a flag{hint}; ummcsgm --help lists all flags."


def _check_config(arguments: list[str]) -> None:
    """Raises InputError unless the file of --config makes a config that has every key
    that the command line changes."""
    words = [part for word in arguments for part in word.split("=", 1)]
    position = next((i for i, word in enumerate(words) if word in ("--config", "-config")), None)
    if position is None or position + 1 == len(words):
        return
    config = _read_config(*words[position + 1].split(":", 1))
    for word in arguments:
        found = re.match(r"(--?(?:no)?config\.)([^=\[]+)", word)
        if found:
            _check_key(config, *found.groups())


def _read_config(path: str, *options: str) -> ConfigDict:
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
    return config


def _check_key(config: ConfigDict, prefix: str, path: str) -> None:
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping | ConfigDict) or name not in value:
            hint = did_you_mean(path, _paths(config), "--config.")
            raise InputError(f"{prefix}{path} does not exist{hint}.")
        value = value[name]
    if isinstance(value, ConfigDict):
        example = next(iter(value), "KEY")
        raise InputError(f"{prefix}{path} is a section: set its keys, as {prefix}{path}.{example}.")


def _paths(config: ConfigDict) -> list[str]:
    """The dotted path of every key."""
    paths = []
    for name, value in config.items():
        inner = _paths(value) if isinstance(value, ConfigDict) else []
        paths += [f"{name}.{path}" for path in inner] or [name]
    return paths
