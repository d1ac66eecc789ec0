r"""The phantom at 1.6 times the quickstart's resolution: draws in which anatomy can be seen.

What       360 phantom subjects (280 / 40 / 40) of 104 x 104 x 40 voxels of 2.3 x 2.3 x 3.9 mm;
           one mm-CSN for all 15 missing patterns; Table 1's protocol on the test subjects.
Source     Meng et al. 2022 (arXiv 2207.03430) for the method; the recipe is the quickstart's, with
           one level more and a longer run.
Hardware   two CPU cores, 2 GiB, 70 minutes, of which training takes 61; docs/evaluation.md has the
           numbers.
Command    python -m ummcsgm.main --config configs/phantom_large.py \
               --workdir runs/phantom_large
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("base.py")


def get_config() -> ConfigDict:
    """The quickstart's config on a finer grid, with a longer run."""
    config = runpy.run_path(str(BASE))["get_config"]()
    config.update_from_flattened_dict(
        {
            "phantom.shape": (104, 104, 40),
            "data.grid": (96, 80),
            "network.widths": (64, 128, 128),
            "network.blocks": (1, 1, 1),
            "network.residual_widths": (48, 96, 96),
            "train.steps": 7000,
            "train.remat": (False, False, False),
            "train.ema_decay": 0.998,
            "train.warmup": 300,
        }
    )
    return config
