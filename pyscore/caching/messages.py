"""What is heard on the channel: whose scores changed."""

from __future__ import annotations

import json
from typing import Any, cast

CHANNEL = "builder_score_changed"


def users_in(payload: bytes) -> list[str] | None:
    """Return the ids that a message names; None for everybody.

    Args:
        payload: ``{"user_ids": ["…"]}`` or ``{"all": true}``.

    Raises:
        ValueError: It is neither. Whoever may connect may send anything.
    """
    try:
        message: Any = json.loads(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    said = cast("dict[str, Any]", message)
    if said.get("all") is True:
        return None
    ids: Any = said.get("user_ids")
    if not isinstance(ids, list):
        raise ValueError("neither user_ids nor all")
    texts = cast("list[Any]", ids)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("an id is not text")
    return texts
