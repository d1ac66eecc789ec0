"""Every key of a config is known, and its type and range are checked by name."""

import copy
import pathlib

import pytest
from tiny_run import quickstart

from ummcsgm.config.reference import reference_page
from ummcsgm.config.schema import SCHEMA, check_fields
from ummcsgm.types import InputError


def changed(key, value):
    """The quickstart's fields with `key` set."""
    fields = quickstart().to_dict()
    *sections, name = key.split(".")
    at = fields
    for section in sections:
        at = at[section]
    at[name] = value
    return fields


WRONG = {  # values that are not of a type, though Python may take them for it
    int: (1.5, "1", True, None),
    float: ("0.5", False, None, (1.0,)),
    bool: (1, "True", None),
    str: (3, None, ("a",)),
    tuple: (3, "1,2,3", None),
}


def refusal(fields):
    with pytest.raises(InputError) as caught:
        check_fields(fields)
    return str(caught.value)


def test_the_quickstart_passes_and_sets_every_key_of_the_schema():
    fields = quickstart().to_dict()
    check_fields(fields)
    keys = {
        f"{section}.{name}" if isinstance(inner, dict) else section
        for section, inner in fields.items()
        for name in (inner if isinstance(inner, dict) else ("",))
    }
    assert keys == set(SCHEMA)


def test_a_value_of_another_type_is_refused_with_the_key_and_the_value():
    for key, rule in SCHEMA.items():
        for value in WRONG[rule.kind]:
            said = refusal(changed(key, value))
            assert said.startswith(f"config.{key} is {value!r}; wanted "), said


def test_a_key_that_is_not_set_is_named():
    for key in SCHEMA:
        if "." in key:
            fields = copy.deepcopy(quickstart().to_dict())
            section, name = key.split(".")
            del fields[section][name]
            assert refusal(fields).startswith(f"config.{key} is missing")


@pytest.mark.parametrize("key", ["train.stepz", "nonsense", "sde.beta.min"])
def test_a_key_that_does_not_exist_is_named(key):
    fields = quickstart().to_dict()
    *sections, name = key.split(".")
    at = fields
    for section in sections:
        at = at.setdefault(section, {})
    at[name] = 1
    assert refusal(fields).startswith(f"config.{key} does not exist")


def test_nan_is_in_no_range():
    for key, rule in SCHEMA.items():
        if rule.kind is float and (rule.least or rule.most):
            assert f"config.{key} is nan" in refusal(changed(key, float("nan")))


def test_the_ends_of_a_range_pass_and_what_is_beyond_does_not():
    for key, rule in SCHEMA.items():
        if rule.kind is tuple:
            continue
        for value, beyond in ((rule.least, -1), (rule.most, 1)):
            if value is not None:
                check_fields(changed(key, value))
                said = refusal(changed(key, value + beyond))
                assert said.startswith(f"config.{key} is {value + beyond!r}; wanted a value")


def test_a_tuple_has_a_length_in_its_range():
    example = {str: "run-1", int: 2, float: 0.5, bool: True}
    for key, rule in SCHEMA.items():
        if rule.kind is tuple:
            item = (example[rule.item.kind],)
            for size in (rule.least, rule.most or 9):
                check_fields(changed(key, item * size))
            if rule.least:
                assert "wanted a length of " in refusal(changed(key, item * (rule.least - 1)))
            if rule.most:
                assert "wanted a length of " in refusal(changed(key, item * (rule.most + 1)))


def test_a_whole_number_is_a_number():
    check_fields(changed("sde.beta_max", 20))


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("data.grid", ("56", 48), "[0] is '56'; wanted a whole number"),
        ("data.grid", (56, 48.0), "[1] is 48.0; wanted a whole number"),
        ("data.grid", (56, 0), "[1] is 0; wanted a value of at least 1"),
        ("data.modalities", ("t1", 2), "[1] is 2; wanted a text"),
        ("data.split", (20, True, 8), "[1] is True; wanted a whole number"),
        ("phantom.shape", (64, None, 40), "[1] is None; wanted a whole number"),
        ("network.widths", (96, "128"), "[1] is '128'; wanted a whole number"),
        ("network.blocks", (2, 0.5), "[1] is 0.5; wanted a whole number"),
    ],
)
def test_what_stands_in_a_tuple_is_checked_too(key, value, place):
    assert refusal(changed(key, value)).startswith(f"config.{key}{place}")


def test_every_key_is_described_and_the_page_is_what_the_schema_gives():
    assert all(key.description.endswith(".") for key in SCHEMA.values())
    page = (pathlib.Path(__file__).parents[2] / "docs" / "config.md").read_text()
    assert page == reference_page(), "run: python -m ummcsgm.config.reference > docs/config.md"


def test_a_misspelt_key_gets_the_nearest_one():
    assert "(did you mean train.steps?)" in refusal(changed("train.stepz", 1))
