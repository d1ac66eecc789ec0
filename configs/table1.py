r"""Table 1 on a phantom: the mm-CSN, five published methods, regression and floors.

What       The quickstart's 360 phantom subjects and network. Every method trains on the
           same images in the same order, and completes the same missing patterns of
           the 40 test subjects. Then tumours are segmented on each method's images.
Source     Meng et al. 2022 (arXiv 2207.03430), Table 1 and Figure 2. The published
           methods are written from their papers' and codes' descriptions; each file
           and the report say what is adapted or reconstructed.
Hardware   two CPU cores, at most 6 GiB; docs/ has the hours and the numbers.
Command    python -m ummcsgm.main --config configs/table1.py --workdir runs/table1
           table1.py:smoke runs every part in minutes and learns nothing.

The width of each published method is chosen so that one slice costs as many FLOPs as
with the mm-CSN, 0.17 to 0.20 GFLOP, and an hour on a CPU trains it. MM-GAN has fewer
(0.04): with as many it has 9 million parameters, and stopped learning at these rates.
The run is short, so published learning rates are multiplied by the best of 2, 6, 20 and
60 on validation subjects after 2500 steps, at a quarter of the channels. For MM-SYN the
best was 60, but here it diverges at 60, so it has 20.

The mm-CSN and regression train on four missing patterns of each image in a step, a
published method on as many as make its step take about as long, and at least on one:
Hi-Net's and MM-SYN's steps take longer even so. MM-SYN's loss always has all outputs of
all latents.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("base.py")
METHODS = {  # width_scale, lr_scale, patterns_per_image
    "regression": (1.0, 1.0, 4),
    "mm-gan": (0.25, 20.0, 4),
    "ucdgan": (0.09375, 60.0, 1),
    "hi-net": (0.375, 20.0, 1),
    "mm-syn": (0.1875, 20.0, 1),
    "cocagan": (0.25, 20.0, 2),
}
SMOKE = {
    "phantom.subjects": 29,
    "phantom.shape": (64, 64, 16),
    "train.steps": 20,
    "train.warmup": 5,
    "train.log_every": 10,
    "study.segmenter_steps": 20,
    "evaluate.algorithm1_steps": 5,
    "evaluate.draws": 4,
    "evaluate.algorithm1_subjects": 1,
    "evaluate.algorithm1_slices": 1,
    "evaluate.slab_subjects": 1,
}


def get_config(preset: str = "") -> ConfigDict:
    """The config of the phantom's Table 1, or of a smoke of it."""
    if preset not in ("", "smoke"):
        raise ValueError(f"there is no preset {preset!r}: wanted smoke, or none")
    widths, rates, patterns = zip(*METHODS.values(), strict=True)
    config = runpy.run_path(str(BASE))["get_config"]()
    config.update_from_flattened_dict(
        {
            "data.labels": True,
            "missingness.keep_one_seen": True,  # as the published methods need
            "missingness.size_probabilities": "0.8,0.1,0.1",
            "missingness.patterns_per_image": 4,
            "loss.levels_per_question": 1,  # for each of the four questions of an image
            "train.steps": 2000,
            "study.methods": tuple(METHODS),
            "study.width_scale": widths,
            "study.lr_scale": rates,
            "study.patterns_per_image": patterns,
            "study.segmenter_steps": 1500,
        }
        | (SMOKE if preset else {})
    )
    return config
