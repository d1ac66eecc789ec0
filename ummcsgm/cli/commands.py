"""The command of each mode. What a mode does not need is not imported: it starts faster."""

import pathlib
import re
import signal
import sys
from typing import Any

from ml_collections import ConfigDict

from ummcsgm.cli.flags import FLAGS
from ummcsgm.types import InputError


def run_mode(mode: str, words: list[str]) -> bool:
    """Runs the command of `mode`; `words` are the arguments that are no flags.

    Returns:
        Whether it succeeded for every subject and method.
    """
    if mode == "doctor":
        from ummcsgm.cli import doctor

        _end_by_exception()
        return doctor.run_doctor(FLAGS.config, FLAGS.input, FLAGS.json)
    if mode == "compare":
        from ummcsgm.reporting import page

        page.compare(words, FLAGS.output)
        return True
    if mode == "score":
        from ummcsgm.evaluation import score_folder

        _end_by_exception()
        folders = (FLAGS.predictions, FLAGS.truth, FLAGS.output)
        return score_folder.score_folder(FLAGS.config, folders)
    from ummcsgm.distributed import processes

    with processes.in_job(exit_code_of, _describe_resume):
        _end_by_exception()  # JAX's runtime has a handler of its own
        return _run_on_devices(mode)


def exit_code_of(error: BaseException) -> int | None:
    """Prints an error that the user can mend; its exit code, None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        print("ummcsgm: interrupted; the same command continues.", file=sys.stderr)
        return 130
    if isinstance(error, InputError | FloatingPointError | OSError):
        print(f"ummcsgm: {error}", file=sys.stderr, flush=True)
        return 2
    return None


def _end_by_exception() -> None:
    """SIGTERM raises SystemExit, so that worker processes are stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _run_on_devices(mode: str) -> bool:
    from ummcsgm.distributed import devices, processes
    from ummcsgm.utils import compilation_cache

    compilation_cache.enable_compilation_cache()
    workdir, config = pathlib.Path(FLAGS.workdir), FLAGS.config
    if config is None and mode in ("study", "train", "prepare"):
        config = _saved_config(workdir)
    devices.use_cpu_cores(_batch_size(mode, workdir, config))
    if mode == "complete":
        from ummcsgm.inference.complete import complete

        folders = (FLAGS.input, FLAGS.output)
        return complete(workdir, config, folders, _completion_options(), parse_part(FLAGS.part))
    failed_methods = []
    with processes.silence_nonmain():
        if mode == "prepare":
            from ummcsgm.config.build_data import prepare

            prepare(config, workdir)
        if mode in ("study", "train"):
            from ummcsgm.study import train_methods

            names = tuple(FLAGS.methods) or train_methods.default_methods(config, mode)
            failed_methods = train_methods.train_all(config, workdir, names, trace=FLAGS.profile)
        if mode in ("study", "evaluate"):
            from ummcsgm.study import compare

            compare.conclude(workdir, FLAGS.config, FLAGS.all_configurations)
    return not failed_methods


def _saved_config(workdir: pathlib.Path) -> ConfigDict:
    from ummcsgm.config import build
    from ummcsgm.utils import provenance

    return build.config_from_json(provenance.saved_config(workdir))


def _batch_size(mode: str, workdir: pathlib.Path, config: ConfigDict | None) -> int | None:
    """How many slices the devices share at a time; None if no run was started."""
    from ummcsgm.config import build_data

    if config is None:
        try:
            config = _saved_config(workdir)
        except InputError:  # the command itself reports it
            return None
    build_data.check_data(config)
    if mode in ("study", "train"):
        return config.train.batch // config.train.accumulate
    return config.evaluate.microbatch


def _describe_resume() -> str:
    """From where the same command continues after an interruption."""
    from ummcsgm.training import checkpoint

    step = checkpoint.latest_step(pathlib.Path(FLAGS.workdir))
    if FLAGS.mode in ("study", "train") and step is not None:
        return f"it continues from step {step}'s checkpoint"
    return "it continues with what is finished"


def _completion_options() -> Any:
    from ummcsgm.inference.outputs import CompletionOptions

    draws, sampler, seconds = FLAGS.draws, FLAGS.sampler, FLAGS["budget-seconds"].value
    if seconds is not None and (draws is not None or sampler or FLAGS.advise):
        raise InputError(
            "--budget-seconds chooses sampler and draws itself: leave out --sampler, "
            "--draws and --advise."
        )
    if draws is None:
        draws = 8 if FLAGS.advise else 1
    if FLAGS.advise and (FLAGS.quantiles is not None or not FLAGS.keep_draws):
        raise InputError("--advise writes no draws: leave out --quantiles and --nokeep_draws.")
    if FLAGS.quantiles is not None and draws < 2 and seconds is None:
        raise InputError(
            f"--quantiles wants at least 2 draws, and --draws is {draws}: add --draws 8."
        )
    return CompletionOptions(
        missing=tuple(FLAGS.missing),
        ignored=tuple(FLAGS.ignore),
        draws=draws,
        quantiles=_quantile_levels(FLAGS.quantiles or ["0.05", "0.5", "0.95"]),
        sampler=sampler or ("warm" if draws > 1 else "mean"),
        overwrite=FLAGS.overwrite,
        keep_draws=FLAGS.keep_draws,
        quantiles_requested=FLAGS.quantiles is not None,
        budget_seconds=seconds,
        rank_acquisitions=FLAGS.advise,
    )


def _quantile_levels(words: list[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, words))
    except ValueError:
        raise InputError(f"--quantiles is {','.join(words)}; wanted numbers.") from None


def parse_part(text: str | None) -> tuple[int, int]:
    """Returns (k - 1, n) of "k/n"; if it is None, this process's index and the number of
    processes of its job."""
    from ummcsgm.distributed import processes

    if text is None:
        return processes.process_index_and_count()
    if processes.is_multiprocess():
        raise InputError(
            f"--part is {text!r}, and this is one of {processes.process_index_and_count()[1]} "
            "processes that take a part each: leave out --part."
        )
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= k <= n:
        raise InputError(f"--part is {text!r}; wanted k/n, with k from 1 to n.")
    return k - 1, n
