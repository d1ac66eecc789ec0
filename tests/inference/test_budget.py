"""What a number of seconds buys: by arithmetic, and of a network of known costs."""

import dataclasses
import types

import numpy as np
import pytest
from tiny_run import files_under, run_main, tiny_config, write_subjects

from ummcsgm.config.build_data import find_anywhere
from ummcsgm.data.crop import SliceView
from ummcsgm.inference import budget
from ummcsgm.inference.budget import (
    MAX_DRAWS,
    Costs,
    affordable_draws,
    measure_costs,
    within_budget,
)
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.types import InputError

pytest_plugins = ["tiny_study"]

ORDER = CompletionOptions(("t1c",), budget_seconds=10.0)
SCORING = types.SimpleNamespace(sampler_steps=12, microbatch=8)


def know_costs(monkeypatch, mean, draw, shared=0.0):
    costs = Costs(mean, shared, draw)
    monkeypatch.setattr(budget, "measure_costs", lambda *which: costs)


def know_rate(monkeypatch, rate):
    """`rate` evaluations a second, 12 of them a draw."""
    know_costs(monkeypatch, 1 / rate, 12 / rate)


@pytest.mark.parametrize(
    "seconds, draws",
    [
        (0.999, None),  # 100 slices at 100 a second: the mean takes one second
        (1.0, 0),
        (24.99, 0),  # one draw alone would be worse than the mean
        (25.0, 2),
        (36.99, 2),
        (37.0, 3),
        (1 + 12 * MAX_DRAWS, MAX_DRAWS),
        (1e6, MAX_DRAWS),
    ],
)
def test_the_mean_comes_first_and_then_two_draws_or_more(seconds, draws):
    # A margin for 0.01 and 0.12 not being exact.
    assert affordable_draws(seconds + 1e-6, 100, Costs(0.01, 0.0, 0.12)) == draws


def test_what_draws_share_is_paid_once():
    costs = Costs(1.0, 2.0, 3.0)
    assert costs.seconds(10, 0) == 10 and costs.seconds(10, 4) == 150
    assert affordable_draws(149.0, 10, costs) == 3
    assert affordable_draws(150.0, 10, costs) == 4


def trained():
    view = SliceView((16, 16), 0.0, False, 0)
    space = types.SimpleNamespace(modalities=("flair", "t1", "t1c", "t2"), view=view)
    return types.SimpleNamespace(space=space, digest="abc", spacing=(3.0, 2.0))


def subjects_in(folder):
    write_subjects(folder, ("P1",))
    found = find_anywhere(tiny_config(folder), folder)
    return list(found.subjects)


@pytest.mark.parametrize(
    "seconds, sampler, draws", [(2.0, "mean", 1), (5.0, "warm", 4), (1.0, None, None)]
)
def test_the_order_is_what_the_rate_allows_or_says_what_it_needs(
    tmp_path, monkeypatch, capsys, seconds, sampler, draws
):
    """5 slices of brain are a microbatch of 8: 10 evaluations of each a second."""
    know_rate(monkeypatch, 80.0)
    order = CompletionOptions(("t1c",), budget_seconds=seconds)
    if sampler is None:
        know_rate(monkeypatch, 7.9)
        with pytest.raises(InputError, match=r"budget-seconds is 1, .* takes 1.01 s"):
            within_budget(order, trained(), SCORING, subjects_in(tmp_path), tmp_path)
        return
    chosen = within_budget(order, trained(), SCORING, subjects_in(tmp_path), tmp_path)
    assert (chosen.sampler, chosen.draws) == (sampler, draws)
    said = capsys.readouterr().out
    assert f"--sampler {sampler} --draws {draws}" in said


def test_a_subject_that_cannot_be_read_is_passed_over_for_the_rate(tmp_path, monkeypatch):
    know_rate(monkeypatch, 1000.0)
    (good,) = subjects_in(tmp_path / "good")
    (bad,) = subjects_in(tmp_path / "bad")
    next(iter(bad.files.values())).write_bytes(b"damaged")
    both = [bad, good]
    assert within_budget(ORDER, trained(), SCORING, both, tmp_path).draws == MAX_DRAWS
    with pytest.raises(InputError, match="bad"):
        within_budget(ORDER, trained(), SCORING, [bad], tmp_path / "other")


def test_what_was_chosen_for_a_folder_is_chosen_again(tmp_path, monkeypatch):
    """A cohort that was stopped goes on, though the machine is slower now."""
    some, order = subjects_in(tmp_path / "in"), dataclasses.replace(ORDER, budget_seconds=5.0)

    def draws(rate, **changes):
        know_rate(monkeypatch, rate)
        own = dataclasses.replace(order, **changes)
        return within_budget(own, trained(), SCORING, some, tmp_path / "out").draws

    assert draws(80.0) == 4  # 8 slices, the last microbatch filled: 50 evaluations
    assert draws(40.0) == 4
    assert draws(40.0, overwrite=True) == 2
    assert draws(80.0, budget_seconds=6.0) == 4
    assert draws(80.0, budget_seconds=5.0) == 4


@pytest.mark.parametrize(
    "text", ["[1]", '{"draws": "many"}', '{"draws": -3}', '{"seconds": 10.0}', "{"]
)
def test_a_budget_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "budget.json").write_text(text)
    with pytest.raises(InputError, match=r"budget.json .*remove it"):
        within_budget(ORDER, trained(), SCORING, [], tmp_path)


def test_quantiles_are_not_dropped_for_a_budget_of_the_mean_alone(tmp_path, monkeypatch):
    know_rate(monkeypatch, 80.0)
    order = dataclasses.replace(ORDER, budget_seconds=1.0, quantiles_requested=True)
    some = subjects_in(tmp_path)
    without = dataclasses.replace(order, quantiles_requested=False)
    assert within_budget(without, trained(), SCORING, some, tmp_path).sampler == "mean"
    # Nor for one that was chosen before, for the same seconds.
    with pytest.raises(InputError, match=r"--quantiles wants 2 draws .* take 2.5 s"):
        within_budget(order, trained(), SCORING, some, tmp_path)


def stub_network(monkeypatch, seconds_of_mean=0.0, seconds_of_sharing=0.0, seconds_of_draw=0.0):
    """A network that moves the clock; the sizes of its batches."""
    clock, sizes = [0.0], []

    def mean(images, missing):
        clock[0] += seconds_of_mean if sizes else 60  # the first call compiles
        sizes.append(len(images))

    def sample(images, missing, addresses, estimate):
        clock[0] += seconds_of_sharing
        for _ in addresses:
            clock[0] += seconds_of_draw
            yield images

    monkeypatch.setattr(budget, "make_mean_predictor", lambda *which: mean)
    monkeypatch.setattr(budget, "make_sampler", lambda *which: sample)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    return sizes


def question():
    images = np.zeros((3, 4, 4, 2), np.float32)
    return SubjectInputs("P1", np.arange(3), images, np.array([True, False]))


def test_costs_are_those_of_slices_in_full_microbatches(monkeypatch):
    sizes = stub_network(monkeypatch, 0.25, 0.5, 2.0)
    costs = measure_costs(None, SCORING, question())
    np.testing.assert_allclose(costs, (0.25 / 8, 0.5 / 8, 2.0 / 8))
    assert set(sizes) == {8}


def test_a_microbatch_of_many_devices_is_counted_with_all_of_its_rows(monkeypatch, tmp_path):
    """As many rows as are computed: 12 where 12 devices share a microbatch of 8."""
    sizes = stub_network(monkeypatch, 0.25, 0.5, 2.0)
    with monkeypatch.context() as patched:
        patched.setattr(budget.devices, "round_up_to_devices", lambda size: size + 4)
        assert measure_costs(None, SCORING, question()).mean == pytest.approx(0.25 / 12)
    assert set(sizes) == {12}
    # 5 slices of brain are 16 rows: 25 evaluations of each in 5 s, 1 + 2 x 12.
    monkeypatch.setattr(budget.devices, "round_up_to_devices", lambda size: 2 * size)
    know_rate(monkeypatch, 80.0)
    order = dataclasses.replace(ORDER, budget_seconds=5.0)
    known = (trained(), SCORING, subjects_in(tmp_path / "in"), tmp_path / "out")
    assert within_budget(order, *known).draws == 2


def test_by_the_command_line_a_budget_and_then_the_same_draws_again(
    study, tmp_path, capsys, monkeypatch
):
    know_costs(monkeypatch, 1 / 56, 2 / 56)
    order = ("--workdir", study / "run", "--mode", "complete", "--missing", "t2,t1c")
    order += ("--input", study / "subjects/HGG/P1")
    assert run_main(*order, "--output", tmp_path / "a", "--budget-seconds", "1") == 0
    said = capsys.readouterr().out
    assert "--sampler warm --draws 3" in said  # 7 evaluations a slice, 2 a draw
    options = ("--sampler", "warm", "--draws", "3")
    assert run_main(*order, "--output", tmp_path / "b", *options) == 0
    made = files_under(tmp_path / "a")
    assert b'"draws": 3' in made.pop("budget.json")
    assert made == files_under(tmp_path / "b")
    assert sum(name.endswith("draw-03.nii.gz") for name in made) == 2
    assert run_main(*order, "--output", tmp_path / "c", "--advise", "--draws", "2") == 0
    (advice,) = files_under(tmp_path / "c").items()
    assert advice[0] == "advice/P1.csv"
    assert advice[1].decode().splitlines()[0] == "acquire,all,t1c,t2"
