"""ConfigDict -> the other methods of the study: the half that meets `baselines`."""

from collections.abc import Callable

import numpy as np
import optax
from ml_collections import ConfigDict

from ummcsgm import paper, parallel
from ummcsgm.baselines.cocagan import make_cocagan
from ummcsgm.baselines.hi_net import make_hi_net
from ummcsgm.baselines.method import Method
from ummcsgm.baselines.mm_gan import make_mm_gan
from ummcsgm.baselines.mm_syn import make_mm_syn
from ummcsgm.baselines.ucdgan import make_ucdgan
from ummcsgm.build import build_schedule, build_sizes, lookup
from ummcsgm.completion import configurations, probabilities
from ummcsgm.types import InputError

MM_CSN, REGRESSION = "mm-csn", "regression"
BY_IMAGES, BY_SECONDS = "images", "seconds"


def check_study(config: ConfigDict) -> None:
    """Raises InputError, naming the key, if the config's study cannot be made."""
    names = config.study.methods
    if len(set(names)) < len(names):
        raise InputError(f"config.study.methods is {tuple(names)}: name each once.")
    known = (REGRESSION, *METHODS)
    for name in names:
        if name not in known:
            raise InputError(
                f"config.study.methods has {name!r}; wanted some of {', '.join(known)}."
            )
    lookup("study.budget", config.study.budget, BUDGETS)
    labels = config.data.labels
    if "cocagan" in names and not labels:
        raise InputError(
            "config.study.methods has 'cocagan', which weighs lesions: set "
            "config.data.labels to True."
        )
    if config.study.downstream and not labels:
        raise InputError(
            "config.study.downstream wants segmentations: set config.data.labels to "
            "True, or config.study.downstream to 0."
        )
    if config.study.only and config.study.only not in config.data.modalities:
        raise InputError(
            f"config.study.only is {config.study.only!r}; wanted one of "
            f"{', '.join(config.data.modalities)}, or nothing."
        )


def build_method(config: ConfigDict, name: str) -> Method:
    """The published method of this name, for the config's modalities."""
    return lookup("study.methods", name, METHODS)(config)


def build_method_schedule(config: ConfigDict) -> Callable[[float], optax.Schedule]:
    """schedule(rate): config.train's, of config.study.speed times a published rate."""
    schedule = build_schedule(config)
    return lambda rate: schedule(rate * config.study.speed)


def regressing(config: ConfigDict) -> ConfigDict:
    """The config of `regression`: the mm-CSN's, where every row of a batch is a token.

    Its loss is then the squared error of the mean, and nothing is ever noised.
    """
    config = config.copy_and_resolve_references()
    config.loss.token = 1.0
    return config


def build_questions(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """(table [N, M], weights [N]): what the published methods are asked in training.

    As the mm-CSN, but that something is always seen: where everything is missing they
    have no answer.
    """
    modalities = len(config.data.modalities)
    table = configurations(modalities, proper=True)
    sizes = build_sizes(config)[: modalities - 1]
    return table, probabilities(table, sizes)


def build_names(config: ConfigDict) -> tuple[str, ...]:
    """The methods of the study beside the mm-CSN, in their order."""
    return tuple(config.study.methods)


def build_budget(config: ConfigDict) -> str:
    """What all methods have alike in training: BY_IMAGES or BY_SECONDS."""
    return lookup("study.budget", config.study.budget, BUDGETS)


def build_gallery(config: ConfigDict) -> int:
    """How many slices of a subject the report shows."""
    return config.study.gallery


def build_paper(config: ConfigDict) -> list[dict]:
    """The paper's numbers, where they are of the data of this study; else nothing."""
    return paper.rows() if config.study.paper else []


def with_steps(config: ConfigDict, steps: int) -> ConfigDict:
    """The config with another number of training steps."""
    config = config.copy_and_resolve_references()
    config.train.steps = steps
    return config


def _options(config: ConfigDict) -> dict:
    return {
        "width": config.study.width,
        "scale": config.data.std,
        "axis": parallel.AXIS,
    }


def _only(config: ConfigDict) -> int | None:
    names, only = tuple(config.data.modalities), config.study.only
    return names.index(only) if only else None


BUDGETS = {name: name for name in (BY_IMAGES, BY_SECONDS)}

METHODS: dict[str, Callable[[ConfigDict], Method]] = {
    "mm-gan": lambda c: make_mm_gan(len(c.data.modalities), **_options(c)),
    "hi-net": lambda c: make_hi_net(len(c.data.modalities), **_options(c)),
    "mm-syn": lambda c: make_mm_syn(len(c.data.modalities), **_options(c)),
    "ucdgan": lambda c: make_ucdgan(len(c.data.modalities), **_options(c)),
    "cocagan": lambda c: make_cocagan(
        len(c.data.modalities), inputs=_only(c), **_options(c)
    ),
}
