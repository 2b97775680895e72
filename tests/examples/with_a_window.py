"""Runs an example that opens a window, and does with it what a person would do.

The tests call it as a program of its own, with a display: ``with_a_window.py ACTION``.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import tkinter as tk
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE_S = 60
Steps = Iterator[Callable[[], bool]]
"""What a person does: each step waits for what it yields, and goes on when that is seen."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def act(window: tk.Tk, steps: Steps) -> None:
    """Take the steps in the window's own loop."""
    awaited, ends = next(steps), time.monotonic() + PATIENCE_S

    def give_up(*error) -> None:
        sys.excepthook(*error)
        window.destroy()

    window.report_callback_exception = give_up

    def look() -> None:
        nonlocal awaited
        assert time.monotonic() < ends, "waited in vain"
        try:
            if awaited():
                awaited = next(steps)
        except StopIteration:
            return
        window.after(5, look)

    window.after(0, look)


def press(button: tk.Widget) -> None:
    """The mouse's left button, over the middle of a widget that is on the screen."""
    button.update()
    click(button)


def click(button: tk.Widget) -> None:
    """The same at once: the window does nothing in between."""
    at = {"x": button.winfo_width() // 2, "y": button.winfo_height() // 2}
    for event in ("<Enter>", "<ButtonPress-1>", "<ButtonRelease-1>"):
        button.event_generate(event, **at)


def enter(widget: tk.Widget) -> None:
    widget.focus_force()
    widget.update()
    widget.event_generate("<Return>")


def asked_and_cancelled(window: tk.Tk) -> Steps:
    """Ask by the button, by the Return key, and leave the third answer by the other button."""

    def is_free() -> bool:
        return not window.ask_button.instate(["disabled"])

    def tell() -> None:
        print(window.answer.get("1.0", "end").split("\n")[-2], "|", window.status["text"])

    yield window.prompt.winfo_viewable
    for begin in (
        lambda: press(window.ask_button),
        lambda: enter(window.prompt),
    ):
        window.prompt.delete(0, "end")
        window.prompt.insert(0, "Sort in ascending order: 21, 14, 35")
        begin()
        assert not is_free()
        yield is_free
        tell()
    window.prompt.delete(0, "end")
    window.prompt.insert(0, "Tell me a short story.")
    press(window.ask_button)
    click(window.cancel_button)
    yield is_free
    tell()
    window.destroy()


def allowed_and_not(dialog: tk.Tk) -> Steps:
    """Allow the first request; keep the second."""
    for button in (dialog.allow, dialog.keep):
        yield button.winfo_viewable
        print(dialog.text["text"])
        press(button)
        yield lambda: not dialog.text.winfo_viewable()


def desktop() -> None:
    example = load("desktop_app")

    class Watched(example.Window):
        def __init__(self, *parts) -> None:
            super().__init__(*parts)
            act(self, asked_and_cancelled(self))

    example.Window = Watched
    example.main()


def consent() -> None:
    example = load("consent_dialog")

    class Watched(example.Consent):
        def __init__(self) -> None:
            super().__init__()
            act(self, allowed_and_not(self))

    example.Consent = Watched
    example.main()


if __name__ == "__main__":
    {"desktop": desktop, "consent": consent}[sys.argv[1]]()
