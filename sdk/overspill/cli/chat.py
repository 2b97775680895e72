"""`overspill chat`: a conversation in the terminal.

Ctrl-C stops the answer that is being written and keeps the conversation; Ctrl-D or /exit leaves.
What is said is kept in memory only, and gone with the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from overspill.cli.answers import ShownAnswer, explain, explain_checks, show
from overspill.cli.common import (
    CloudAddress,
    Model,
    PrivacyFloor,
    TrustPolicyFile,
    settings_for,
)
from overspill.cli.first_run import obtain_model, suggest_model
from overspill.errors import OverspillError
from overspill.sync import Overspill

HELP = """\
/new     forget this conversation and begin another
/undo    take the last question and its answer back
/why     why the last answer came from where it came
/help    this list
/exit    leave (also Ctrl-D); Ctrl-C stops an answer"""


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("chat")(chat)


def chat(
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    system: Annotated[str | None, typer.Option(help="How the model is to behave.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most so many tokens.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
) -> None:
    """Talk in the terminal; each answer says who gave it and what left this device."""
    settings = settings_for(model, cloud, trust_policy, privacy)
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    obtain_model(settings)
    if model is None:
        suggest_model(settings)
    with Overspill(app="cli", settings=settings) as ai:
        if sys.stdin.isatty():
            with suppress(ImportError):  # line editing where the system has it
                import readline

                del readline
            print("Ctrl-C stops an answer, /help shows what else there is.", file=sys.stderr)
        Conversation(ai, options, system).run(read_line)


@dataclass(slots=True)
class Conversation:
    """One conversation at a time, and what was last decided about it."""

    ai: Overspill
    options: dict[str, Any]
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    last: ShownAnswer | None = None

    def run(self, read_line: Callable[[], str | None]) -> None:
        """Until the input ends or somebody says /exit."""
        while (line := read_line()) is not None:
            words = line.strip()
            if words in ("/exit", "/quit"):
                return
            if words.startswith("/") and len(words.split()) == 1:
                self._command(words)
            elif words:
                self._ask(line)

    def _command(self, words: str) -> None:
        if words == "/new":
            self.turns.clear()
            print("(A new conversation.)", file=sys.stderr)
        elif words == "/undo":
            del self.turns[-2:]
            print(f"({len(self.turns) // 2} questions are left.)", file=sys.stderr)
        elif words == "/why":
            self._why()
        else:
            if words != "/help":
                print(f"There is no {words}:", file=sys.stderr)
            print(HELP, file=sys.stderr)

    def _why(self) -> None:
        if self.last is None or self.last.route is None:
            print("(There is no answer yet.)", file=sys.stderr)
            return
        explain(self.last.route.decision)
        explain_checks(self.last.route)

    def _ask(self, text: str) -> None:
        """Ask with all that was said before; a failed question is not part of the conversation."""
        shown = ShownAnswer()
        asked = [*self.turns, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self.system}] if self.system else []
        try:
            show(self.ai, self.ai.build([*head, *asked], **self.options), shown)
        except KeyboardInterrupt:
            print(f"\n[stopped; {shown.line}]", file=sys.stderr)
            if not shown.text:
                return
        except OverspillError as error:
            if shown.text:
                print("\n(The text above is unconfirmed: the answer broke off.)", file=sys.stderr)
            print(f"overspill: {error}", file=sys.stderr)
            return
        self.last = shown
        self.turns = [*asked, {"role": "assistant", "content": shown.text}]


def read_line() -> str | None:
    """A line, or None at the end; Ctrl-C at the prompt only empties the line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            return input(prompt)
        except EOFError:
            if prompt:
                print()
            return None
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves.)", file=sys.stderr)
