"""The command line: flags -> one command. `ummcsgm --help` lists all modes and flags.

python -m ummcsgm.main --config FILE [--config.key=value] --workdir DIR --mode MODE
"""

import sys

from ummcsgm.cli import commands, flags


def run() -> None:
    """Runs one command, the console script `ummcsgm`.

    Exit codes: 0; 1 if a subject is ill, not completed or not scored, or a method failed; 2 after
    one sentence about wrong input; 75 if another process of this job ended; 130 after Ctrl-C.
    """
    try:
        words = flags.parse(sys.argv)
        if not commands.run_mode(flags.FLAGS.mode, words):
            raise SystemExit(1)
    except (Exception, KeyboardInterrupt) as error:
        code = commands.exit_code_of(error)
        if code is None:
            raise
        raise SystemExit(code) from None


if __name__ == "__main__":
    run()
