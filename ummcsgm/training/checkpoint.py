"""Checkpoints by Orbax: save, restore, restore the EMA alone.

A checkpoint has three items: `state` (a pytree of arrays), `ema` (the averaged parameters, which
can be read alone) and `about`, JSON metadata: the config and what else is needed to use the
weights. Orbax writes to a temporary folder and renames it, so a checkpoint is complete or absent.

All processes of a job save together, and Orbax lets the first one write; each reads by itself.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ummcsgm.types import InputError, Params
from ummcsgm.utils.atomic_io import sha256_of_bytes

FOLDER = "checkpoints"


def open_checkpoints(workdir: pathlib.Path, *, keep: int) -> ocp.training.Checkpointer:
    """A checkpointer of the workdir that keeps the newest `keep`, a context manager.

    Saving runs in the background, and closing waits for it. All processes of a job must
    call it together.
    """
    return ocp.training.Checkpointer(
        _folder(workdir),
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
    )


def save(
    checkpoints: ocp.training.Checkpointer, step: int, state: Any, ema: Params, metadata: dict
) -> None:
    """Starts saving step `step`; does nothing if it is saved already."""
    if checkpoints.latest is not None and checkpoints.latest.step == step:
        return
    # Copies on the host: the next step overwrites these buffers.
    state, ema = jax.tree.map(np.array, (state, ema))
    parts = {"state": state, "ema": ema, "about": metadata}
    checkpoints.save_checkpointables_async(step, parts, force=True)


def latest_step(workdir: pathlib.Path) -> int | None:
    """The newest checkpoint's step, None if the workdir has no checkpoint."""
    folder = _folder(workdir)
    # An unfinished checkpoint has a longer name.
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def restore(workdir: pathlib.Path, state: Any, ema: Params) -> tuple[Any, Params]:
    """The newest checkpoint's (state, ema), with the shapes of those given."""
    parts = _restore(workdir, {"state": _shapes(state), "ema": _shapes(ema)})
    return parts["state"], parts["ema"]


def restore_ema(workdir: pathlib.Path, ema: Params) -> Params:
    """The newest checkpoint's averaged parameters, with the shapes of those given."""
    return _restore(workdir, {"ema": _shapes(ema)})["ema"]


def restore_metadata(workdir: pathlib.Path) -> dict:
    """The newest checkpoint's metadata. Raises InputError if there is no checkpoint."""
    return _restore(workdir, {"about": None})["about"]


def params_digest(params: Params) -> str:
    """The SHA-256 of the parameters' bytes."""
    return sha256_of_bytes(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))


def _folder(workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / FOLDER


def _shapes(tree: Any) -> Any:
    # NumPy arrays, whatever devices the arrays were saved from.
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)


def _restore(workdir: pathlib.Path, abstract: dict) -> dict:
    step = latest_step(workdir)
    if step is None:
        raise InputError(
            f"{workdir} holds no checkpoint: train first, with --mode train and the same --workdir."
        )
    process, context = jax.process_index(), ocp.Context()
    context.multiprocessing.primary_host = process  # each process reads by itself
    context.multiprocessing.active_processes = {process}
    with context:
        try:
            return ocp.load_checkpointables(_folder(workdir) / str(step), abstract)
        except (ocp.errors.InvalidLayoutError, KeyError, ValueError, OSError) as error:
            raise InputError(
                f"{_folder(workdir)}: the newest checkpoint is damaged "
                f"({type(error).__name__}); remove its folder."
            ) from None
