"""The methods of a study, each trained in its place.

WORKDIR/methods/NAME holds what a method needs, but for the mm-CSN's, which lies in the
workdir itself: methods may be trained in several workdirs, on several machines, and
their folders copied together.
"""

import pathlib
from collections.abc import Sequence

from ummcsgm.config.build import build_downstream
from ummcsgm.config.build_methods import MM_CSN, build_method_names, check_study
from ummcsgm.config.courses import SEGMENTER
from ummcsgm.study.allowance import allowed
from ummcsgm.training.train import train
from ummcsgm.types import Config, InputError


def default_methods(config: Config, mode: str) -> tuple[str, ...]:
    """What a mode trains where nobody says: the mm-CSN, and in a study all others."""
    return _known(config) if mode == "study" else (MM_CSN,)


def _known(config: Config) -> tuple[str, ...]:
    """The mm-CSN, the other methods, and the network that segments, if it is wanted."""
    check_study(config)
    judge = (SEGMENTER,) if build_downstream(config) else ()
    return (MM_CSN, *build_method_names(config), *judge)


def train_all(
    config: Config, workdir: pathlib.Path, names: Sequence[str], *, trace: bool
) -> list[str]:
    """The methods of these names are trained in the workdir, but for those whose loss
    was not finite any more, which it returns: others need not wait for them.

    Raises:
        InputError: a name is none of the study's; or as `train`.
        FloatingPointError: the mm-CSN's loss or the segmenter's was not finite, or that
            of the one method of these.
    """
    known = _known(config)
    for name in names:
        if name not in known:
            raise InputError(
                f"--methods has {name!r}; wanted some of {', '.join(known)}, which are "
                "the mm-CSN, config.study.methods and, with config.study.segmenter_steps, "
                f"{SEGMENTER}."
            )
    failed = []
    for name in names:
        if len(names) > 1:
            print(f"training: {name}", flush=True)
        if name == MM_CSN:
            train(config, workdir, trace=trace)
        elif name == SEGMENTER:  # no method: it has steps of its own
            train(config, workdir, method=name)
        else:
            try:
                train(allowed(config, workdir, name), workdir, method=name)
            except FloatingPointError as error:
                if len(names) == 1:
                    raise
                failed.append(name)
                print(f"training: {name} is left as it is: {error}", flush=True)
    return failed
