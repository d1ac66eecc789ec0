"""Tables for a reader: drawn on a terminal, plain lines elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Prints the rows under their columns; off a terminal a line a row, unfolded."""
    console = Console()
    if not console.is_terminal:
        print(f"{title}: {' | '.join(columns)}")
        for row in rows:
            print(" | ".join(map(str, row)))
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
