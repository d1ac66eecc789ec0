"""What a config cannot ask of a preconditioning is refused by its key."""

import pathlib
import runpy

import jax
import numpy as np
import pytest
from tiny_run import EDM, ROOT, tiny_config

from ummcsgm.config import build, build_data
from ummcsgm.config.build_methods import build_trainable, regression_config
from ummcsgm.config.schema import RUN_KEYS, check_same
from ummcsgm.models.mm_csn import MMCSN
from ummcsgm.models.residual_mm_csn import ResidualMMCSN
from ummcsgm.types import InputError

TWO = {"network__widths": (32, 32), "network__blocks": (1, 1), "train__remat": (False, False)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network__preconditioning": "means"},
            r"network.preconditioning is 'means' \(did you mean mean\?\); wanted one of edm, mean",
        ),
        ({"loss__mean_fraction": 0.3}, "loss.mean_fraction is 0.3: .*set it to 1"),
        ({"network__patch": 3, "data__grid": (15, 18)}, "network.patch is 3: .*a power of 2"),
        ({"network__patch": 6, "data__grid": (18, 24)}, "network.patch is 6: .*a power of 2"),
        (
            {"network__residual_widths": (32, 32)},
            "network.residual_widths has 2 levels .* 1",
        ),
        (TWO, "network.residual_widths has 1 levels .* 2: wanted one"),
        (
            {"network__residual_widths": (24,)},
            r"network.residual_widths is \(24,\): wanted multiples of 16",
        ),
        (
            {"network__residual_widths": (48,)},
            r"network.residual_widths is \(48,\): .* 32 at",
        ),
        (EDM | {"loss__weighting": "bands"}, "loss.weighting is 'bands'.*'edm' set it to one of"),
        (
            EDM | {"loss__levels_per_question": 4},
            "loss.levels_per_question is 4.*set it to 1",
        ),
        (EDM | {"loss__sigma_max_factor": 10.0}, "loss.sigma_max_factor is 10.*'edm' set it to 0"),
        (
            {"loss__levels_per_question": 0},
            "loss.levels_per_question is 0; wanted a value of at least 1",
        ),
        (
            {"loss__sigma_max_factor": 0.5},
            "loss.sigma_max_factor is 0.5: .*wanted 1 or more .*, or 0",
        ),
        (
            {"evaluate__sigma_min": 1000.0},
            "evaluate.sigma_min is 1000.0; wanted a value",
        ),
        (
            {"loss__sigma_max_factor": -1.0},
            "loss.sigma_max_factor is -1.0; wanted a value",
        ),
        ({"evaluate__warm_start_factor": 0.0}, "evaluate.warm_start_factor is 0.0; wanted a value"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(changes, said):
    with pytest.raises(InputError, match=f"^config.{said}"):
        build.check_config(tiny_config("", **changes), 1)


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({}, ResidualMMCSN),
        ({"loss__weighting": "conditional"}, ResidualMMCSN),
        ({"loss__sigma_max_factor": 0.0, "loss__levels_per_question": 1}, ResidualMMCSN),
        (TWO | {"network__residual_widths": (16, 32)}, ResidualMMCSN),
        (EDM, MMCSN),
        (EDM | {"network__patch": 6, "data__grid": (18, 24)}, MMCSN),
        (EDM | {"network__residual_widths": (8, 8, 8)}, MMCSN),
        (EDM | {"loss__mean_fraction": 0.0, "loss__weighting": "paper"}, MMCSN),
    ],
)
def test_a_network_is_of_the_kind_that_is_named(changes, network):
    config = tiny_config("", **changes)
    build.check_config(config, 1)
    assert isinstance(build.build_model(config).network, network)


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "configs").glob("*.py")])
def test_every_config_that_is_shipped_can_be_built(name):
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    build.check_config(config, 1)
    assert config.network.preconditioning == "mean" and config.loss.mean_fraction == 1


@pytest.mark.parametrize(("first", "second"), [(EDM, {}), ({}, EDM)])
def test_a_checkpoint_of_another_preconditioning_is_refused_by_its_key(first, second):
    """As the commands that take a config with a workdir do, and as training goes on."""
    workdir = pathlib.Path("run")
    saved, asked = (tiny_config("", **changes) for changes in (first, second))
    said = "^run was trained with another network: its config.network.preconditioning is '"
    said += f"{saved.network.preconditioning}'.*{asked.network.preconditioning}"
    with pytest.raises(InputError, match=said):
        build_data.compatible_config(asked, saved, workdir)
    with pytest.raises(InputError, match=said):
        check_same(*map(build.config_to_json, (asked, saved)), str(workdir), RUN_KEYS)
    assert build_data.compatible_config(saved, saved, workdir) == build_data.with_absolute_folder(
        saved
    )


def test_regression_is_the_part_of_the_network_that_predicts_the_mean(quick_compile):
    """Its parameters are as many and as large, and it trains on the mean alone."""
    config = tiny_config("")
    whole = build_trainable(config, "mm-csn")
    alone = build_trainable(regression_config(config), "mm-csn")
    states = [jax.eval_shape(method.start, jax.random.key(0)) for method in (whole, alone)]
    ours, theirs = (state.params["params"] for state in states)
    assert ours.keys() == {"mean_network", "encoder", "residual"}
    shapes = jax.tree.map(lambda leaf: leaf.shape, ours["mean_network"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, theirs)
    assert build.build_objective(config).proposal.mean_fraction == 0  # beside it, not in its place
    objective = build.build_objective(regression_config(config))
    assert objective.proposal.mean_fraction == 1 and objective.levels_per_question == 1
    sizes = [sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (ours, theirs)]
    assert sizes[0] > sizes[1]
