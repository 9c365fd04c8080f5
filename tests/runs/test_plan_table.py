"""The table of a plan in a terminal: bits are what it is for."""

from io import StringIO

import pytest
from rich.console import Console

from qdit.runs.plan import headed


@pytest.mark.parametrize("width", [80, 100, 120])
def test_bits_are_readable_where_a_terminal_is_narrow(width):
    table = headed("tq_dit-w4a4")
    bits = "4 bits tensor symmetric_full"
    table.add_row("transformer_blocks.*.attn1.to_out.0", "8", "attn_out", "1024 × 1024", bits, bits, "1.05", "2.1")
    console = Console(width=width, record=True, file=StringIO())
    console.print(table)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("4 bits") == 2
    assert all(word in shown for word in ("attn_out", "1024 × 1024", "1.05", "weight", "input"))
