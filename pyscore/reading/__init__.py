"""The parts of `pyscore.ScoreReader`: what it has learned, what it asks, how it asks it."""
