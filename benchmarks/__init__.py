"""What the README claims, measured: run by `make bench`, or `python -m benchmarks`."""
