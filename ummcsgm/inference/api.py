"""The Python interface: `ummcsgm.load(workdir)` completes volumes without the command line.

It computes what `--mode complete` writes: the same mean and draws, clipped and in
the same units.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ummcsgm.config import build
from ummcsgm.data import nifti
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.subjects import PreparedSubject
from ummcsgm.diffusion.samplers import SAMPLERS
from ummcsgm.inference.draw_statistics import quantile
from ummcsgm.inference.inputs import SubjectInputs, check_modalities, find_incomplete, load_inputs
from ummcsgm.inference.outputs import output_units, output_volume
from ummcsgm.inference.predictor import TrainedModel, load_trained_model, steps_key
from ummcsgm.inference.subject_posterior import (
    SubjectPosterior,
    load_posterior,
    predict_mean,
    sample_draws,
    summarise,
)
from ummcsgm.types import Array, InputError

Volume = Any  # an array [X, Y, Z] or a nibabel image


@dataclass(frozen=True)
class Completion:
    """The posterior of a subject's missing modalities, each a dict modality -> volume.

    Volumes are float32 arrays [X, Y, Z] if arrays were given, else nibabel images on the
    input's own grid, with its affine and header. They are in scanner units, clipped to the
    range of the training cohort, 0 outside the brain.

    Attributes:
        missing: The names of the modalities that were completed.
        mean: The network's posterior mean, one evaluation a slice: the best guess.
        sd: The standard deviation of the draws; of `Predictor.mean`, the one that the
            network predicts, or None if it predicts none. None for a single draw.
        draws: The draws of `Predictor.sample`, joint over the missing modalities.
    """

    missing: tuple[str, ...]
    mean: dict[str, Volume]
    sd: dict[str, Volume] | None
    _draws: Array = field(repr=False)  # [K, S, H, W, A] on the network's grid
    _to_volumes: Callable[[Array, str], dict[str, Volume]] = field(repr=False)

    @property
    def draws(self) -> list[dict[str, Volume]]:
        """The draws, made into volumes when they are read."""
        return [self._to_volumes(draw, "") for draw in self._draws]

    def quantile(self, q: float) -> dict[str, Volume]:
        """Returns the volumes that the truth is below with probability `q`, in (0, 1).

        Where the draws are too few to reach `q`, it is the end of Student's prediction interval.

        Raises:
            InputError: `q` is not in (0, 1), or there are fewer than 2 draws.
        """
        if len(self._draws) < 2:
            raise InputError(
                f"a quantile needs at least 2 draws, and there are {len(self._draws)}: call "
                "predictor.sample(volumes, draws=8)."
            )
        return self._to_volumes(quantile(self._draws, q).astype(np.float32), "quantile")


class Predictor:
    """A trained network that completes the missing modalities of one subject.

    `volumes` are, in every method, one of:

    - a dict of modality -> array [X, Y, Z] in RAS+ orientation (x grows to the patient's
      right, y to anterior, z to superior), background exactly 0; `spacing` is the (x, y, z)
      size of the voxels in mm, that of the training data if it is None;
    - a dict of modality -> nibabel image (NIfTI), in any orientation;
    - a dict of modality -> path of a NIfTI file;
    - the path of one subject's folder, in any layout.

    Missing are the modalities that are not given, and those named by `missing`. `mask` is
    the brain mask, of the same kind as the volumes, for a network that was trained with
    brain masks. Draws depend on the seed and on `name`; for a folder it is the subject's.

    >>> import ummcsgm
    >>> predictor = ummcsgm.load(workdir)
    >>> predictor.modalities
    ('flair', 't1', 't1c', 't2')
    >>> completion = predictor.mean(volumes, missing=("t1c",))
    >>> completion.mean["t1c"].shape == volumes["t1"].shape
    True
    >>> completion = predictor.sample(volumes, draws=4, seed=0, missing=("t1c",))
    >>> len(completion.draws), sorted(completion.sd)
    (4, ['t1c'])
    >>> low, high = completion.quantile(0.05)["t1c"], completion.quantile(0.95)["t1c"]
    >>> bool((low <= high).all())
    True
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self._trained = load_trained_model(self.workdir)
        self._posteriors: dict[tuple, SubjectPosterior] = {}  # each compiled once

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of the modalities that the network knows."""
        return self._trained.space.modalities

    def mean(
        self,
        volumes: Mapping[str, Volume] | str | os.PathLike,
        *,
        missing: str | Collection[str] = (),
        mask: Volume | None = None,
        spacing: tuple[float, float, float] | None = None,
        name: str = "subject",
    ) -> Completion:
        """Returns the posterior mean of every missing modality, without draws.

        Raises:
            InputError: the volumes cannot be completed; the message says why.
        """
        return self._complete(volumes, 0, self._posterior("mean"), missing, mask, spacing, name)

    def sample(
        self,
        volumes: Mapping[str, Volume] | str | os.PathLike,
        draws: int = 8,
        seed: int = 0,
        sampler: str = "warm",
        steps: int | None = None,
        *,
        missing: str | Collection[str] = (),
        mask: Volume | None = None,
        spacing: tuple[float, float, float] | None = None,
        name: str = "subject",
    ) -> Completion:
        """Returns the posterior mean, and draws of all missing modalities together.

        `steps` are those of the sampler, or of the config if it is None.

        Raises:
            InputError: the volumes cannot be completed, or there is no such sampler; the
                message says why.
        """
        if draws < 1:
            raise InputError(f"draws is {draws}; wanted at least 1.")
        if sampler not in SAMPLERS:
            raise InputError(f"sampler is {sampler!r}; wanted one of {', '.join(SAMPLERS)}.")
        posterior = self._posterior(sampler, seed, steps)
        return self._complete(volumes, draws, posterior, missing, mask, spacing, name)

    def _posterior(self, sampler: str, seed: int = 0, steps: int | None = None) -> SubjectPosterior:
        key = (sampler, seed, steps)
        if key not in self._posteriors:
            options = replace(build.build_evaluation_options(self._trained.config), seed=seed)
            if steps is not None:
                options = replace(options, **{steps_key(sampler): steps})
            self._posteriors[key] = load_posterior(self.workdir, self._trained, sampler, options)
        return self._posteriors[key]

    def _complete(
        self, volumes, draws: int, posterior: SubjectPosterior, missing, mask, spacing, name: str
    ) -> Completion:
        trained = self._trained
        missing = (missing,) if isinstance(missing, str) else tuple(missing)
        for modality in missing:
            if modality not in self.modalities:
                raise InputError(
                    f"missing names {modality!r}; this network knows {', '.join(self.modalities)}."
                )
        prepared, inputs, as_arrays = _load(trained, volumes, missing, mask, spacing, name)
        absent, units = inputs.missing, output_units(trained, prepared)
        names = tuple(np.array(self.modalities)[absent].tolist())

        def to_volumes(images: Array, kind: str) -> dict[str, Volume]:
            result = {}
            for modality, slices in zip(names, np.moveaxis(images, -1, 0), strict=True):
                volume = output_volume(prepared, inputs.z, slices, units[modality], kind)
                if as_arrays:
                    result[modality] = volume.transpose(2, 1, 0)
                else:
                    result[modality] = nifti.image_like(volume, prepared.geometry)
            return result

        estimate, sd = predict_mean(posterior, inputs), None
        mean = to_volumes(estimate.mean[..., absent], "mean")
        if not draws:
            if estimate.variance is not None:
                sd = to_volumes(np.sqrt(estimate.variance)[..., absent], "sd")
            return Completion(names, mean, sd, np.empty(0), to_volumes)
        drawn = sample_draws(posterior, inputs, estimate, draws)
        drawn = np.stack([draw[..., absent] for draw in drawn])
        if draws > 1:
            sd = to_volumes(summarise(drawn, [])[0], "sd")
        return Completion(names, mean, sd, drawn, to_volumes)


def load(workdir: str | os.PathLike) -> Predictor:
    """Returns a `Predictor` of the newest checkpoint in `workdir`.

    Raises:
        InputError: there is no checkpoint.
    """
    return Predictor(workdir)


def _load(
    trained: TrainedModel, volumes, missing, mask, spacing, name: str
) -> tuple[PreparedSubject, SubjectInputs, bool]:
    """The subject as the network sees it; whether arrays came in."""
    if isinstance(volumes, str | os.PathLike):
        if mask is not None or spacing is not None:
            raise InputError("mask and spacing are read from a subject's folder: leave them out.")
        folder = pathlib.Path(volumes)
        found = find_incomplete(trained, folder, missing)
        if found.problems:
            raise InputError("; ".join(found.problems.values()))
        if len(found.subjects) != 1:
            raise InputError(
                f"{folder} has {len(found.subjects)} subjects that lack a modality: name the "
                "folder of one."
            )
        return *load_inputs(trained, found.subjects[0]), False
    given = {modality: volume for modality, volume in volumes.items() if modality not in missing}
    if not given:
        raise InputError("no modality is given: at least one is needed to complete from.")
    check_modalities(trained, name, given)
    if set(given) == set(trained.space.modalities):
        raise InputError(
            "no modality is missing: leave one out of the volumes, or name it, like "
            'missing=("t1c",).'
        )
    files = dict(given) if mask is None else dict(given) | {"mask": mask}
    kinds = {_kind(volume) for volume in files.values()}
    if len(kinds) > 1:
        raise InputError(f"the volumes are {' and '.join(sorted(kinds))}: give one kind.")
    if spacing is not None and kinds != {"arrays"}:
        raise InputError("spacing is for arrays: images and files have their own; leave it out.")
    with tempfile.TemporaryDirectory() as folder:
        if kinds != {"paths"}:
            dx, dy = reversed(trained.spacing)
            spacing = spacing or (dx, dy, 1.0)
            for key, volume in files.items():
                files[key] = pathlib.Path(folder, f"{key}.nii")
                nifti.write_image(files[key], volume, spacing)
        files = {key: pathlib.Path(path) for key, path in files.items()}
        mask = files.pop("mask", None)
        subject = Subject(name, "", name, files, {}, None, mask)
        try:
            return *load_inputs(trained, subject), kinds == {"arrays"}
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}{os.sep}", "volumes: ")) from None


def _kind(volume: Volume) -> str:
    if isinstance(volume, str | os.PathLike):
        return "paths"
    return "images" if nifti.is_image(volume) else "arrays"
