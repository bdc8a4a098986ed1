"""What a benchmark has found, as Markdown for people and as JSON for the summary and the tests."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Ratio
from benchmarks.plots import Plot
from benchmarks.scales import Scale

RESULTS = Path(__file__).parent / "results"

_HEADINGS = ("what", "against", "reach", "got", "lowest to highest", "")


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures.

    Attributes:
        what: What was measured.
        against: What it is a ratio to; empty where it is no ratio.
        reach: The figure to reach, such as "≥ 0.90"; empty where none was set.
        got: The median of the rounds.
        low, high: The range of the rounds.
        unit: What follows the number, such as "ms"; empty for a ratio.
        note: Whatever a reader must know.
    """

    what: str
    against: str
    reach: str
    got: float
    low: float
    high: float
    unit: str = ""
    note: str = ""

    @classmethod
    def of(
        cls, what: str, against: str, reach: str, ratio: Ratio, unit: str = "", note: str = ""
    ) -> "Figure":
        return cls(what, against, reach, ratio.got, ratio.low, ratio.high, unit, note)

    @property
    def reached(self) -> bool | None:
        """Whether the median is where it should be; None where nothing was set."""
        if not self.reach:
            return None
        match = re.fullmatch(r"([≥≤=]) ([\d.,]+)( \S+)?", self.reach)
        assert match is not None, f"not of the form ≥ 0.90: {self.reach}"
        assert (match[3] or "").strip() == self.unit, f"{self.reach} is not in {self.unit!r}"
        bound = float(match[2].replace(",", ""))
        if match[1] == "=":
            return self.got == bound
        return self.got >= bound if match[1] == "≥" else self.got <= bound

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        unit = f" {self.unit}" if self.unit else ""
        spread = f"{number(self.low)} to {number(self.high)}"
        verdict = {True: "reached", False: "**missed**", None: ""}[self.reached]
        said = "; ".join(filter(None, (verdict, self.note)))
        return (self.what, self.against, self.reach, number(self.got) + unit, spread, said)


@dataclass(frozen=True)
class Table:
    """A further table: any cells."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Report:
    """What a benchmark hands over.

    Attributes:
        name: Its name, as in `make bench ARGS=name`.
        title: The page's heading.
        figures: The figures of the summary, those with something to reach first.
        tables: Further tables.
        remarks: Paragraphs below the figures: what was done, in words.
        plots: PNGs, drawn beside the page.
        server: What it ran on, from `servers.describe`.
    """

    name: str
    title: str
    figures: Sequence[Figure]
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    server: str = ""

    def write(self, directory: Path, scale: Scale) -> None:
        """Write NAME.md, NAME.json and the plots."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(self._data(scale), indent=1, ensure_ascii=False) + "\n", "utf-8")
        (directory / f"{self.name}.md").write_text(self.markdown(scale), "utf-8")
        for plot in self.plots:
            plot.write(directory)

    def markdown(self, scale: Scale) -> str:
        """The page."""
        server = f" {self.server}" if self.server else ""
        parts = [
            f"# {self.title}",
            f"`make bench ARGS='{_option(scale)}{self.name}'`, on {os.cpu_count()} cores.{server}",
            _table(_HEADINGS, [figure.cells() for figure in self.figures]),
            *self.remarks,
            *(f"![{plot.what}]({plot.file})" for plot in self.plots),
        ]
        for table in self.tables:
            parts += [f"## {table.title}", _table(table.headings, table.rows)]
        return "\n\n".join(parts) + "\n"

    def _data(self, scale: Scale) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "scale": scale.value,
            "cores": os.cpu_count(),
            "server": self.server,
            "figures": [asdict(figure) | {"reached": figure.reached} for figure in self.figures],
        }


def read_figures(path: Path) -> list[Figure]:
    """The figures of a NAME.json."""
    data = json.loads(path.read_text(encoding="utf-8"))
    known = Figure.__dataclass_fields__
    return [
        Figure(**{name: value for name, value in figure.items() if name in known})
        for figure in data["figures"]
    ]


def summarise(directory: Path, names: Sequence[str]) -> None:
    """Write summary.md: the figures of all reports that are there, in this order of names."""
    paths = [path for name in names if (path := directory / f"{name}.json").exists()]
    scales = {json.loads(path.read_text(encoding="utf-8"))["scale"] for path in paths}
    rows = [figure.cells() for path in paths for figure in read_figures(path) if figure.reach]
    pages = ", ".join(f"[{path.stem}]({path.stem}.md)" for path in paths)
    parts = [
        "# Figures",
        f"Medians of alternating rounds, each beside what it is compared with; scale: "
        f"{', '.join(sorted(scales))}. How, and what else was measured: {pages}.",
        _table(_HEADINGS, rows),
    ]
    (directory / "summary.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def number(value: float) -> str:
    """A number with three digits that mean something, or all those before the point."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return (
        f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    )


def _option(scale: Scale) -> str:
    return {Scale.ORDINARY: ""}.get(scale, f"--{scale.value} ")


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        text = number(value) if isinstance(value, int | float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    numeric = [
        bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        for place in range(len(headings))
    ]
    ruler = "|" + "|".join("--:" if right else "---" for right in numeric) + "|"
    return "\n".join([line(headings), ruler, *map(line, rows)])
