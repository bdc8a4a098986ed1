"""Small PNGs that can be read on a light page and on a dark one."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = "#3b8ed0"
OTHER = "#d9822b"
"""Colours with enough contrast on white and on black."""

_INK = "#808080"
_INKED = (
    *("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"),
    *("xtick.color", "ytick.color", "grid.color"),
)
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """A PNG, drawn when the report is written.

    Attributes:
        file: Its name, beside the report.
        what: What it shows, for those who do not see it.
        draw: Draws on the matplotlib Axes that it is given.
    """

    file: str
    what: str
    draw: Callable[[Any], object]
    width: float = 7
    height: float = 3.5

    def write(self, directory: Path) -> None:
        """Draw it: a transparent ground, and an ink that both white and black leave legible."""
        # Takes a second; and its types are too many to be followed.
        matplotlib: Any = import_module("matplotlib")
        figure: Any = import_module("matplotlib.figure")
        with matplotlib.rc_context(_STYLE | dict.fromkeys(_INKED, _INK)):
            drawn = figure.Figure(figsize=(self.width, self.height), layout="constrained")
            self.draw(drawn.add_subplot())
            drawn.savefig(
                directory / self.file, dpi=120, transparent=True, metadata={"Software": None}
            )
