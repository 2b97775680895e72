"""What works on this machine, tried in seconds and offline: for an app's support page and tests.

Nothing leaves the machine: requests have the floor ``device``, and a cloud is named, not asked.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from overspill._version import __version__
from overspill.errors import EngineError, MissingExtra, OverspillError, UnsupportedOption
from overspill.types.card import ModelCard
from overspill.types.route import Route

_PROMPT = "Sort: 3, 1, 2"
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
_TOOL = {"name": "note", "parameters": _SCHEMA}
_OPTIONAL = ("llama_cpp", "mlx_lm", "pydantic", "httpx2", "keyring")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. ``ok`` None: it is not there, or does not apply, and why."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All that was tried; ``ok`` where nothing failed."""

    checks: tuple[Check, ...]
    version: str = __version__

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.ok is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return {
            "ok": self.ok,
            "version": self.version,
            "checks": [asdict(check) for check in self.checks],
        }


Client = Any
"""An open :class:`~overspill.client.AsyncOverspill`, which imports this module."""


async def try_all(ai: Client) -> SelfTest:
    """Try everything, each by itself: one that fails keeps none of the others from being tried."""
    tries: dict[str, Callable[[Client], Awaitable[str]]] = {
        "system": _system,
        "places": _places,
        "crypto": _crypto,
        "answer": _answer,
        "plan": _plan,
        "cancel": _cancel,
        "output": _output,
        "tools": _tools,
        "embeddings": _embeddings,
        "receipts": _receipts,
        "daemon": _daemon,
        "cloud": _cloud,
    }
    return SelfTest(tuple([await _tried(name, one, ai) for name, one in tries.items()]))


def not_opened(error: OverspillError) -> SelfTest:
    """For a client that could not even be opened."""
    return SelfTest((Check("open", False, error.message, error.mend),))


class _NotHere(Exception):
    """It does not apply here; the text says why."""


async def _tried(name: str, one: Callable[[Client], Awaitable[str]], ai: Client) -> Check:
    started = time.perf_counter()
    ok: bool | None = True
    mend = ""
    try:
        detail = await one(ai)
    except _NotHere as reason:
        ok, detail = None, str(reason)
    except (UnsupportedOption, MissingExtra) as error:
        ok, detail, mend = None, error.message, error.mend
    except OverspillError as error:
        ok, detail, mend = False, error.message, error.mend
    except Exception as error:  # whatever breaks here is what the test is to find
        ok, detail = False, f"{type(error).__name__}: {error}"
    return Check(name, ok, detail, mend, round(time.perf_counter() - started, 4))


async def _system(ai: Client) -> str:
    there = [name for name in _OPTIONAL if find_spec(name) is not None]
    frozen = ", in a bundle" if getattr(sys, "frozen", False) else ""
    return (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}{frozen}; "
        f"with {', '.join(there) or 'no optional package'}."
    )


async def _places(ai: Client) -> str:
    for folder in (ai.settings.places.state, ai.settings.places.data):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".selftest-")
        os.close(handle)
        os.unlink(name)
    return "The folders for state and models can be written."


async def _crypto(ai: Client) -> str:
    """A device key signs; what it signed verifies, and nothing else does."""
    from overspill.errors import DeviceRejected
    from overspill.identity.keys import SoftwareKey
    from overspill.sealing.signing import verify_signature

    key = SoftwareKey.generate(int(time.time()) + 60)
    signature = key.sign(b"selftest")
    verify_signature(key.public_der, signature, b"selftest")
    try:
        verify_signature(key.public_der, signature, b"another")
    except DeviceRejected:
        return "Keys are made, sign and verify."
    raise EngineError("A signature verified for what was not signed.")


async def _answer(ai: Client) -> str:
    reply = await ai.chat(_PROMPT, privacy="device", max_tokens=16)
    if not reply.text and not reply.reasoning:
        raise EngineError(f"{reply.model} answered with nothing.", mend="Try another model.")
    first = "" if reply.ttft_s is None else f", the first word after {1e3 * reply.ttft_s:.0f} ms"
    return f"{reply.model} answered on this device{first}."


async def _plan(ai: Client) -> str:
    plan = await ai.plan(_PROMPT, privacy="device")
    if plan.route is not Route.DEVICE:
        raise EngineError(f"Under the floor 'device' the route is {plan.route}.")
    return f"{plan.prompt_tokens} prompt tokens on {plan.model}; {plan.bytes_leaving} bytes leave."


async def _cancel(ai: Client) -> str:
    async with aclosing(ai.stream(_PROMPT, privacy="device")) as pieces:
        async for _ in pieces:
            break
    await ai.chat(_PROMPT, privacy="device", max_tokens=1)
    return "An answer that is left frees the model."


async def _device_card(ai: Client) -> ModelCard:
    name = (await ai.plan(_PROMPT, privacy="device")).model
    cards: tuple[ModelCard, ...] = await ai.models()
    return next(card for card in cards if card.name == name)


async def _output(ai: Client) -> str:
    card = await _device_card(ai)
    if not card.json_schema:
        raise _NotHere(f"{card.name} cannot be held to a schema.")
    reply = await ai.chat(_PROMPT, output=_SCHEMA, privacy="device", max_tokens=64)
    return f"An answer was held to a schema: {reply.output}."


async def _tools(ai: Client) -> str:
    card = await _device_card(ai)
    if not (card.tools and card.json_schema):
        raise _NotHere(f"{card.name} cannot be made to call tools.")
    reply = await ai.chat(
        _PROMPT, tools=[_TOOL], tool_choice="required", privacy="device", max_tokens=128
    )
    if not reply.tool_calls:
        raise EngineError(f"{card.name} did not make a call that was required.")
    return "A tool call was forced and read."


async def _embeddings(ai: Client) -> str:
    reply = await ai.embed("selftest")
    return f"{reply.model} gives vectors of {reply.embeddings[0].dimensions} dimensions."


async def _receipts(ai: Client) -> str:
    found = await ai.receipts(1)
    return "The receipts can be read." if found else "The receipts can be read; there are none."


async def _daemon(ai: Client) -> str:
    if ai.uses_daemon:
        return "The daemon answers."
    raise _NotHere(str(ai.daemon_problem or "No daemon was looked for."))


async def _cloud(ai: Client) -> str:
    if ai.settings.cloud is None:
        raise _NotHere("No cloud is set.")
    raise _NotHere(f"{ai.settings.cloud.address} is set; nothing was asked of it.")
