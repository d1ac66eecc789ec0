"""What was fitted is read for the very draws that it was fitted for, or refused."""

import json
import types

import pytest

from ummcsgm.inference.predictor import Calibration, read_calibration
from ummcsgm.types import InputError

TRAINED = types.SimpleNamespace(digest="abc")
SCORING = types.SimpleNamespace(sampler_steps=12, sigma_min=0.01, warm_start_sigma=3.0)
FITS = {"t1c": {"factor": 1.25, "subjects": 5, "low": 1.1, "high": 1.4}}
TOLD = {"parameters_sha256": "abc", "sampler": "warm", "sampler_steps": 12}
TOLD |= {"sigma_min": 0.01, "warm_start_sigma": 3.0}
TOLD |= {"fits": FITS, "rho": 0.625}


def read(folder, **changes):
    (folder / "calibration.json").write_text(json.dumps(TOLD | changes))
    return read_calibration(folder, TRAINED, "warm", SCORING)


def test_factors_are_of_these_parameters_and_draws_and_rho_of_these_parameters(tmp_path, capsys):
    nothing = Calibration({}, 0.0)
    assert read_calibration(tmp_path, TRAINED, "warm", SCORING) == nothing
    assert read(tmp_path) == Calibration(FITS, 0.625)
    assert capsys.readouterr().out == ""
    assert read(tmp_path, parameters_sha256="abd") == nothing
    assert read(tmp_path, sampler="ddim") == Calibration({}, 0.625)
    for other in ({"sampler_steps": 13}, {"sigma_min": 0.05}, {"warm_start_sigma": 1.0}):
        capsys.readouterr()
        assert read(tmp_path, **other) == Calibration({}, 0.625)
        assert "not recalibrated" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        *({"rho": rho} for rho in (1.5, "much", None, float("nan"))),
        *({"fits": fits} for fits in (None, [1], {"t1c": 2.0}, {"t1c": {}})),
        *(
            {"fits": {"t1c": {"factor": factor}}}
            for factor in ("wide", float("nan"), float("inf"), 0.0, -1.0)
        ),
        {"sampler_steps": None, "fits": 3},
    ],
)
def test_what_is_damaged_is_refused_by_the_name_of_its_file(tmp_path, damage):
    with pytest.raises(InputError, match=r"calibration.json is damaged: --mode eval"):
        read(tmp_path, **damage)
