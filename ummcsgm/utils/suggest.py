"""Suggestions for words that are mistyped."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns " (did you mean --steps?)" with the nearest `known` word, or ""."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {prefix}{nearest[0]}?)" if nearest else ""
