"""Training curves: points where they belong, ticks that are round."""

import re

import numpy as np
import pytest

from ummcsgm.reporting import curves
from ummcsgm.reporting.cells import Curves
from ummcsgm.reporting.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, svg, thinned


def points_of(text):
    return [
        np.array([pair.split(",") for pair in line.split()], float)
        for line in re.findall(r'points="([^"]*)"', text)
    ]


def test_even_losses_lie_on_an_even_scale():
    line = np.array([[0, 4.0], [50, 3.0], [100, 2.0]])
    (found,) = points_of(svg(Curves("x", {"run": line})))
    low = HEIGHT - BOTTOM
    middle = [(LEFT + WIDTH - RIGHT) / 2, (TOP + low) / 2]
    expected = [[LEFT, TOP], middle, [WIDTH - RIGHT, low]]
    np.testing.assert_allclose(found, expected, atol=0.06)


def test_losses_that_differ_tenfold_lie_on_powers_and_share_one_scale():
    one = np.array([[0, 10.0], [100, 1.0]])
    other = np.array([[0, 100.0], [50, 1.0]])
    first, second = points_of(svg(Curves("x", {"a": one, "b": other})))
    low = HEIGHT - BOTTOM
    np.testing.assert_allclose(first[:, 1], [(TOP + low) / 2, low], atol=0.06)
    np.testing.assert_allclose(second[:, 1], [TOP, low], atol=0.06)
    assert second[1, 0] == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.06)


@pytest.mark.parametrize("losses", [(3.0, 3.0), (0.0, 0.0), (-1.0, 2.0), (1e-9, 5e6)])
def test_every_curve_stays_in_its_plot_and_has_ticks(losses):
    text = svg(Curves("x", {"a": np.array([[1, losses[0]], [9, losses[1]]])}))
    (found,) = points_of(text)
    assert (found[:, 1] >= TOP).all() and (found[:, 1] <= HEIGHT - BOTTOM).all()
    assert text.count('class="grid"') >= 1


def test_ticks_are_round():
    axis = curves._Axis((0.0, 2000.0), (0, 100), False)
    assert list(axis.ticks()) == [0, 500, 1000, 1500, 2000]
    assert axis.at(500) == 25
    powers = curves._Axis((0.04, 1.1), (0, 100), True)
    np.testing.assert_allclose(powers.ticks(), [0.05, 0.1, 0.2, 0.5, 1])
    assert [curves._short(v) for v in (1500, 2e6, 0.05, 40)] == ["1.5k", "2M", "0.05", "40"]


def test_a_long_curve_is_the_means_of_its_parts():
    steps = np.arange(3000.0)
    found = thinned(np.column_stack([steps, 2 * steps]))
    assert found.shape == (300, 2)
    np.testing.assert_allclose(found[:2], [[4.5, 9], [14.5, 29]])
    short = np.column_stack([steps, steps])[:300]
    assert thinned(short) is short


def test_the_title_is_escaped():
    text = svg(Curves('a <b> & "c"', {"run": np.array([[1, 2.0], [2, 1.0]])}))
    assert "over step: a &lt;b&gt; &amp; &quot;c&quot;" in text
