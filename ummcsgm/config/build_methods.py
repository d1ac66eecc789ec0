"""ConfigDict -> the other methods of the study: the half that meets `baselines`."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from ummcsgm.baselines.cocagan import make_cocagan
from ummcsgm.baselines.hi_net import make_hi_net
from ummcsgm.baselines.method import Method
from ummcsgm.baselines.mm_gan import make_mm_gan
from ummcsgm.baselines.mm_syn import make_mm_syn
from ummcsgm.baselines.ucdgan import make_ucdgan
from ummcsgm.config.build import build_schedule, build_sizes, lookup
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.distributed import devices
from ummcsgm.study import paper_table
from ummcsgm.types import InputError

MM_CSN, REGRESSION = "mm-csn", "regression"
BY_IMAGES, BY_SECONDS = "images", "seconds"


def check_study(config: ConfigDict) -> None:
    """Raises InputError, naming the key, if the config's study cannot be made."""
    names = config.study.methods
    if len(set(names)) < len(names):
        raise InputError(f"config.study.methods is {tuple(names)}: name each once.")
    for key in ("width_scale", "lr_scale", "patterns_per_image"):
        if len(config.study[key]) != len(names):
            raise InputError(
                f"config.study.{key} has {len(config.study[key])} numbers and "
                f"config.study.methods {len(names)} names: wanted one for each."
            )
    known = (REGRESSION, *METHODS)
    for name in names:
        if name not in known:
            raise InputError(
                f"config.study.methods has {name!r}; wanted some of {', '.join(known)}."
            )
    _check_regression(config)
    lookup("study.budget", config.study.budget, BUDGETS)
    labels = config.data.labels
    if "cocagan" in names and not labels:
        raise InputError(
            "config.study.methods has 'cocagan', which weighs lesions: set "
            "config.data.labels to True."
        )
    if config.study.segmenter_steps and not labels:
        raise InputError(
            "config.study.segmenter_steps wants segmentations: set config.data.labels to "
            "True, or config.study.segmenter_steps to 0."
        )
    if config.study.cocagan_input and config.study.cocagan_input not in config.data.modalities:
        raise InputError(
            f"config.study.cocagan_input is {config.study.cocagan_input!r}; wanted one of "
            f"{', '.join(config.data.modalities)}, or nothing."
        )


def _check_regression(config: ConfigDict) -> None:
    """Raises InputError if the config has options for what is trained as the mm-CSN."""
    names = tuple(config.study.methods)
    if REGRESSION not in names:
        return
    wanted = {"width_scale": 1.0, "lr_scale": 1.0}
    wanted["patterns_per_image"] = config.missingness.patterns_per_image
    for key, value in wanted.items():
        own = config.study[key][names.index(REGRESSION)]
        if own != value:
            raise InputError(
                f"config.study.{key} has {own:g} for {REGRESSION}, which is trained as "
                f"the mm-CSN is: wanted {value:g}."
            )


def build_method(config: ConfigDict, name: str) -> Method:
    """The published method of this name, for the config's modalities."""
    make = lookup("study.methods", name, METHODS)
    own = {"width": method_options(config, name)["width_scale"], "axis": devices.AXIS}
    if name == "cocagan":
        own["input_modality"] = _only(config)
    return make(len(config.data.modalities), scale=config.data.image_std, **own)


def method_options(config: ConfigDict, name: str) -> dict:
    """What the config has for one method: none of it may change while it trains."""
    if name not in METHODS or name not in config.study.methods:
        return {}
    place = tuple(config.study.methods).index(name)
    fields = config.study
    keys = ("width_scale", "lr_scale", "patterns_per_image")
    options = {key: fields[key][place] for key in keys}
    return options | ({"cocagan_input": fields.cocagan_input} if name == "cocagan" else {})


def describe_options(config: ConfigDict, name: str) -> str:
    """What a reader is to know of a published method's training, in one sentence."""
    own = method_options(config, name)
    return (
        f"Here with {own['width_scale']:g} of its channels, its learning rates times "
        f"{own['lr_scale']:g}, {own['patterns_per_image']} "
        f"question{'s'[: own['patterns_per_image'] > 1]} of each image a step, "
        "and the schedule and weight average of the mm-CSN."
    )


def check_options(had: dict, own: dict, where: str) -> None:
    """Raises InputError if a method's options are not those it was begun with."""
    for key, value in own.items():
        if had.get(key) != value:
            raise InputError(
                f"{where} was begun with another config.study.{key}: "
                f"{had.get(key)!r}, and yours is {value!r}; use that one, or remove "
                "the folder."
            )


def build_method_schedule(config: ConfigDict, name: str) -> Callable[[float], optax.Schedule]:
    """schedule(rate): config.train's, of the method's speed times a published rate."""
    schedule, speed = build_schedule(config), method_options(config, name)["lr_scale"]
    return lambda rate: schedule(rate * speed)


def regression_config(config: ConfigDict) -> ConfigDict:
    """The config of `regression`: the mm-CSN's, where every row of a batch is a token.

    Its loss is then the squared error of the mean, and nothing is ever noised.
    """
    config = config.copy_and_resolve_references()
    config.loss.mean_fraction = 1.0
    return config


def build_method_patterns(config: ConfigDict, name: str) -> tuple:
    """(table [N, M], weights [N], how many an image): what a published method is asked
    in training.

    As the mm-CSN, but that something is always seen: where everything is missing they
    have no answer.
    """
    modalities = len(config.data.modalities)
    table = missing_patterns(modalities, proper=True)
    sizes = build_sizes(config)[: modalities - 1]
    return (
        table,
        pattern_probabilities(table, sizes),
        method_options(config, name)["patterns_per_image"],
    )


def build_method_names(config: ConfigDict) -> tuple[str, ...]:
    """The methods of the study beside the mm-CSN, in their order."""
    return tuple(config.study.methods)


def build_budget(config: ConfigDict) -> str:
    """What all methods have alike in training: BY_IMAGES or BY_SECONDS."""
    return lookup("study.budget", config.study.budget, BUDGETS)


def build_gallery(config: ConfigDict) -> int:
    """How many slices of a subject the report shows."""
    return config.study.gallery_slices


def build_paper(config: ConfigDict) -> list[dict]:
    """The paper's numbers, where they are of the data of this study; else nothing."""
    return paper_table.rows() if config.study.show_paper else []


def _only(config: ConfigDict) -> int | None:
    names, only = tuple(config.data.modalities), config.study.cocagan_input
    return names.index(only) if only else None


BUDGETS = {name: name for name in (BY_IMAGES, BY_SECONDS)}

METHODS: dict[str, Callable[..., Method]] = {
    "mm-gan": make_mm_gan,
    "hi-net": make_hi_net,
    "mm-syn": make_mm_syn,
    "ucdgan": make_ucdgan,
    "cocagan": make_cocagan,
}
