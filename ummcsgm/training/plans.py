"""What a run is told of itself, beside the mathematics: plain facts, no config."""

import dataclasses
import pathlib

import optax

from ummcsgm.data.subjects import SliceView


@dataclasses.dataclass(frozen=True)
class ImageSpace:
    """The complete modality space C, by name and in order, and the network's view."""

    modalities: tuple[str, ...]
    view: SliceView

    @property
    def grid(self) -> tuple[int, int]:
        """H, W."""
        return self.view.grid


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """How parameters move: the optimizer, the EMA and the gradient accumulation."""

    optimizer: optax.GradientTransformation
    ema_decay: float
    accumulate: int  # microbatches a step


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The length and the rhythm of training, in steps, and what a batch is."""

    seed: int
    batch: int  # examples, over all devices
    flip: bool  # left and right
    steps: int
    save_every: int
    keep_checkpoints: int  # checkpoints
    log_every: int
    max_nonfinite: int  # steps in a row that may be not finite


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """How a training run is watched."""

    workdir: pathlib.Path  # where its log lies
    least: float | None  # seconds of a step at the devices' peak, if that is known
    trace: bool  # of some steps, for a profiler


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What evaluation asks and how much of it; 0 means all."""

    seed: int
    algorithm1_steps: int  # of Algorithm 1, and of every sampler on a uniform grid
    sampler_steps: int  # steps of the other samplers
    sigma_min: float  # the noise level at which they end
    warm_start_sigma: float  # the one at which `warm` begins
    draws: int  # of each question, to measure what is not known
    draw_subjects: int  # that are so measured
    draw_slices: int  # of each of these subjects
    slab_slices: int  # neighbouring slices, to measure how they go together
    slab_subjects: int  # that are so measured
    microbatch: int  # examples in one network evaluation, over the local devices
    algorithm1_subjects: int
    algorithm1_slices: int  # of each of these subjects
    ridge_penalty: float  # of the ridge floors
