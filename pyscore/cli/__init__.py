"""The command ``pyscore``."""

import sys


def main() -> None:
    """Run the command line; every error is one line on stderr and an exit code."""
    try:
        # here, so that Ctrl-C is answered while the rest is being loaded
        from pyscore.cli.root import run

        code = run()
    except KeyboardInterrupt:
        code = 1
        # a terminal has written ^C on this line
        start = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}pyscore: stopped\n")
    sys.exit(code)
