r"""Table 1 on a phantom: the mm-CSN, five published methods, regression and floors.

What       The quickstart's 360 phantom subjects and network; every method sees the same
           images as the mm-CSN, in the same order, and is asked the same questions of
           the 40 test subjects. Then tumours are segmented with what each synthesised.
Source     Meng et al. 2022 (arXiv 2207.03430), Table 1 and Figure 2. The published
           methods are written from their papers' and codes' descriptions; what is
           adapted or reconstructed is said in each one's file and in the report.
Hardware   two CPU cores, at most 6 GiB; README has the hours and the numbers.
Command    python -m ummcsgm.main --config configs/table1.py --workdir runs/table1
           With table1.py:smoke everything is there and nothing is learned, in minutes.

Each published method has the share of its channels at which an answer takes as many
FLOPs as the mm-CSN's, 0.17 to 0.20 GFLOP a slice, so that all are trained in an hour on
a CPU. MM-GAN has fewer (0.04): with as many it has 9 million parameters, and stopped
learning at these rates. Since the run is short, published learning rates are multiplied
by the best of 2, 6, 20 and 60 on validation subjects after 2500 steps, at a quarter of
the channels; for MM-SYN that was 60, at which it diverges here, so 20.

All see the same images. Of each the mm-CSN and regression are asked four questions in a
step, and a published method as many as make its step take about as long, and one at
least: Hi-Net's and MM-SYN's with one take longer. MM-SYN's loss has all outputs of all
latents in any case.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

QUICKSTART = pathlib.Path(__file__).with_name("quickstart.py")
METHODS = {  # share of the published channels, factor on rates, questions an image
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
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    config.update_from_flattened_dict(
        {
            "data.labels": True,
            "missingness.keep_one_seen": True,  # what the published methods can be asked
            "missingness.size_probabilities": "0.8,0.1,0.1",
            "missingness.patterns_per_image": 4,
            "loss.mean_fraction": 0.875,  # near to regression; draws learn from the rest
            "train.steps": 2000,
            "study.methods": tuple(METHODS),
            "study.width_scale": tuple(own[0] for own in METHODS.values()),
            "study.lr_scale": tuple(own[1] for own in METHODS.values()),
            "study.patterns_per_image": tuple(own[2] for own in METHODS.values()),
            "study.segmenter_steps": 1500,
        }
        | (SMOKE if preset else {})
    )
    return config
