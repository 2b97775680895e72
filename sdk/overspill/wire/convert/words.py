"""What protobuf cannot check: JSON in a string, and words of a closed set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from overspill.errors import InvalidRequest


def dump(value: Mapping[str, Any]) -> str:
    """The shortest JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def load_object(text: str, param: str) -> dict[str, Any]:
    """A JSON object; raises ``InvalidRequest``."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{param}' is not valid JSON.", param=param) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{param}' must be a JSON object.", param=param)
    return value


def word(value: str, known: tuple[str, ...], param: str) -> str:
    """One of the ``known`` words; raises ``InvalidRequest``."""
    if value not in known:
        raise InvalidRequest(
            f"'{param}' is {value!r}.", param=param, mend=f"Use one of: {', '.join(known)}."
        )
    return value
