"""Kinds of values that options take, where click's own let through what nobody can mean."""

from __future__ import annotations

import math
from typing import Any

import click

from pyscore.cli.wording import printable


class Seconds(click.FloatRange):
    """A number of seconds within a range; for click every range has room for ``nan``."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class PlainText(click.types.StringParamType):
    """Text for the database; bytes that are none in the shell's locale come as surrogates."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the text as it is.

        Raises:
            click.BadParameter: It is none.
        """
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            said = printable(text)
            self.fail(f"{said!r} holds bytes that are no text in this shell's locale", param, ctx)
        return text
