"""Runs docs/reading.md's Python: a statement at a time, comparing answers with what is shown.

An expression followed by a comment has to have the value that is shown: its repr, where ``…``
stands for anything, and what follows a semicolon is prose.

    reading_guide.follow("SQLAlchemy", {"User": User, "session": session})
"""

import ast
import inspect
import re
from collections.abc import Generator
from types import CodeType
from typing import Any

from tests.commands import ROOT
from tests.guide import Block, sections

GUIDE = ROOT / "docs" / "reading.md"
SECTIONS = sections(GUIDE)

Names = dict[str, Any]


def blocks(heading: str, language: str) -> list[Block]:
    """A section's blocks of one language, in their order; at least one."""
    found = [block for block in SECTIONS[heading] if block.language == language]
    assert found, f"{heading} has no {language} block"
    return found


def follow(heading: str, names: Names, *, replacing: dict[str, str] | None = None) -> Names:
    """Run a section's Python, all blocks with the same names; return the names.

    Args:
        heading: The section.
        names: What the reader has already, such as models and a session.
        replacing: Text in the code, such as an address, and what it is here.
    """
    run(_code(heading, replacing), names)
    return names


async def follow_async(
    heading: str, names: Names, *, replacing: dict[str, str] | None = None
) -> Names:
    """Like `follow`, for code that awaits at its top level."""
    for step, shown in _steps(_code(heading, replacing)):
        value = eval(step, names)
        if step.co_flags & inspect.CO_COROUTINE:
            value = await value
        _compare(value, shown)
    return names


def run(code: str, names: Names) -> None:
    """Run some Python as `follow` does."""
    for step, shown in _steps(code):
        _compare(eval(step, names), shown)


def _code(heading: str, replacing: dict[str, str] | None) -> str:
    code = "\n".join(block.body for block in blocks(heading, "python"))
    for old, new in (replacing or {}).items():
        assert old in code, f"{old!r} is not in the code"
        code = code.replace(old, new)
    return code


def _steps(code: str) -> Generator[tuple[CodeType, str | None]]:
    lines = code.splitlines()
    for statement in ast.parse(code).body:
        is_question = isinstance(statement, ast.Expr)
        node = ast.Expression(statement.value) if is_question else ast.Module([statement], [])
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        step = compile(node, "<shown code>", "eval" if is_question else "exec", flags=flags)
        comment = re.search(r"  # (.+)$", lines[(statement.end_lineno or 1) - 1])
        yield step, comment[1] if is_question and comment else None


def _compare(value: object, shown: str | None) -> None:
    if shown is None:
        return
    pattern = re.escape(shown.partition(";")[0].strip()).replace("…", ".*")
    assert re.fullmatch(pattern, repr(value), re.DOTALL), f"shown {shown!r}, got {value!r}"
