"""Known mistakes, planted in the source one at a time, each turn a check red."""

import pytest
from planted_bugs import BUGS, REDDENED, is_red, planted

pytestmark = pytest.mark.usefixtures("quick_compile")
QUICK = ("Algorithm 1", "2M", "Heun", "seen", "Langevin", "alone")  # checks of a second
QUICK += ("power of a spectrum", "power within the brain")
QUICK += ("Haar", "bands", "largest deviation", "Gaussian about its mean")
QUICK += ("blocks by hand", "variance of blocks", "the right law", "Mann and Whitney")


@pytest.mark.slow
def test_all_checks_are_green_where_nothing_is_planted():
    with planted(None) as checks:
        for check in REDDENED.values():
            check(checks)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (bug.check not in QUICK))
        for n, bug in BUGS.items()
    ],
)
def test_a_check_turns_red_on_a_planted_bug(name):
    assert is_red(BUGS[name].check, BUGS[name])
