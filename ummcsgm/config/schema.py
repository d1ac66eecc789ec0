"""What a config must hold: every key, its type and its range, and no other key."""

from ummcsgm.types import InputError
from ummcsgm.utils.suggest import did_you_mean

Rule = tuple[type, float | None, float | None]  # a type, least and largest value

ANY = None

SCHEMA: dict[str, Rule] = {
    "seed": (int, 0, 2**31 - 1),
    "phantom.subjects": (int, 0, ANY),
    "phantom.shape": (tuple, 3, 3),
    "data.folder": (str, ANY, ANY),
    "data.layout": (str, ANY, ANY),
    "data.pattern": (str, ANY, ANY),
    "data.entities": (tuple, 0, ANY),
    "data.mask": (str, ANY, ANY),
    "data.modalities": (tuple, 2, 8),
    "data.split": (tuple, 3, 3),
    "data.grid": (tuple, 2, 2),
    "data.spacing": (float, 0, 100),
    "data.min_brain_fraction": (float, 0, 1),
    "data.labels": (bool, ANY, ANY),
    "data.flip": (bool, ANY, ANY),
    "data.image_std": (float, 1e-3, 1e3),
    "data.processes": (int, 1, ANY),
    "sde.name": (str, ANY, ANY),
    "sde.beta_min": (float, 1e-6, ANY),
    "sde.beta_max": (float, 1e-6, ANY),
    "sde.sigma_min": (float, 1e-6, ANY),
    "sde.sigma_max": (float, 1e-6, ANY),
    "sde.noise_level_max": (float, 1.0, 1e4),
    "missingness.keep_one_seen": (bool, ANY, ANY),
    "missingness.size_probabilities": (str, ANY, ANY),
    "missingness.patterns_per_image": (int, 1, ANY),
    "network.widths": (tuple, 1, 8),
    "network.blocks": (tuple, 1, 8),
    "network.patch": (int, 1, 16),
    "network.attention_max_grid": (int, 0, 24),
    "network.pixel_width": (int, 1, ANY),
    "network.pixel_layers": (int, 1, ANY),
    "network.context_channels": (int, 1, ANY),
    "network.conditioning": (str, ANY, ANY),
    "network.neighbour_slices": (int, 0, 8),
    "network.predict_variance": (bool, ANY, ANY),
    "network.dtype": (str, ANY, ANY),
    "loss.weighting": (str, ANY, ANY),
    "loss.posterior_std": (float, 1e-4, ANY),
    "loss.uniform_fraction": (float, 0, 1),
    "loss.log_sigma_mean": (float, ANY, ANY),
    "loss.log_sigma_std": (float, 1e-3, ANY),
    "loss.sigma_min": (float, 1e-6, 1.0),
    "loss.mean_fraction": (float, 0, 1),
    "loss.mean_weight": (float, 0, ANY),
    "train.steps": (int, 1, ANY),
    "train.batch": (int, 1, ANY),
    "train.accumulate": (int, 1, ANY),
    "train.remat": (tuple, 1, 8),
    "train.learning_rate": (float, 0, ANY),
    "train.schedule": (str, ANY, ANY),
    "train.warmup": (int, 0, ANY),
    "train.clip": (float, 1e-9, ANY),
    "train.ema_decay": (float, 0, 1),
    "train.save_every": (int, 1, ANY),
    "train.keep_checkpoints": (int, 1, ANY),
    "train.log_every": (int, 1, ANY),
    "train.max_nonfinite": (int, 1, ANY),
    "study.methods": (tuple, 0, 6),
    "study.width_scale": (tuple, 0, 6),
    "study.lr_scale": (tuple, 0, 6),
    "study.patterns_per_image": (tuple, 0, 6),
    "study.cocagan_input": (str, ANY, ANY),
    "study.budget": (str, ANY, ANY),
    "study.segmenter_steps": (int, 0, ANY),
    "study.gallery_slices": (int, 1, ANY),
    "study.show_paper": (bool, ANY, ANY),
    "evaluate.algorithm1_steps": (int, 1, ANY),
    "evaluate.sampler_steps": (int, 1, ANY),
    "evaluate.sigma_min": (float, 1e-6, ANY),
    "evaluate.warm_start_sigma": (float, 1e-6, ANY),
    "evaluate.draws": (int, 2, ANY),
    "evaluate.draw_subjects": (int, 0, ANY),
    "evaluate.draw_slices": (int, 0, ANY),
    "evaluate.slab_slices": (int, 2, ANY),
    "evaluate.slab_subjects": (int, 0, ANY),
    "evaluate.microbatch": (int, 1, ANY),
    "evaluate.algorithm1_subjects": (int, 0, ANY),
    "evaluate.algorithm1_slices": (int, 0, ANY),
    "evaluate.ridge_penalty": (float, 0, ANY),
}

ITEMS: dict[str, Rule] = {  # what stands in a tuple
    "phantom.shape": (int, 1, ANY),
    "data.modalities": (str, ANY, ANY),
    "data.entities": (str, ANY, ANY),
    "data.split": (int, 0, ANY),
    "data.grid": (int, 1, ANY),
    "network.widths": (int, 1, ANY),
    "network.blocks": (int, 1, ANY),
    "train.remat": (bool, ANY, ANY),
    "study.methods": (str, ANY, ANY),
    "study.width_scale": (float, 1e-3, 4),
    "study.lr_scale": (float, 1e-3, 1e3),
    "study.patterns_per_image": (int, 1, ANY),
}

# What weights were made for, and what a continued run must not change beside that.
IMAGE_KEYS = ("data.modalities", "data.grid", "data.image_std", "data.spacing")
NETWORK_KEYS = ("network.", "sde.", *IMAGE_KEYS)
SLICE_KEYS = ("data.split", "data.labels", "data.mask", "data.min_brain_fraction", "data.flip")
TASK_KEYS = ("missingness.", "loss.", "train.batch")
RUN_KEYS = (*NETWORK_KEYS, "seed", *SLICE_KEYS, *TASK_KEYS)
# Of a method that has a network and a loss of its own.
FELLOW_KEYS = (*IMAGE_KEYS, "seed", *SLICE_KEYS, "missingness.", "train.batch")
THINGS = {NETWORK_KEYS: "network", SLICE_KEYS: "choice of slices", TASK_KEYS: "task"}

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def check_fields(fields: dict) -> None:
    """Raises InputError, naming the key, unless a config's fields match SCHEMA.

    `fields` is a dict of sections of values. Lengths of tuples have the range.
    """
    flat = dict(_flatten(fields))
    for key in flat:
        if key not in SCHEMA:
            hint = did_you_mean(key, SCHEMA)
            raise InputError(f"config.{key} does not exist{hint}: remove it.")
    for key, rule in SCHEMA.items():
        if key not in flat:
            raise InputError(f"config.{key} is missing: the config must set it.")
        _check(key, flat[key], *rule)
    for key, rule in ITEMS.items():
        for place, item in enumerate(flat[key]):
            _check(f"{key}[{place}]", item, *rule)


def check_same(fields: dict, made: dict, where: str, keys: tuple[str, ...]) -> None:
    """Raises InputError, naming the key, if a config's `fields` differ from those that
    the checkpoint in `where` was `made` with, under any key that begins with `keys`."""
    asked, had = dict(_flatten(fields)), dict(_flatten(made))
    for key in asked:
        if key.startswith(keys) and asked[key] != had.get(key):
            named = (word for own, word in THINGS.items() if key.startswith(own))
            thing = next(named, key)
            raise InputError(
                f"{where} was trained with another {thing}: its config.{key} is "
                f"{had.get(key)!r}, and yours is {asked[key]!r}; use that one or a new "
                "--workdir."
            )


def _flatten(fields: dict, above: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{above}{name}.")
        else:
            pairs.append((f"{above}{name}", value))
    return pairs


def _check(key: str, value: object, kind: type, least: float | None, most: float | None) -> None:
    allowed = {float: (int, float), tuple: (tuple, list)}.get(kind, (kind,))
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        wanted = WORDS.get(kind, "a tuple, like (1, 2)")
        raise InputError(f"config.{key} is {value!r}; wanted {wanted}.")
    size = len(value) if kind is tuple else value
    if (least is not None and not size >= least) or (most is not None and not size <= most):
        what = "length" if kind is tuple else "value"
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise InputError(f"config.{key} is {value!r}; wanted a {what} of {bounds}.")
