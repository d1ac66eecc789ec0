r"""Quickstart: the whole study on a phantom, on a laptop's CPU.

What       360 phantom subjects (280 / 40 / 40) of 64 x 64 x 40 voxels; one mm-CSN for
           all 15 missing patterns; Table 1's protocol on the test subjects.
Source     Meng et al. 2022 (arXiv 2207.03430) for the method. Ours: the score about the
           network's own mean, the noise levels, Muon, a network for minutes of CPU.
Hardware   two CPU cores, at most 6 GiB.
Command    python -m ummcsgm.main --config configs/quickstart.py \
               --workdir runs/quickstart

A short run needs more patterns with one missing modality, and an EMA whose horizon
fits the run. On a CPU many steps of a shallow network learn more than few steps of a
deep one in the same time.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("base.py")


def get_config() -> ConfigDict:
    """The quickstart's config: the base config itself."""
    return runpy.run_path(str(BASE))["get_config"]()
