"""Small PNGs that can be read on a light page and on a dark one."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import figure

OURS = "#3b8ed0"
OTHER = "#d9822b"
FURTHER = ("#7a9e3a", "#a86bc4", "#c8504b")
"""Colours with enough contrast on white and on black."""

_INK = "#808080"

# Its types are too many to be followed.
_mpl: Any = mpl
_Figure: Any = figure.Figure


@contextmanager
def plot(path: Path, *, width: float = 7, height: float = 3.5) -> Generator[Any]:
    """Draw on the Axes that it yields; then the file is written.

    The ground is transparent, the ink a grey that both white and black leave legible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
        ),
        "axes.titlecolor": _INK,
        "grid.color": _INK,
    }
    with _mpl.rc_context(style):
        drawn = _Figure(figsize=(width, height), layout="constrained")
        axes = drawn.add_subplot()
        yield axes
        drawn.savefig(path, dpi=120, transparent=True, metadata={"Software": None})
