"""How large a run is."""

from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Scale(Enum):
    """How large a run is; what that means, each benchmark says itself, by `pick`."""

    SMOKE = "smoke"
    """A few hundred rows, in seconds: whether it works and its counts are right. No speed."""
    QUICK = "quick"
    """All of it in a few minutes."""
    ORDINARY = "ordinary"
    """What results/ was made with: up to 1,000,000 users."""
    FULL = "full"
    """As ordinary, with 5,000,000 users where growth is the question."""

    def pick(self, *, smoke: T, quick: T, ordinary: T, full: T | None = None) -> T:
        """Return what belongs to this scale; `full` is as `ordinary` where it is left out."""
        sizes = {
            Scale.SMOKE: smoke,
            Scale.QUICK: quick,
            Scale.ORDINARY: ordinary,
            Scale.FULL: ordinary if full is None else full,
        }
        return sizes[self]
