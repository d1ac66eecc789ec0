"""The loop: what is saved and when, what a bad step does, how it stops and goes on."""

import functools
import os
import pathlib
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import SHAPE, files_under, run_main, tiny_config, write_config, write_subjects

from ummcsgm.config import build
from ummcsgm.config.build_data import prepare
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.data import build_store
from ummcsgm.data.store import Store
from ummcsgm.distributed import devices
from ummcsgm.training import checkpoint, dsm_step, loop, train
from ummcsgm.training.logging import TRACED_STEPS, TrainingLog, profiler_trace
from ummcsgm.training.loop import with_stop_flag
from ummcsgm.types import Batch

pytest_plugins = ["tiny_study"]

STOPS = (signal.SIGTERM, signal.SIGINT)


def plan(config, **changes):
    fields = {f"train.{name}": value for name, value in changes.items()}
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return build.build_train_options(config)


class Source:
    """Batches by step, in place of files; `spoil` holds the steps whose images are NaN.

    `before` is called before a batch is handed out.
    """

    def __init__(self, batches, spoil=(), before=lambda step: None):
        self.batches, self.spoil, self.before = batches, spoil, before

    def from_step(self, first):
        for step in range(first, first + 1000):
            self.before(step)
            batch = self.batches.at(step)
            if step in self.spoil:
                batch = batch._replace(images=np.full_like(batch.images, np.nan))
            yield batch


@pytest.fixture(scope="module")
def parts(tmp_path_factory, quick_compile):
    """The step of a tiny config, compiled once, its first state and its batches."""
    folder = tmp_path_factory.mktemp("loop")
    config = tiny_config(write_subjects(folder / "subjects"))
    store = prepare(config, folder)[1]["train"]
    model, recipe = build.build_model(config), build.build_update_rule(config)
    step = dsm_step.make_train_step(model, build.build_objective(config), recipe)
    grid = build.build_space(config).grid
    key = jax.random.fold_in(jax.random.key(0), 1)
    return SimpleNamespace(
        step=functools.partial(devices.pmap_step(with_stop_flag(step)), key),
        start=jax.tree.map(np.asarray, dsm_step.init_state(jax.random.key(0), model, recipe, grid)),
        batches=train.training_batches(store, build.build_train_options(config)),
        store=store,
        config=config,
    )


def run_fit(parts, workdir, source, state=None, trace=False, **changes):
    """The states that were saved, by step, and what the loop returned or raised."""
    saved, handlers = {}, [signal.getsignal(number) for number in STOPS]
    every = {"steps": 6, "save_every": 1, "log_every": 1, **changes}
    workdir.mkdir(exist_ok=True)
    try:
        state = devices.replicate(parts.start if state is None else state)
        options, traces = plan(parts.config, **every), workdir / "profile" if trace else None
        with (
            TrainingLog(workdir, options, int(state.step)) as log,
            profiler_trace(traces) as before_step,
        ):
            result = loop.run_training(
                parts.step,
                state,
                source,
                options,
                lambda done, state: saved.update({done: jax.tree.map(np.array, state)}),
                log=log.add,
                before_step=before_step,
            )
    except (FloatingPointError, SystemExit) as error:
        result = error
    assert [signal.getsignal(number) for number in STOPS] == handlers
    return saved, result


def rows(batch):
    """What one step is given where no process is asked to stop."""
    return devices.shard((batch, devices.per_device_flag(False)))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def moving(state):
    """All that a bad step must leave alone."""
    return bits((state.params, state.ema, state.opt_state))


def test_going_on_from_any_saved_state_is_the_uninterrupted_run_bit_for_bit(parts, tmp_path):
    straight, last = run_fit(parts, tmp_path / "a", parts.batches)
    assert bits(last) == bits(straight[6])
    assert moving(straight[3]) != moving(straight[4])
    for first in (1, 4):
        resumed, _ = run_fit(parts, tmp_path / "b", parts.batches, straight[first])
        assert sorted(resumed) == list(range(first + 1, 7))
        for done, state in resumed.items():
            assert bits(state) == bits(straight[done])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(parts, tmp_path):
    source = Source(parts.batches, spoil=(2, 3))
    saved, _ = run_fit(parts, tmp_path / "a", source)
    for done in (3, 4):
        assert moving(saved[done]) == moving(saved[2])
    assert moving(saved[5]) != moving(saved[4])
    assert [saved[done].bad.tolist() for done in range(1, 7)] == [
        [0, 0],
        [0, 0],
        [1, 1],
        [2, 2],
        [0, 2],
        [0, 2],
    ]
    assert [int(saved[done].step) for done in range(1, 7)] == list(range(1, 7))


def test_many_bad_steps_in_a_row_stop_the_run_and_name_the_step(parts, tmp_path):
    source = Source(parts.batches, spoil=(1, 3, 4, 5))
    saved, error = run_fit(parts, tmp_path / "a", source, steps=9, max_nonfinite=3)
    assert isinstance(error, FloatingPointError)
    assert "not finite at step 6 and at the 2 steps before it" in str(error)
    assert max(saved) == 5  # what is not to be kept is not saved


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(parts, tmp_path):
    source = Source(parts.batches, spoil=(0, 2, 4))
    saved, last = run_fit(parts, tmp_path / "a", source, max_nonfinite=2)
    assert last.bad.tolist() == [0, 3] and max(saved) == 6


def test_a_run_in_a_row_is_still_one_after_a_restart(parts, tmp_path):
    source = Source(parts.batches, spoil=(2, 3, 4))
    saved, _ = run_fit(parts, tmp_path / "a", source)
    _, error = run_fit(parts, tmp_path / "b", source, saved[4], max_nonfinite=3)
    assert "not finite at step 5 and at the 2 steps before it" in str(error)


def test_the_state_is_donated_and_alike_on_every_device(parts):
    batch = rows(parts.batches.at(0))
    before = devices.replicate(parts.start)
    after, metrics = parts.step(before, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    for leaf in jax.tree.leaves((after, metrics)):
        one, other = (shard.data for shard in leaf.addressable_shards)
        assert one.tobytes() == other.tobytes()


def test_the_step_is_compiled_once(parts, tmp_path):
    run_fit(parts, tmp_path / "a", parts.batches)
    compiled = []

    def record(event, seconds, **details):
        if event.endswith("backend_compile_duration"):  # also for a program from the cache
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        jax.jit(lambda x: x + 1)(0)
        assert len(compiled) == 1  # the listener hears of it
        run_fit(parts, tmp_path / "b", parts.batches)
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("steps", "save_every", "expected"),
    [(6, 4, [4, 6]), (6, 3, [3, 6]), (5, 9, [5]), (2, 1, [1, 2])],
)
def test_it_saves_every_so_many_steps_and_at_the_end(parts, tmp_path, steps, save_every, expected):
    saved, _ = run_fit(parts, tmp_path / "a", parts.batches, steps=steps, save_every=save_every)
    assert sorted(saved) == expected
    assert [int(state.step) for state in saved.values()] == expected


def test_a_finished_run_takes_no_step_and_saves_nothing(parts, tmp_path):
    saved, last = run_fit(parts, tmp_path / "a", parts.batches)
    again, same = run_fit(parts, tmp_path / "a", Source(parts.batches), saved[6])
    assert again == {} and bits(same) == bits(last)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_saves_the_step_it_came_in_and_leaves(parts, tmp_path, number, capsys):
    def interrupt(step):
        if step == 3:  # the next step's batch is fetched in step 3
            os.kill(os.getpid(), number)

    source = Source(parts.batches, before=interrupt)
    saved, stop = run_fit(parts, tmp_path / "a", source, save_every=9)
    assert isinstance(stop, SystemExit) and stop.code == 128 + number
    assert sorted(saved) == [3] and int(saved[3].step) == 3
    said = f"{signal.Signals(number).name}: saved at step 3; the same command continues"
    assert said in capsys.readouterr().out
    straight, _ = run_fit(parts, tmp_path / "b", parts.batches)
    resumed, _ = run_fit(parts, tmp_path / "a", parts.batches, saved[3])
    assert bits(resumed[6]) == bits(straight[6])


def test_a_signal_in_the_last_step_is_not_swallowed(parts, tmp_path):
    def step(state, batch):
        if int(state.step) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return parts.step(state, batch)

    own = SimpleNamespace(**vars(parts) | {"step": step})
    saved, stop = run_fit(own, tmp_path / "a", parts.batches, save_every=9)
    assert isinstance(stop, SystemExit) and stop.code == 128 + signal.SIGTERM
    assert sorted(saved) == [6]


class Metric:
    """A number on a device that tells when it is read."""

    def __init__(self, step, events):
        self.step, self.events = step, events

    def __float__(self):
        self.events.append(f"read {self.step}")
        return 0.0


def test_a_batch_is_fetched_and_a_step_dispatched_before_what_is_there_is_read(parts, tmp_path):
    events = []

    def step(state, batch):
        done = state.step + 1
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
        events.append(f"dispatch {done}")
        zeros = dict.fromkeys(("grad_norm", "in_row", "skipped", "stop"), 0.0)
        return state.replace(step=done), {"loss": Metric(done, events), **zeros}

    def fetched(step):
        events.append(f"fetch {step + 1}")

    loop.run_training(
        step,
        parts.start.replace(step=0),
        Source(parts.batches, before=fetched),
        plan(parts.config, steps=4, save_every=9, log_every=1),
        lambda done, state: events.append(f"save {done}"),
        log=lambda done, metrics: None,
    )
    assert events == [
        "fetch 1",
        "dispatch 1",
        "fetch 2",
        "dispatch 2",
        "fetch 3",
        "read 1",
        "dispatch 3",
        "fetch 4",
        "read 2",
        "dispatch 4",
        "read 3",
        "read 4",
        "save 4",
    ]


@pytest.mark.slow
def test_a_trace_of_some_steps_is_written_where_it_was_asked_for(parts, tmp_path):
    run_fit(parts, tmp_path / "a", parts.batches, steps=25, save_every=99, trace=True)
    (trace,) = (tmp_path / "a" / "profile").glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    events = [event for p in planes for line in p.lines for event in line.events]
    steps = {dict(event.stats).get("step_num") for event in events}
    first, last = TRACED_STEPS
    assert steps - {None} == set(range(first + 1, last + 1))
    run_fit(parts, tmp_path / "b", parts.batches, steps=12, save_every=99)
    assert not (tmp_path / "b" / "profile").exists()


def test_the_average_starts_at_the_parameters(parts):
    assert bits(parts.start.ema) == bits(parts.start.params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(parts.start))


def test_another_seed_starts_elsewhere_and_the_same_seed_at_the_same_place(parts):
    start = build_trainable(parts.config, "mm-csn").start
    first, again, other = (
        train.start_or_restore(pathlib.Path("none"), start, seed) for seed in (0, 0, 1)
    )
    assert bits(first) == bits(again)
    assert bits(first.params) != bits(other.params)


def test_restoring_gives_what_was_saved_and_not_the_start(parts, tmp_path):
    start = build_trainable(parts.config, "mm-csn").start
    state, _ = parts.step(devices.replicate(parts.start), rows(parts.batches.at(0)))
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 1, state.replace(ema=None), state.ema, {"a": 1})
    again = train.start_or_restore(tmp_path, start, 0)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert bits(again) == bits(state) != bits(parts.start)


def test_a_padded_row_and_an_absent_modality_are_not_learned_from(parts):
    """The loop's own step on batches whose unread parts differ."""
    batch = parts.batches.at(0)
    present = np.ones((4, 4), bool)
    present[0, 2] = False
    valid = np.array([True, True, True, False])
    results = []
    for filler in (0.0, 5.0):
        images = batch.images.copy()
        images[0, ..., 2] = filler
        images[3] = filler
        state, metrics = parts.step(
            devices.replicate(parts.start), rows(Batch(images, present, valid))
        )
        results.append((bits(state), float(metrics["loss"])))
    assert results[0] == results[1]
    assert np.isfinite(results[0][1]) and results[0][1] > 0


def test_images_that_are_not_finite_end_the_run_with_one_sentence(
    parts, tmp_path, capsys, monkeypatch
):
    config = tiny_config(parts.config.data.folder, train__max_nonfinite=4)
    file, workdir = write_config(tmp_path / "c.py", config), tmp_path / "run"
    read = Store.read

    def broken(store, places):
        images, present = read(store, places)
        return np.full_like(images, np.nan), present

    monkeypatch.setattr(Store, "read", broken)
    monkeypatch.setattr(build_store, "damaged_entries", lambda store: [])
    code = run_main("--config", file, "--workdir", workdir, "--mode", "train")
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1
    assert "not finite at step 4 and at the 3 steps before it" in said
    assert checkpoint.latest_step(workdir) is None


def test_a_finished_training_leaves_its_checkpoints_alone(own_study, capsys):
    before = files_under(own_study / "run" / "checkpoints")
    log = (own_study / "run" / "log.jsonl").read_text()
    arguments = ("--workdir", own_study / "run", "--mode", "train")
    assert run_main("--config", own_study / "tiny.py", *arguments) == 0
    assert run_main(*arguments) == 0  # the config is in the workdir
    assert files_under(own_study / "run" / "checkpoints") == before
    assert (own_study / "run" / "log.jsonl").read_text() == log
    assert "step" not in capsys.readouterr().out


def test_a_batch_is_made_of_slices_of_the_training_subjects(parts):
    store = parts.store
    images, _ = store.read(np.arange(len(store)))
    slices = {image.tobytes() for image in images}
    flipped = {image[:, ::-1].tobytes() for image in images}
    for image in parts.batches.at(0).images:
        assert image.tobytes() in slices | flipped
    assert len(store) == 3 * (SHAPE[2] - 1)
    assert jnp.asarray(parts.batches.at(0).images).max() < 1.5
