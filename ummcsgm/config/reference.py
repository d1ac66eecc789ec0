"""Prints the config reference: `python -m ummcsgm.config.reference > docs/config.md`."""

from ummcsgm.config.schema import SCHEMA, Key, range_text

TITLE = """# Config reference

Every key of a config; `configs/base.py` has their values in the quickstart. Change one with
`--config.KEY=VALUE`. This page is made from `ummcsgm/config/schema.py`:
`python -m ummcsgm.config.reference > docs/config.md`.
"""


def reference_page() -> str:
    """Returns the Markdown page of all keys, a table for each section."""
    lines, section = [TITLE], None
    for name, key in SCHEMA.items():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines += [f"\n## {section}\n", "| key | type | range | sets |", "|---|---|---|---|"]
        lines.append(f"| `{name}` | {_kind(key)} | {_range(key)} | {key.description} |")
    return "\n".join(lines) + "\n"


def _kind(key: Key) -> str:
    return f"tuple of {key.item.kind.__name__}" if key.item else key.kind.__name__


def _range(key: Key) -> str:
    if key.item is None:
        return range_text(key)
    length = str(key.least) if key.least == key.most else range_text(key)
    items = range_text(key.item)
    return f"length {length}" + (f", items {items}" if items else "")


if __name__ == "__main__":
    print(reference_page(), end="")
