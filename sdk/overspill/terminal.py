"""Runs a command line: the one place where errors become lines, JSON and exit codes.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model missing, 4 refused by policy or not certifiable,
5 does not fit, 6 cloud, trust or attestation, 7 busy, 130 cancelled.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings

import typer

from overspill.config import default_places, quiet_grpc
from overspill.errors import OverspillError


def run_app(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Run one command line and return its exit code. Prints errors, never a traceback."""
    as_json = "--json" in arguments
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"{program}: {message}", file=sys.stderr)
        return _run(app, program, arguments, as_json)


def _run(app: typer.Typer, program: str, arguments: list[str], as_json: bool) -> int:
    quiet_grpc()  # before anything imports grpc: errors are ours to tell, in one line
    try:
        code = app(args=arguments, prog_name=program, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except OverspillError as error:
        return _fail(program, _with_partial(error, as_json), error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(program, _line("cancelled", "Cancelled."), 130, as_json)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if (usage := _usage_message(error)) is not None:
            line = _line("usage", usage, f"See: {program} --help")
            return _fail(program, line, 2, as_json)
        return _fail(program, _unexpected(error), 1, as_json)


def _usage_message(error: Exception) -> str | None:
    # typer may carry its own copy of click: recognise its usage errors by what they offer.
    message = getattr(error, "format_message", None)
    return " ".join(message().split()) if callable(message) else None


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
        print(json.dumps({"error": error}))
    else:
        print(f"{program}: {error['message']} {error['mend']}".rstrip(), file=sys.stderr)
    return exit_code
