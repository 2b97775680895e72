"""Consent, asked of a person: one dialog for each request that only a third party could answer.

The text is too long for the device's model, and there is no cloud of one's own. A stand-in on
loopback plays the third party, so that this runs without an account.
"""

import json
import threading
import time
import tkinter as tk
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Empty, SimpleQueue
from tkinter import ttk

from overspill import Grant, ModelCard, Overspill, OverspillError, Plan, Privacy, load_settings
from overspill.opening import open_third_party
from overspill.providers.openai_api import ProviderOptions

NAME = "maker.example"
GRANT_S = 60
POLL_MS = 20
REPORT = "The meeting was long, and nobody wrote down what was said. " * 120


class Consent(tk.Tk):
    """Shows one plan after the other; whoever asks waits in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.title("May this leave?")
        self._asked: SimpleQueue[tuple[Plan, Future[bool]]] = SimpleQueue()
        self._answer: Future[bool] | None = None
        self.text = ttk.Label(self, padding=16, wraplength=420)
        self.allow = ttk.Button(self, text="Send it, this once", command=lambda: self.say(True))
        self.keep = ttk.Button(self, text="Don't send", command=lambda: self.say(False))
        self.text.pack()
        self.keep.pack(side="right", padx=16, pady=16)
        self.allow.pack(side="right")
        self.bind("<Escape>", lambda event: self.say(False))
        self.protocol("WM_DELETE_WINDOW", lambda: self.say(False))
        self.withdraw()
        self._poll()

    def on_consent(self, plan: Plan) -> Grant | None:
        """What the client calls, in a thread: a grant for this one request, or None."""
        answer: Future[bool] = Future()
        self._asked.put((plan, answer))
        if not answer.result():
            return None
        return Grant(NAME, plan.request_id, expires_unix=int(time.time()) + GRANT_S)

    def say(self, allowed: bool) -> None:
        """The person's answer."""
        answer, self._answer = self._answer, None
        self.withdraw()
        if answer is not None:
            answer.set_result(allowed)

    def _poll(self) -> None:
        if self._answer is None:
            try:
                plan, self._answer = self._asked.get_nowait()
            except Empty:
                pass
            else:
                self._show(plan)
        self.after(POLL_MS, self._poll)

    def _show(self, plan: Plan) -> None:
        self.text["text"] = (
            f"Only {plan.model} at {NAME} can answer this. What would leave: {plan.would_leave}, "
            f"about {plan.bytes_leaving} bytes, for about {plan.estimated_cost:.4f} dollars."
        )
        self.deiconify()
        self.keep.focus()


class StandIn(BaseHTTPRequestHandler):
    """Answers as a provider would, and keeps nothing."""

    def do_POST(self) -> None:
        """Say how much came."""
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"delta": {"content": f"I have read {size} bytes."}, "finish_reason": "stop"}
        event = json.dumps({"model": "large", "choices": [choice]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def provider() -> Iterator[ProviderOptions]:
    """The stand-in, as one would write down a real one."""
    with HTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        card = ModelCard("large", context=100_000, runtime="openai", price_prompt_per_mtok=3.0)
        yield ProviderOptions(NAME, f"http://127.0.0.1:{server.server_port}/v1", card, "a key")
        server.shutdown()


def ask(dialog: Consent, times: int = 2) -> None:
    """The app's own work: the same request twice is asked about twice."""
    settings = replace(load_settings(), device_key="file").with_floor(Privacy.ANY)
    with (
        provider() as options,
        Overspill(
            app="consent",
            settings=settings,
            third_party=open_third_party(settings, options),
            on_consent=dialog.on_consent,
        ) as ai,
    ):
        for _ in range(times):
            try:
                reply = ai.chat(f"Sum this up: {REPORT}", max_tokens=100)
                print(f"{reply.text} -- {reply.route.route}, {reply.route.bytes_sent} bytes left")
            except OverspillError as error:
                print(f"{type(error).__name__}: {error}")


def main() -> None:
    """Ask in a thread, while the main thread is Tk's."""
    dialog = Consent()
    with ThreadPoolExecutor() as pool:
        work = pool.submit(ask, dialog)

        def leave_when_done() -> None:
            dialog.quit() if work.done() else dialog.after(POLL_MS, leave_when_done)

        leave_when_done()
        dialog.mainloop()
    work.result()


if __name__ == "__main__":
    try:
        main()
    except tk.TclError as error:
        raise SystemExit(f"No window can be opened: {error}.") from None
