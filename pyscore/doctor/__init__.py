"""Looks for everything that is known to break, and says what mends it."""

from pyscore.doctor.examination import examine
from pyscore.doctor.findings import Finding, Level, Limits

__all__ = ["Finding", "Level", "Limits", "examine"]
