"""What was fitted on validation subjects, where draws are made of other subjects.

`evaluate` leaves it in the workdir beside the checkpoint that it was fitted with.
"""

import math
import pathlib
from typing import NamedTuple

from ummcsgm.diffusion.correlated_noise import check_rho
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.training.plans import EvaluationOptions
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json

FILE = "calibration.json"
GRID = ("sampler_steps", "sigma_min", "warm_start_sigma")  # options that decide a draw


class Calibration(NamedTuple):
    """`fits` has, by modality, the factor on the spread of draws and how well it is
    known; `rho` is how their noise correlates along z."""

    fits: dict[str, dict]
    rho: float


def read_calibration(
    workdir: pathlib.Path, trained: TrainedModel, sampler: str, scoring: EvaluationOptions
) -> Calibration:
    """What was fitted for these very parameters: nothing, and 0, if nothing was.

    Factors are those of one sampler, its number of steps and their noise levels: other
    draws have none. Says so where something was fitted, and for others.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / FILE
    told = read_json(path) if path.is_file() else {"parameters_sha256": None}
    try:
        if told["parameters_sha256"] != trained.digest:
            _say(path, sampler, path.is_file(), "another checkpoint")
            return Calibration({}, 0.0)
        fits = {name: dict(fit) for name, fit in told["fits"].items()}
        if not all(0 < fit["factor"] < math.inf for fit in fits.values()):
            raise ValueError("a factor is none")
        rho = float(told["rho"])
        check_rho(rho)
        wanted = {"sampler": sampler} | {key: getattr(scoring, key) for key in GRID}
        same = all(told[key] == value for key, value in wanted.items())
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} is damaged: --mode evaluate makes it again.") from None
    _say(path, sampler, not same, "other draws")
    return Calibration(fits if same else {}, rho)


def _say(path: pathlib.Path, sampler: str, other: bool, whose: str) -> None:
    if other and sampler != "mean":
        print(
            f"the spread of draws is not recalibrated: {path} is of {whose}; --mode "
            "evaluate fits it.",
            flush=True,
        )
