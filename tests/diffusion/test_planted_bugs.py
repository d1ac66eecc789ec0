"""Known mistakes, planted in the source one at a time, each turn a check red."""

import pytest
from planted_bugs import BUGS, REDDENED, is_red

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("check", REDDENED)
def test_a_check_is_green_where_nothing_is_planted(check):
    assert not is_red(check)


@pytest.mark.parametrize("name", BUGS)
def test_a_check_turns_red_on_a_planted_bug(name):
    assert is_red(BUGS[name].check, BUGS[name])
