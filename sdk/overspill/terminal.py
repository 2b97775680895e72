"""Runs a command line: the one place where errors become lines, JSON and exit codes.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model missing, 4 refused by policy or not certifiable,
5 does not fit, 6 cloud, trust or attestation, 7 busy, 130 cancelled.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperGroup

from overspill.config import default_places, quiet_grpc
from overspill.errors import OverspillError

_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class Verbs(TyperGroup):
    """A group whose help says in whole sentences what its verbs do, in the order of ``sections``;
    what no section names comes last."""

    sections: ClassVar[Mapping[str, Sequence[str]]] = {}

    def by_section(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """(heading, [(verb, what it does)]) for each section that has verbs."""
        shown = {name: told for name, told in self._told().items() if told is not None}
        for heading, names in self.sections.items():
            rows = [(name, shown.pop(name)) for name in names if name in shown]
            if rows:
                yield heading, rows
        if shown:
            yield ("More" if self.sections else "Commands"), list(shown.items())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """What ``--help`` lists."""
        for heading, rows in self.by_section():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def _told(self) -> dict[str, str | None]:
        """The first sentence of each verb's help; None for a hidden one."""
        return {
            name: None if verb.hidden else _first_sentence(verb.help or verb.short_help or "")
            for name, verb in self.commands.items()
        }


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    return paragraph.split(". ", 1)[0].rstrip(".") + "."


def run_app(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Run one command line and return its exit code. Prints errors, never a traceback."""
    as_json = "--json" in arguments
    _escape_what_cannot_be_shown()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"{program}: {message}", file=sys.stderr)
        return _run(app, program, arguments, as_json)


def print_document(document: Any, indent: int | None = None) -> None:
    """One JSON document on standard output, in escapes where its encoding has no other way."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=indent)
    print(text)


def _escape_what_cannot_be_shown() -> None:
    """An answer in letters that a terminal does not know is shown in escapes, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@functools.cache
def _command(app: typer.Typer) -> Any:
    """Every verb's options are read to build it: a tenth of a second, so once for a process."""
    return typer.main.get_command(app)


def _run(app: typer.Typer, program: str, arguments: list[str], as_json: bool) -> int:
    quiet_grpc()  # before anything imports grpc: errors are ours to tell, in one line
    try:
        code = _command(app)(args=arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
        return code if isinstance(code, int) else 0
    except OverspillError as error:
        return _fail(program, _with_partial(error, as_json), error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(program, _line("cancelled", "Cancelled."), 130, as_json)
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as ended:  # typer ends so where it met the closed pipe itself
        if isinstance(ended.__context__, BrokenPipeError):
            return _nobody_reads()
        raise
    except Exception as error:
        if (shown := _help_of_bare_group(error)) is not None:
            print(shown, file=sys.stderr)
            return 2
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            return _fail(program, _unwritable(error), 1, as_json)
        if (usage := _usage_message(error)) is not None:
            line = _line("usage", usage, f"See: {_path_of(error) or program} --help")
            return _fail(program, line, 2, as_json)
        return _fail(program, _unexpected(error), 1, as_json)


def _nobody_reads() -> int:
    """Who reads the output has left (``| head``): that is its right. What is still buffered goes
    nowhere, or the interpreter would complain of it at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _unwritable(error: OSError) -> dict[str, str]:
    what = error.filename or "The output"
    return _line("unwritable", f"{what} cannot be written: {error.strerror}.", "Make room.")


def _help_of_bare_group(error: Exception) -> str | None:
    """``overspill cloud`` without a verb: its help is the answer."""
    if type(error).__name__ != "NoArgsIsHelpError":
        return None
    context: Any = getattr(error, "ctx", None)
    return None if context is None else str(context.get_help())


def _usage_message(error: Exception) -> str | None:
    # typer may carry its own copy of click: recognise its usage errors by what they offer.
    message = getattr(error, "format_message", None)
    return " ".join(message().split()) if callable(message) else None


def _path_of(error: Exception) -> str | None:
    """The verb whose help says what was wrong: ``overspill models pull``."""
    return getattr(getattr(error, "ctx", None), "command_path", None)


def _unexpected(error: Exception) -> dict[str, str]:
    note = default_places().state / "last-error.txt"
    what = f"Unexpected {type(error).__name__}."
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as unwritten:
        return _line("unexpected", what, f"{note} could not be written: {unwritten.strerror}.")
    return _line("unexpected", what, f"The details are in {note}; please report them.")


def _line(code: str, message: str, mend: str = "") -> dict[str, str]:
    return {"code": code, "message": message, "mend": mend}


def _with_partial(error: OverspillError, as_json: bool) -> dict[str, str]:
    """The error's line; text that came before it is kept, and called what it is."""
    fields = error.as_dict()
    if error.partial and as_json:
        fields["partial"] = error.partial
    elif error.partial:  # it has been printed as it came
        print()
        print("(The text above is unconfirmed: the answer broke off.)", file=sys.stderr)
    return fields


def _fail(program: str, error: dict[str, str], exit_code: int, as_json: bool) -> int:
    if as_json:
        try:
            print(json.dumps({"error": error}), flush=True)
            return exit_code
        except OSError:  # standard output cannot be written: then in words
            _nobody_reads()
    with suppress(OSError):
        print(f"{program}: {error['message']} {error['mend']}".rstrip(), file=sys.stderr)
    return exit_code
