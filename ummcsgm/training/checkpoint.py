"""Orbax: save, restore, restore only the EMA; nothing else imports it.

A checkpoint holds three things under one step: `state` (a pytree of arrays), `ema` (the
averaged parameters, which can be read alone) and `about`, JSON: the config and what
else is needed to use the weights. Orbax writes beside and renames, so a checkpoint
exists wholly or not at all.

All processes of a job save together, of which Orbax lets the first write; each reads
for itself.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ummcsgm.types import InputError, Params

FOLDER = "checkpoints"


def open_checkpoints(workdir: pathlib.Path, *, keep: int) -> ocp.training.Checkpointer:
    """The checkpoints of a workdir to write to, of which the newest `keep` stay.

    A context manager: saving runs in the background, and closing waits for it. For all
    processes together, as is saving.
    """
    return ocp.training.Checkpointer(
        _folder(workdir),
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
    )


def save(
    checkpoints: ocp.training.Checkpointer, step: int, state: Any, ema: Params, about: dict
) -> None:
    """Starts saving under `step`; what is saved there already stays as it is."""
    if checkpoints.latest is not None and checkpoints.latest.step == step:
        return
    # Copies on the host: the step that follows is given these buffers to overwrite.
    state, ema = jax.tree.map(np.array, (state, ema))
    parts = {"state": state, "ema": ema, "about": about}
    checkpoints.save_checkpointables_async(step, parts, force=True)


def latest_step(workdir: pathlib.Path) -> int | None:
    """The newest checkpoint's step, None if the workdir has no checkpoint."""
    folder = _folder(workdir)
    # One that is being written, or was when its run was killed, has a longer name.
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def restore(workdir: pathlib.Path, state: Any, ema: Params) -> tuple[Any, Params]:
    """The newest checkpoint's (state, ema), shaped like the examples given."""
    parts = _restore(workdir, {"state": _shapes(state), "ema": _shapes(ema)})
    return parts["state"], parts["ema"]


def restore_ema(workdir: pathlib.Path, ema: Params) -> Params:
    """The newest checkpoint's averaged parameters alone, shaped like the example."""
    return _restore(workdir, {"ema": _shapes(ema)})["ema"]


def restore_metadata(workdir: pathlib.Path) -> dict:
    """What the newest checkpoint says of itself. Raises InputError if there is none."""
    return _restore(workdir, {"about": None})["about"]


def params_digest(params: Params) -> str:
    """The SHA-256 of the parameters' bytes: what tells one network from another."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _folder(workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / FOLDER


def _shapes(tree: Any) -> Any:
    # NumPy in, NumPy out: where the arrays were made does not matter to the reader.
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)


def _restore(workdir: pathlib.Path, abstract: dict) -> dict:
    step = latest_step(workdir)
    if step is None:
        raise InputError(
            f"{workdir} holds no checkpoint: train first, with --mode train and the same --workdir."
        )
    own, alone = jax.process_index(), ocp.Context()
    alone.multiprocessing.primary_host = own
    alone.multiprocessing.active_processes = {own}
    with alone:
        try:
            return ocp.load_checkpointables(_folder(workdir) / str(step), abstract)
        except (ocp.errors.InvalidLayoutError, KeyError, ValueError, OSError) as error:
            raise InputError(
                f"{_folder(workdir)}: the newest checkpoint is damaged "
                f"({type(error).__name__}); remove its folder."
            ) from None
