"""Small PNGs that can be read on a light page and on a dark one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import figure

OURS = "#3b8ed0"
OTHER = "#d9822b"
FURTHER = ("#7a9e3a", "#a86bc4", "#c8504b")
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

# Its types are too many to be followed.
_mpl: Any = mpl
_Figure: Any = figure.Figure


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
        ink = dict.fromkeys(_INKED, _INK)
        with _mpl.rc_context(_STYLE | ink):
            drawn = _Figure(figsize=(self.width, self.height), layout="constrained")
            self.draw(drawn.add_subplot())
            drawn.savefig(
                directory / self.file, dpi=120, transparent=True, metadata={"Software": None}
            )
