"""What was fitted on validation subjects, where draws are made of other subjects.

`evaluate` leaves it in the workdir beside the checkpoint that it was fitted with.
"""

import pathlib

from ummcsgm.answer import Trained
from ummcsgm.files import read_json
from ummcsgm.plans import Scoring
from ummcsgm.types import InputError

FILE = "calibration.json"


def read_fits(
    workdir: pathlib.Path, trained: Trained, sampler: str, scoring: Scoring
) -> dict[str, dict]:
    """By modality, its factor on the spread of draws, and how well it is known.

    Empty where nothing was fitted for these very parameters, this sampler and its
    number of steps: a factor of other draws is none of these.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return {}
    told = read_json(path)
    wanted = {
        "parameters_sha256": trained.digest,
        "sampler": sampler,
        "few": scoring.few,
    }
    if not isinstance(told, dict) or not isinstance(told.get("fits"), dict):
        raise InputError(f"{path} is damaged: --mode evaluate makes it again.")
    same = all(told.get(key) == value for key, value in wanted.items())
    return told["fits"] if same else {}
