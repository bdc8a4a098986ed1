"""How commands print where there is no terminal: what they print into a pipe or a file."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.table import Table

from pyscore.cli.console import console
from pyscore.cli.options import json_line, print_json


@pytest.mark.parametrize("columns", ["0", "20"])
@pytest.mark.parametrize("stderr", [False, True])
def test_plain_is_neither_folded_nor_padded_nor_coloured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, stderr: bool
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table(box=None, pad_edge=False)
    table.add_column("a", overflow="fold")
    table.add_column("b")
    table.add_row("x" * 200, "[red]y[/red]")
    table.add_row("x", "long " * 30)
    screen = console(stderr=stderr)
    screen.print(table)
    screen.print("a word " * 30, style="bold")
    captured = capsys.readouterr()
    lines = (captured.err if stderr else captured.out).split("\n")
    assert lines == [
        "a" + " " * 201 + "b",
        "x" * 200 + "  y",
        "x" + " " * 201 + ("long " * 30).rstrip(),
        ("a word " * 30).rstrip(),
        "",
    ]


def test_a_closed_stream_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    console().print("nobody reads this")


def test_json_is_what_every_reader_takes(capsys: pytest.CaptureFixture[str]) -> None:
    data: dict[str, Any] = {
        "odd": [Decimal("NaN"), Decimal("-Infinity"), float("nan"), float("inf")],
        "numbers": (Decimal("2.50"), Decimal("3.0"), 80.0, True, None),
        "at": datetime(2024, 2, 29, tzinfo=UTC),
        "took": timedelta(seconds=1.5),
    }
    print_json(data)
    found = json.loads(
        capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert found == json.loads(json_line(data))
    assert found == {
        "odd": ["NaN", "-Infinity", "NaN", "Infinity"],
        "numbers": [2.5, 3, 80.0, True, None],
        "at": "2024-02-29T00:00:00+00:00",
        "took": 1.5,
    }
