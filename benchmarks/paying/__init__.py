"""The parts of `application`: what the application pays."""
