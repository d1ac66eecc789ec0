"""The training step and the samplers, lowered for GPUs and TPUs on this CPU: none needs a CPU.

They are lowered as they are mapped over devices, with the sums over devices that an accelerator
makes. `jax.export` refuses callbacks into Python, primitives that a platform has no rule for, and
unknown custom calls. The CPU's own libraries are known to it, so the program's text is read for
custom calls too.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import EDM, tiny_config

from ummcsgm.benchmarks.networks import make_untrained_model
from ummcsgm.config import build
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.diffusion.preconditioning import PRECONDITIONINGS
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import make_mean_predictor, make_sampler, slice_addresses
from ummcsgm.training.loop import with_stop_flag
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

PLATFORMS = ("cuda", "tpu")
REFUSED = (ValueError, NotImplementedError, AssertionError)
ABOUT_0 = {key.replace("__", "."): value for key, value in EDM.items()}
PAPER = ABOUT_0 | {
    "loss.uniform_fraction": 1.0,
    "loss.weighting": "paper",
    "network.conditioning": "decoder",
    "network.predict_variance": False,
    "loss.mean_fraction": 0.0,
}
CONFIGS = {  # what is changed of the quickstart's
    "quickstart": {},
    "edm": ABOUT_0,
    "paper": PAPER,
    "accumulated": {"train.accumulate": 2, "train.remat": (True,), "network.dtype": "bfloat16"},
    "attention": {"network.attention_max_grid": 4, "network.neighbour_slices": 1},
    "patterns": {"missingness.patterns_per_image": 2, "train.schedule": "constant"},
    **{f"sde {name}": {"sde.name": name} for name in build.SDES},
    **{f"weighting {name}": {"loss.weighting": name} for name in build.WEIGHTINGS},
}
BEFORE_STEPS = {"edm": [], "mean": [False]}  # whether these programs loop
SAMPLERS = ("mean", "warm", "euler_maruyama")
MORE_SAMPLERS = ("ddim", "ancestral", "heun", "dpmpp2m", "sde_dpmpp2m", "unipc2")
MORE_SAMPLERS += ("predictor_corrector",)


def each(names, quick):
    """A case for each name; those not in `quick` are slow."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in quick), id=n) for n in names]


def lower(function, *arguments):
    """The programs of `function` by platform; fails if one of them has a custom call."""
    programs = {}
    for platform in PLATFORMS:
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
        programs[platform] = exported
        calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
        assert not calls, f"{platform} has no {calls}"
    return programs


@pytest.fixture
def accelerator(monkeypatch):
    """The code that asks which devices there are is told that these are not CPUs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def lower_step(config, change=lambda step: step):
    """The programs of the loop's step, mapped over two devices, with a `change`."""
    method, network = build_trainable(config, "mm-csn"), build.build_model(config).network
    state = jax.eval_shape(method.start, jax.random.key(0))
    shape = (2, 2, *build.build_space(config).grid, network.channels())
    present, valid = np.ones((2, 2, 4), bool), np.ones((2, 2), bool)
    batch = Batch(np.zeros(shape, np.float32), present, valid)
    step = devices.pmap_step(with_stop_flag(change(method.step)))
    arguments = jax.random.key(0), state, (batch, devices.per_device_flag(False))
    return lower(lambda *arguments: step(*arguments), *arguments)


@pytest.mark.parametrize("name", each(CONFIGS, ("quickstart", "edm")))
def test_a_training_step_is_lowered_for_accelerators(name, accelerator):
    changes = {key.replace(".", "__"): value for key, value in CONFIGS[name].items()}
    programs = lower_step(tiny_config("", **changes))
    for platform, program in programs.items():
        assert program.platforms == (platform,) and program.nr_devices == 2
        assert "all_reduce" in program.mlir_module()


def log_by_callback(step):
    def logged(key, state, batch):
        state, metrics = step(key, state, batch)
        jax.debug.callback(print, metrics["loss"])
        return state, metrics

    return logged


def metric_of(function):
    """A change of a step: its loss is `function` of it."""

    def change(step):
        def changed(key, state, batch):
            state, metrics = step(key, state, batch)
            return state, metrics | {"loss": function(metrics["loss"])}

        return changed

    return change


SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
CALLBACK, UNKNOWN = "different from the lowering platform", "custom calls whose targets have no"
PLANTED = {  # a change of the step, and what is said of it
    "a callback": (log_by_callback, CALLBACK),
    "a result from Python": (
        metric_of(lambda loss: jax.pure_callback(lambda x: x, SCALAR, loss)),
        CALLBACK,
    ),
    "a CPU library": (
        metric_of(jax.ffi.ffi_call("lapack_spotrf_ffi", SCALAR)),
        "cuda has no {'lapack_spotrf_ffi'}",
    ),
    "an unknown library": (metric_of(jax.ffi.ffi_call("of_this_computer", SCALAR)), UNKNOWN),
}


@pytest.mark.parametrize("name", each(PLANTED, ("a callback", "a CPU library")))
def test_a_step_that_needs_the_cpu_is_red(name, accelerator):
    change, said = PLANTED[name]
    with pytest.raises(REFUSED, match=said):
        lower_step(tiny_config(""), change)


@pytest.fixture
def programs(monkeypatch, accelerator):
    """The programs that predictors and samplers would compile; they return zeros."""
    found = []

    def shard_over_rows(function):
        def run(params, *arrays):
            program = lower(function, params, *arrays)
            found.append(program)
            leaves = [np.zeros(leaf.shape, leaf.dtype) for leaf in program["tpu"].out_avals]
            return jax.tree.unflatten(program["tpu"].out_tree, leaves)

        return run

    monkeypatch.setattr(devices, "shard_over_rows", shard_over_rows)
    return found


def draw_once(config, sampler):
    """Asks a network of this config for its mean, and then for a draw of `sampler`."""
    trained, options = make_untrained_model(config), build.build_evaluation_options(config)
    channels = trained.model.network.channels()
    images = np.zeros((2, *trained.space.grid, channels), np.float32)
    missing = np.array([[True, False, False, False], [False, True, True, False]])
    estimate = make_mean_predictor(trained, options)(images, missing)
    if sampler != "mean":
        addresses = slice_addresses("P1", np.arange(2), draw=0)
        next(make_sampler(trained, sampler, options, rho=0.5)(images, missing, addresses, estimate))


@pytest.mark.parametrize("preconditioning", each(PRECONDITIONINGS, ("mean",)))
@pytest.mark.parametrize("sampler", each((*SAMPLERS, *MORE_SAMPLERS), SAMPLERS))
def test_a_sampler_is_lowered_for_accelerators(sampler, preconditioning, programs):
    """A program for the mean; for draws, one of what all steps share if the score is about the
    mean, and one of the steps."""
    draw_once(tiny_config("", **(EDM if preconditioning == "edm" else {})), sampler)
    loops = [False] if sampler == "mean" else [False, *BEFORE_STEPS[preconditioning], True]
    for program in programs:
        assert {exported.platforms for exported in program.values()} == {("cuda",), ("tpu",)}
    assert ["stablehlo.while" in program["tpu"].mlir_module() for program in programs] == loops


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_warm_draws_of_each_config_are_lowered(name, programs):
    changes = {key.replace(".", "__"): value for key, value in CONFIGS[name].items()}
    config = tiny_config("", **changes)
    draw_once(config, "warm")
    assert len(programs) == 2 + len(BEFORE_STEPS[config.network.preconditioning])


@pytest.mark.parametrize("preconditioning, method", [("edm", "__call__"), ("mean", "encode")])
def test_a_network_that_needs_the_cpu_is_red(preconditioning, method, programs, monkeypatch):
    config = tiny_config("", **(EDM if preconditioning == "edm" else {}))
    network = type(build.build_model(config).network)
    honest = getattr(network, method)

    def logged(self, *arguments, **named):
        jax.debug.callback(print, 0)
        return honest(self, *arguments, **named)

    trained = make_untrained_model(config)
    monkeypatch.setattr(network, method, logged)
    images = np.zeros((1, *trained.space.grid, 4), np.float32)
    predict = make_mean_predictor(trained, build.build_evaluation_options(config))
    with pytest.raises(REFUSED, match=CALLBACK):
        predict(images, np.array([[True, False, False, False]]))
