"""Every key of a config: its type, its range and what it sets. Each key must be set."""

from typing import NamedTuple

from ummcsgm.types import InputError
from ummcsgm.utils.suggest import did_you_mean


class Key(NamedTuple):
    """A key's type, what it sets, and the least and largest value (of a tuple: length)."""

    kind: type
    description: str = ""
    least: float | None = None
    most: float | None = None
    item: "Key | None" = None  # what the items of a tuple are


SCHEMA: dict[str, Key] = {
    "seed": Key(int, "Seed of phantom, split, parameters, training and draws.", 0, 2**31 - 1),
    "phantom.subjects": Key(int, "Phantom subjects to make if `data.folder` is empty; 0: none.", 0),
    "phantom.shape": Key(tuple, "Voxels of each phantom subject.", 3, 3, item=Key(int, "", 1)),
    "data.folder": Key(str, "Folder of your subjects; empty for the phantom's."),
    "data.layout": Key(str, "File names: auto, brats, brats23, msd, ixi, bids or flat."),
    "data.pattern": Key(str, "File names of flat, like `{subject}/{subject}-{modality}.nii.gz`."),
    "data.entities": Key(
        tuple, "BIDS entities that choose a scan, like `run-1`.", 0, item=Key(str)
    ),
    "data.mask": Key(str, "Brain masks' word in place of the modality; empty: what is not 0."),
    "data.modalities": Key(tuple, "Modalities in the order of channels.", 2, 8, item=Key(str)),
    "data.split": Key(
        tuple,
        "Parts of the subjects for training, validation and test.",
        3,
        3,
        item=Key(int, "", 0),
    ),
    "data.grid": Key(
        tuple, "Rows and columns of the slices that the network sees.", 2, 2, item=Key(int, "", 1)
    ),
    "data.spacing": Key(float, "Pixel size in mm to resample to; 0 does not resample.", 0, 100),
    "data.min_brain_fraction": Key(
        float, "Least share of the grid that is brain, in slices to train on.", 0, 1
    ),
    "data.labels": Key(bool, "Store the tumour segmentations with the slices."),
    "data.flip": Key(bool, "Flip left and right at random in training."),
    "data.image_std": Key(float, "Standard deviation of clean images, with background.", 1e-3, 1e3),
    "data.processes": Key(int, "Processes that make the phantom and read scans.", 1),
    "sde.name": Key(str, "The forward process: vp, sub_vp, ve or cosine."),
    "sde.beta_min": Key(float, "Noise rate at t = 0 of vp and sub_vp.", 1e-6),
    "sde.beta_max": Key(float, "Noise rate at t = 1 of vp and sub_vp.", 1e-6),
    "sde.sigma_min": Key(float, "Lowest noise level of ve.", 1e-6),
    "sde.sigma_max": Key(float, "Highest noise level of ve.", 1e-6),
    "sde.noise_level_max": Key(float, "Highest noise level of cosine.", 1.0, 1e4),
    "missingness.keep_one_seen": Key(bool, "Never let all modalities be missing in training."),
    "missingness.size_probabilities": Key(str, "P(1, 2, ... missing), like `0.7,0.3`; or uniform."),
    "missingness.patterns_per_image": Key(
        int, "Missing patterns of each image in a training step.", 1
    ),
    "network.widths": Key(
        tuple, "Channels of each U-Net level; multiples of 32.", 1, 8, item=Key(int, "", 1)
    ),
    "network.blocks": Key(
        tuple, "Residual blocks of each level, on either side.", 1, 8, item=Key(int, "", 1)
    ),
    "network.patch": Key(int, "Pixels a side that the U-Net takes as one position.", 1, 16),
    "network.attention_max_grid": Key(
        int, "The mean's attention, on grids up to this side; 0: none.", 0, 24
    ),
    "network.pixel_width": Key(int, "Channels of the layers at full resolution.", 1),
    "network.pixel_layers": Key(int, "Layers at full resolution.", 1),
    "network.context_channels": Key(int, "Channels from the U-Net to full resolution.", 1),
    "network.conditioning": Key(
        str, "Where time and pattern enter the mean: both, or decoder as in the paper."
    ),
    "network.neighbour_slices": Key(int, "Slices of the seen modalities on either side.", 0, 8),
    "network.predict_variance": Key(bool, "Predict the squared error of the mean too."),
    "network.preconditioning": Key(
        str, "Preconditioning of the score: mean, about the network's own; or edm, about 0."
    ),
    "network.residual_widths": Key(
        tuple,
        "Channels of each level of the part that sees noise, with preconditioning mean.",
        1,
        8,
        item=Key(int, "", 1),
    ),
    "network.encoder_blocks": Key(
        int, "Residual blocks of each level, in the encoder of what is seen.", 0
    ),
    "network.dtype": Key(str, "Type of activations: float32 or bfloat16."),
    "loss.weighting": Key(
        str, "Over time: paper, std2, likelihood, edm, conditional, min_snr; or bands."
    ),
    "loss.posterior_std": Key(
        float, "Standard deviation of missing images, for weighting conditional.", 1e-4
    ),
    "loss.uniform_fraction": Key(
        float, "Share of times drawn uniformly in t; 1 is the paper's.", 0, 1
    ),
    "loss.log_sigma_mean": Key(float, "Mean of ln(noise level) at the other times."),
    "loss.log_sigma_std": Key(float, "Standard deviation of ln(noise level) there.", 1e-3),
    "loss.sigma_min": Key(float, "Lowest noise level in training.", 1e-6, 1.0),
    "loss.sigma_max_factor": Key(
        float,
        "Highest of noise levels that are uniform in their logarithm, in posterior scales; 0: "
        "their logarithm is normal.",
        0,
    ),
    "loss.levels_per_question": Key(
        int, "Noise levels of each question in a step, with preconditioning mean.", 1
    ),
    "loss.mean_fraction": Key(
        float, "Share of a batch that trains the mean (the MMSE token).", 0, 1
    ),
    "loss.mean_weight": Key(float, "Weight of the loss of the mean.", 0),
    "train.steps": Key(int, "Training steps.", 1),
    "train.batch": Key(int, "Slices in a step, over all devices.", 1),
    "train.accumulate": Key(int, "Microbatches in a step.", 1),
    "train.remat": Key(
        tuple,
        "Of each level of the two U-Nets: recompute it for gradients, to save memory.",
        1,
        8,
        item=Key(bool),
    ),
    "train.optimizer": Key(str, "Of the mm-CSN, `regression` and segmenter: muon or adam."),
    "train.learning_rate": Key(float, "Highest learning rate.", 0),
    "train.schedule": Key(str, "Learning rate after the warm-up: cosine or constant."),
    "train.warmup": Key(int, "Steps of the warm-up.", 0),
    "train.clip": Key(float, "Highest norm of the gradient.", 1e-9),
    "train.ema_decay": Key(float, "Decay of the averaged weights in a step.", 0, 1),
    "train.save_every": Key(int, "Steps between checkpoints.", 1),
    "train.keep_checkpoints": Key(int, "Checkpoints to keep.", 1),
    "train.log_every": Key(int, "Steps between records of the log.", 1),
    "train.max_nonfinite": Key(int, "Steps in a row without a finite loss that end the run.", 1),
    "study.methods": Key(
        tuple,
        "Beside the mm-CSN: regression, mm-gan, hi-net, mm-syn, ucdgan, cocagan.",
        0,
        6,
        item=Key(str),
    ),
    "study.width_scale": Key(
        tuple,
        "Of each method: share of its published channels.",
        0,
        6,
        item=Key(float, "", 1e-3, 4),
    ),
    "study.lr_scale": Key(
        tuple,
        "Of each method: factor on its published learning rates.",
        0,
        6,
        item=Key(float, "", 1e-3, 1e3),
    ),
    "study.patterns_per_image": Key(
        tuple,
        "Of each method: missing patterns of each image in a step.",
        0,
        6,
        item=Key(int, "", 1),
    ),
    "study.cocagan_input": Key(str, "The one modality that cocagan sees; empty for all."),
    "study.budget": Key(str, "What all methods get equally: images or seconds."),
    "study.segmenter_steps": Key(int, "Training steps of the segmentation network; 0: none.", 0),
    "study.gallery_slices": Key(int, "Slices of each of two subjects in the report.", 1),
    "study.show_paper": Key(bool, "Show the paper's Table 1 beside ours, for the same data."),
    "evaluate.algorithm1_steps": Key(int, "Steps of the paper's Algorithm 1.", 1),
    "evaluate.sampler_steps": Key(int, "Steps of the other samplers.", 1),
    "evaluate.time_grid": Key(str, "Time grid of the other samplers: log_uniform or karras."),
    "evaluate.sigma_min": Key(float, "Noise level at which samplers end.", 1e-6, 1.0),
    "evaluate.warm_start_factor": Key(
        float, "Noise level at which warm starts from the mean, in posterior scales.", 1e-3
    ),
    "evaluate.draws": Key(int, "Draws for each missing pattern, to measure calibration.", 2),
    "evaluate.draw_subjects": Key(
        int, "Subjects of validation and of test with draws; 0 for all.", 0
    ),
    "evaluate.draw_slices": Key(int, "Slices of each of them; 0 for all scored slices.", 0),
    "evaluate.block_sizes": Key(
        tuple, "Sides in pixels of the blocks whose means are scored.", 1, item=Key(int, "", 1)
    ),
    "evaluate.two_sample_steps": Key(
        int, "Training steps of the network that tells draws from truths; 0: no such test.", 0
    ),
    "evaluate.slab_slices": Key(int, "Neighbouring slices, for consistency across slices.", 2),
    "evaluate.slab_subjects": Key(int, "Subjects of each split for that; 0 for all.", 0),
    "evaluate.microbatch": Key(int, "Slices in one network evaluation, over all devices.", 1),
    "evaluate.algorithm1_subjects": Key(int, "Test subjects for Algorithm 1; 0 for all.", 0),
    "evaluate.algorithm1_slices": Key(int, "Slices of each of them; 0 for all scored slices.", 0),
    "evaluate.ridge_penalty": Key(float, "Penalty of the ridge baselines.", 0),
}

# Beginnings of the keys that weights depend on, and that a resumed run may not change.
IMAGE_KEYS = ("data.modalities", "data.grid", "data.image_std", "data.spacing")
NETWORK_KEYS = ("network.", "sde.", *IMAGE_KEYS)
SLICE_KEYS = ("data.split", "data.labels", "data.mask", "data.min_brain_fraction", "data.flip")
TASK_KEYS = ("missingness.", "loss.", "train.batch")
RUN_KEYS = (*NETWORK_KEYS, "seed", *SLICE_KEYS, *TASK_KEYS)
# Of a published method, which has its network and its loss.
METHOD_KEYS = (*IMAGE_KEYS, "seed", *SLICE_KEYS, "missingness.", "train.batch")
PARTS = {NETWORK_KEYS: "network", SLICE_KEYS: "choice of slices", TASK_KEYS: "task"}

KIND_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def check_fields(fields: dict) -> None:
    """Raises InputError, naming the key, unless `fields`, sections of values, match SCHEMA."""
    flat = dict(_flatten(fields))
    for key in flat:
        if key not in SCHEMA:
            hint = did_you_mean(key, SCHEMA)
            raise InputError(f"config.{key} does not exist{hint}: remove it.")
    for name, key in SCHEMA.items():
        if name not in flat:
            raise InputError(f"config.{name} is missing: the config must set it.")
        _check(name, flat[name], key)
        for index, item in enumerate(flat[name] if key.item else ()):
            _check(f"{name}[{index}]", item, key.item)


def check_same(fields: dict, saved: dict, where: str, keys: tuple[str, ...]) -> None:
    """Raises InputError, naming the key, if a config's `fields` differ from the `saved`
    ones of the checkpoint in `where`, in any key that starts with one of `keys`. A key of the
    network is named before others, which may follow from it."""
    wanted, found = dict(_flatten(fields)), dict(_flatten(saved))
    for key in sorted(wanted, key=lambda key: not key.startswith(NETWORK_KEYS)):
        if key.startswith(keys) and wanted[key] != found.get(key):
            part = next((name for prefix, name in PARTS.items() if key.startswith(prefix)), key)
            raise InputError(
                f"{where} was trained with another {part}: its config.{key} is "
                f"{found.get(key)!r}, and yours is {wanted[key]!r}; use that one or a new "
                "--workdir."
            )


def range_text(key: Key) -> str:
    """Returns the range of a key, "at least 1" or "0 to 1"; "" where there is none."""
    if key.least is None:
        return ""
    return f"at least {key.least}" if key.most is None else f"{key.least} to {key.most}"


def _flatten(fields: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _check(name: str, value: object, key: Key) -> None:
    allowed = {float: (int, float), tuple: (tuple, list)}.get(key.kind, (key.kind,))
    if not isinstance(value, allowed) or (key.kind is not bool and isinstance(value, bool)):
        wanted = KIND_NAMES.get(key.kind, "a tuple, like (1, 2)")
        raise InputError(f"config.{name} is {value!r}; wanted {wanted}.")
    size = len(value) if key.kind is tuple else value
    too_small = key.least is not None and not size >= key.least
    if too_small or (key.most is not None and not size <= key.most):
        what = "length" if key.kind is tuple else "value"
        raise InputError(f"config.{name} is {value!r}; wanted a {what} of {range_text(key)}.")
