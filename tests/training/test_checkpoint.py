"""What is saved is restored bit for bit; a checkpoint is there wholly or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.training import checkpoint
from ummcsgm.types import InputError

ABOUT = {"config": {"seed": 3, "grid": [56, 48], "name": "vp"}, "scales": {"t1": 2.5}}


def trees(seed):
    """A state of several types, some of them NaN or tiny, and averaged parameters."""
    rng = np.random.default_rng(seed)
    state = {
        "step": jnp.int32(seed),
        "params": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
        "odd": jnp.asarray([np.nan, -0.0, 1e-42, np.inf], jnp.float32),
        "bad": (jnp.arange(2), jnp.asarray(rng.normal(size=5), jnp.bfloat16)),
    }
    return state, {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}


def write(workdir, *steps, keep=9):
    with checkpoint.open_checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoint.save(checkpoints, step, *trees(step), {**ABOUT, "step": step})


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def folders(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_state_average_and_about_come_back_bit_for_bit(tmp_path):
    write(tmp_path, 7)
    assert_same_bits(checkpoint.restore(tmp_path, *trees(0)), trees(7))
    assert_same_bits(checkpoint.restore_ema(tmp_path, trees(0)[1]), trees(7)[1])
    assert checkpoint.restore_metadata(tmp_path) == {**ABOUT, "step": 7}


def test_shapes_alone_are_enough_to_restore(tmp_path):
    write(tmp_path, 7)
    shapes = jax.eval_shape(lambda: trees(0))
    assert_same_bits(checkpoint.restore(tmp_path, *shapes), trees(7))


def test_the_newest_is_restored_and_only_so_many_are_kept(tmp_path):
    write(tmp_path, 2, 4, 10, keep=2)
    assert checkpoint.latest_step(tmp_path) == 10
    assert_same_bits(checkpoint.restore(tmp_path, *trees(0)), trees(10))
    assert checkpoint.restore_metadata(tmp_path)["step"] == 10
    assert folders(tmp_path) == ["10", "4"]


def test_the_averaged_parameters_are_read_without_the_state(tmp_path):
    write(tmp_path, 7)
    for part in (tmp_path / "checkpoints" / "7" / "state").rglob("*"):
        if part.is_file():
            part.write_bytes(b"")
    assert_same_bits(checkpoint.restore_ema(tmp_path, trees(0)[1]), trees(7)[1])
    assert checkpoint.restore_metadata(tmp_path)["step"] == 7


def give_away(x):
    """A step's way: its buffers are donated to the next."""
    jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(x).block_until_ready()


def overwrite(x):
    x[:] = -1


@pytest.mark.parametrize(("kind", "spoil"), [(jnp.asarray, give_away), (np.array, overwrite)])
def test_what_is_saved_is_what_was_there_at_that_moment(tmp_path, kind, spoil):
    values = np.arange(2**22, dtype=np.float32)
    state = {"x": kind(values)}
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 1, state, {"y": jnp.ones(1)}, ABOUT)
        spoil(state["x"])
    shapes = {"x": jax.ShapeDtypeStruct(values.shape, values.dtype)}
    restored, _ = checkpoint.restore(tmp_path, shapes, {"y": jnp.ones(1)})
    np.testing.assert_array_equal(restored["x"], values)


def test_saving_goes_on_in_the_background_and_closing_waits_for_it(tmp_path):
    state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=2**24))}
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 1, state, {"y": jnp.ones(1)}, ABOUT)
        assert not (tmp_path / "checkpoints" / "1").exists()
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_step_that_is_saved_stays_as_it_is(tmp_path):
    write(tmp_path, 7)
    before = (tmp_path / "checkpoints" / "7").stat().st_mtime_ns
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoint.save(checkpoints, 7, *trees(8), ABOUT)
    assert (tmp_path / "checkpoints" / "7").stat().st_mtime_ns == before
    assert_same_bits(checkpoint.restore(tmp_path, *trees(0)), trees(7))


def test_a_checkpoint_cut_off_half_way_does_not_count_and_is_cleared_away(tmp_path):
    write(tmp_path, 7)
    cut = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-123456"
    (cut / "state").mkdir(parents=True)
    assert checkpoint.latest_step(tmp_path) == 7
    assert_same_bits(checkpoint.restore(tmp_path, *trees(0)), trees(7))
    write(tmp_path, 9)
    assert folders(tmp_path) == ["7", "9"]


@pytest.mark.parametrize("made", [False, True])
def test_a_workdir_without_checkpoint_is_named_and_left_alone(tmp_path, made):
    workdir = tmp_path / "nowhere"
    if made:
        workdir.mkdir()
    assert checkpoint.latest_step(workdir) is None
    for read in (
        checkpoint.restore_metadata,
        lambda at: checkpoint.restore(at, *trees(0)),
        lambda at: checkpoint.restore_ema(at, trees(0)[1]),
    ):
        with pytest.raises(InputError, match=f"{workdir} holds no checkpoint"):
            read(workdir)
    assert workdir.exists() == made and list(tmp_path.rglob("*/*")) == []
