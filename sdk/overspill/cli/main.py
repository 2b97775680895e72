"""The `overspill` command: its verbs, and the one place where errors become lines and exit codes.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model missing, 4 refused by policy or not certifiable,
5 does not fit, 6 cloud, trust or attestation, 7 busy, 130 cancelled.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points

import typer

from overspill import __version__
from overspill.cli import ask, cloud, demo, doctor, receipts, trust
from overspill.errors import OverspillError

app = typer.Typer(
    name="overspill",
    help="Language models that run where the user is and spill over into a proven cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overspill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    del version  # its callback has printed it


for module in (ask, cloud, demo, doctor, receipts, trust):
    module.register(app)


def run() -> None:
    """Entry point of the script: load other packages' verbs, run, and end with an exit code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Prints errors, never a traceback."""
    as_json = "--json" in arguments
    try:
        for point in entry_points(group="overspill.commands"):
            _register(point)
        code = app(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except OverspillError as error:
        return _fail(_with_partial(error, as_json), error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_line("cancelled", "Cancelled."), 130, as_json)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if (usage := _usage_message(error)) is not None:
            mend = "See: overspill --help"
            return _fail(_line("usage", usage, mend), 2, as_json)
        return _fail(_unexpected(error), 1, as_json)


def _register(point: object) -> None:
    from importlib.metadata import EntryPoint

    if isinstance(point, EntryPoint):
        try:
            register = point.load()
        except ImportError:  # the extra is not installed: its verbs are not there
            return
        register(app)


def _usage_message(error: Exception) -> str | None:
    # typer may carry its own copy of click: recognise its usage errors by what they offer.
    message = getattr(error, "format_message", None)
    return " ".join(message().split()) if callable(message) else None


def _unexpected(error: Exception) -> dict[str, str]:
    import traceback

    from overspill.config import default_places

    note = default_places().state / "last-error.txt"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    what = f"Unexpected {type(error).__name__}."
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


def _fail(error: dict[str, str], exit_code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": error}))
    else:
        print(f"overspill: {error['message']} {error['mend']}".rstrip(), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    run()
