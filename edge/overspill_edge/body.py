"""A JSON body, read and checked the same way in every dialect.

Each parameter that a dialect defines is honoured, or harmless and passed over, or refused by
name with 400: nothing is dropped in silence, and no error repeats a value, which could be
content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from overspill.content import read_content
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import Image

_Model = TypeVar("_Model", bound=BaseModel)

NonEmpty = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
UNREADABLE = "unsupported_part"
"""The type of a validator's error about a part of a message that cannot be read."""


_encode = json.JSONEncoder(allow_nan=False).encode
_MAY_BE_INFINITE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{200}")
"""Any number over 1.8e308 looks like this, with other text; few bodies have to be looked at."""


class Strict(BaseModel):
    """A part of a body: no other field, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is not honoured in one dialect: passed over, harmless with some values, or refused.

    ``refused`` says how to mend each; ``harmless`` are values of those that change nothing.
    """

    passed_over: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    harmless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def honoured(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What is left to honour. Raises ``UnsupportedOption`` for what cannot be had."""
        return {k: v for k, v in document.items() if not self._is_passed_over(k, v)}

    def _is_passed_over(self, name: str, value: Any) -> bool:
        if name in self.passed_over or (name in self.refused and value is None):
            return True
        if name not in self.refused:
            return False
        fine = self.harmless.get(name, ())
        if any(value == each and type(value) is type(each) for each in fine):
            return True
        what = f"This value of '{name}'" if fine else f"'{name}'"
        raise UnsupportedOption(f"{what} is not supported.", param=name, mend=self.refused[name])


def read_document(body: bytes) -> dict[str, Any]:
    """A body's JSON object, or ``InvalidRequest``.

    The parser refuses what is not JSON in UTF-8 and nesting over 200 levels.
    """
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
        if _MAY_BE_INFINITE.search(body):
            _encode(document)  # 1e999 is JSON, but infinite when read
    except ValueError as error:
        raise InvalidRequest(
            f"The body is not JSON that can be read: {error}.", mend="Send one JSON object."
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body is not a JSON object.", mend="Send one JSON object.")
    return document


def checked(model: type[_Model], body: bytes, parameters: Parameters) -> _Model:
    """The body as ``model``. Raises ``InvalidRequest`` that names the parameter."""
    document = parameters.honoured(read_document(body))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise first_error(error, document) from None


def first_error(error: ValidationError, document: dict[str, Any]) -> InvalidRequest:
    """The first thing wrong, without the value: that could be content."""
    found = error.errors(include_url=False, include_input=False)[0]
    path = _path(found["loc"], document)
    if found["type"].startswith("union_tag"):
        member = found["ctx"]["discriminator"].strip("'")
        if "(" in member:  # a function that tells the members apart: by their type
            member = "type"
        known = found["ctx"].get("expected_tags", "one that the API reference names")
        return InvalidRequest(
            f"'{path}.{member}' is missing or unknown.",
            param=f"{path}.{member}",
            mend=f"Use {known}.",
        )
    if found["type"] == "extra_forbidden":
        return UnsupportedOption(f"'{path}' is not known.", param=path, mend="Leave it out.")
    if found["type"] == UNREADABLE:
        return UnsupportedOption(f"'{path}': {found['msg']}.", param=path)
    return InvalidRequest(f"'{path}': {found['msg']}.", param=path, mend="See the API reference.")


def _path(location: tuple[int | str, ...], document: Any) -> str:
    """``messages[0].content``: the part of pydantic's location that is also in the document.

    The rest names members of unions; the last step may be a key that is missing.
    """
    path = ""
    for index, step in enumerate(location):
        inside = (isinstance(document, dict) and step in document) or (
            isinstance(document, list) and isinstance(step, int) and step < len(document)
        )
        if not inside and index != len(location) - 1:
            continue
        if isinstance(document, list | dict):
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        document = document[step] if inside else None
    return path.removeprefix(".")


def unreadable(message: str) -> PydanticCustomError:
    """For a validator: a part of a message that cannot be read, and why."""
    return PydanticCustomError(UNREADABLE, message.rstrip("."))


def shown(parts: list[dict[str, Any]]) -> tuple[str, tuple[Image, ...]]:
    """Text and images of OpenAI's content parts, for a validator: raises its kind of error."""
    try:
        return read_content(parts)
    except InvalidRequest as error:
        raise unreadable(error.message) from None
