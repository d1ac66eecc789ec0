"""A whole run made small: subjects, a config, and the command line in this process."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from absl.testing import flagsaver
from ml_collections import ConfigDict

from ummcsgm import main
from ummcsgm.data.nifti import write_new
from ummcsgm.evaluation import evaluate  # noqa: F401

# All of the program, though main alone is called: what it imports defines flags.
from ummcsgm.inference import complete  # noqa: F401
from ummcsgm.reporting import page  # noqa: F401
from ummcsgm.training import train  # noqa: F401

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart.py"
MODALITIES = ("flair", "t1", "t1c", "t2")
TOKENS = {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"}
SHAPE = (16, 20, 6)  # X, Y, Z on disk
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -3, 0, 40], [0, 0, 4, -7], [0, 0, 0, 1]])
NAMES = ("P1", "P2", "P3", "P4", "P5")

TINY = {
    "data.split": (3, 0, 2),
    "data.grid": (16, 16),
    "data.processes": 1,
    "network.widths": (32,),
    "network.blocks": (1,),
    "train.remat": (False,),
    "network.patch": 4,
    "network.pixel_width": 8,
    "network.pixel_layers": 1,
    "network.context_channels": 2,
    "network.residual_widths": (32,),
    "train.steps": 150,
    "train.batch": 4,
    "train.warmup": 1,
    "train.save_every": 60,
    "train.log_every": 25,
    "train.ema_decay": 0.5,
    "evaluate.algorithm1_steps": 3,
    "evaluate.sampler_steps": 2,
    "evaluate.draws": 4,
    "evaluate.draw_subjects": 1,
    "evaluate.draw_slices": 2,
    "evaluate.slab_slices": 4,
    "evaluate.slab_subjects": 1,
    "evaluate.microbatch": 8,
    "evaluate.algorithm1_subjects": 1,
    "evaluate.algorithm1_slices": 2,
}

# The paper's output and objective, but for the MMSE token and the weights of times.
EDM = {
    "network__preconditioning": "edm",
    "loss__weighting": "conditional",
    "loss__levels_per_question": 1,
    "loss__sigma_max_factor": 0.0,
    "loss__mean_fraction": 0.3,
}


# Without XLA's optimizations: here compiling takes longer than computing.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "2"}


def quickstart() -> ConfigDict:
    """The config that a user starts from."""
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def tiny_config(folder: pathlib.Path, **changes) -> ConfigDict:
    """TINY for the subjects in `folder`; `changes` have __ for the dot of a key."""
    config = quickstart()
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict({"data.folder": str(folder), **TINY, **changes})
    return config


def write_config(path: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """A config file, as a user would give it to --config."""
    path.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return path


def brain(shape=SHAPE) -> np.ndarray:
    """An ellipse in every slice but the lowest, off the middle of the frame."""
    x, y, z = np.indices(shape)
    inside = ((x - 7) / 6.5) ** 2 + ((y - 9) / 7.5) ** 2 <= 1
    return inside & (z > 0)


def image(name: str, modality: str) -> np.ndarray:
    """int16 [X, Y, Z]: the same tissue in each modality, at a level of its own."""
    rng = np.random.default_rng([ord(letter) for letter in name])
    tissue = rng.normal(size=SHAPE)
    noise = np.random.default_rng([*name.encode(), *modality.encode()])
    level = 300.0 * (1 + MODALITIES.index(modality))
    contrast = (60, -50, 80, 70)[MODALITIES.index(modality)]
    values = level + contrast * tissue + 5 * noise.normal(size=SHAPE)
    return np.where(brain(), np.clip(values, 1, None), 0).astype(np.int16)


def path_of(folder: pathlib.Path, name: str, modality: str) -> pathlib.Path:
    """Where a file of the layout brats19 lies; odd subjects are HGG."""
    group = "HGG" if int(name[1:]) % 2 else "LGG"
    return folder / group / name / f"{name}_{TOKENS[modality]}.nii.gz"


def files_under(folder: pathlib.Path) -> dict[str, bytes]:
    """The content of every file, by its path below `folder`."""
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def write_subjects(folder: pathlib.Path, names=NAMES) -> pathlib.Path:
    """Complete subjects in the layout brats19."""
    for name in names:
        for modality in MODALITIES:
            write_new(path_of(folder, name, modality), image(name, modality), AFFINE)
    return folder


def run_main(*arguments) -> int:
    """The exit code of the command line, run in this process."""
    before, argv = flagsaver.save_flag_values(), sys.argv
    thorough = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    sys.argv = ["ummcsgm", *map(str, arguments)]
    try:
        main.run()
    except SystemExit as stop:
        return 0 if stop.code is None else stop.code
    finally:
        sys.argv = argv
        jax.config.update("jax_disable_most_optimizations", thorough)
        flagsaver.restore_flag_values(before)
    return 0


def start_main(*arguments, **options) -> subprocess.Popen:
    """The command line as a process of its own, on two devices as the tests are."""
    command = [sys.executable, "-m", "ummcsgm.main", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def printed(module, monkeypatch, capsys, *flags):
    """What a benchmark prints last when it is run with `flags`."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, flags)])
    module.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])
