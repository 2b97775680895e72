"""A desktop app: a window that asks, shows the answer as it grows and where it came from.

Tk keeps the main thread and never waits. The client runs on an event loop in a thread of its own,
so that Cancel ends the work at any moment: in the queue, in a long prompt, between two tokens.
"""

import tkinter as tk
from concurrent.futures import Future
from queue import SimpleQueue
from tkinter import ttk

from anyio.from_thread import BlockingPortal, start_blocking_portal

from overspill import AsyncOverspill, OverspillError, ReplyChunk

POLL_MS = 20


class Window(tk.Tk):
    """A line to ask in, two buttons, the answer, and a line that says who gave it."""

    def __init__(self, ai: AsyncOverspill, portal: BlockingPortal) -> None:
        super().__init__()
        self._ai, self._portal = ai, portal
        self._pieces: SimpleQueue[ReplyChunk | str] = SimpleQueue()
        self._work: Future[None] | None = None
        self.title("overspill")
        self.prompt = ttk.Entry(self, width=60)
        self.ask_button = ttk.Button(self, text="Ask", command=self.ask)
        self.cancel_button = ttk.Button(self, text="Cancel", command=self.cancel)
        self.answer = tk.Text(self, height=12, wrap="word")
        self.status = ttk.Label(self, text="Ask something.")
        self._lay_out()
        self._poll()

    def _lay_out(self) -> None:
        self.prompt.grid(row=0, column=0, sticky="ew", padx=8, pady=8)
        self.ask_button.grid(row=0, column=1)
        self.cancel_button.grid(row=0, column=2, padx=8)
        self.answer.grid(row=1, column=0, columnspan=3, sticky="nsew", padx=8)
        self.status.grid(row=2, column=0, columnspan=3, sticky="w", padx=8, pady=8)
        self.columnconfigure(0, weight=1)
        self.rowconfigure(1, weight=1)
        self.prompt.bind("<Return>", lambda event: self.ask())
        self.bind("<Escape>", lambda event: self.cancel())
        self.prompt.focus()
        self._set_busy(False)

    def ask(self) -> None:
        """Begin an answer, and go on at once."""
        if self._work is None:
            self.answer.delete("1.0", "end")
            self._set_busy(True)
            self._work = self._portal.start_task_soon(self._answer, self.prompt.get())

    def cancel(self) -> None:
        """End the answer in the making, if there is one."""
        if self._work is not None:
            self._work.cancel()

    async def _answer(self, prompt: str) -> None:
        """On the client's thread: the pieces, then how it ended."""
        ended = "Cancelled."
        try:
            async for piece in self._ai.stream(prompt, max_tokens=200):
                self._pieces.put(piece)
            ended = ""
        except OverspillError as error:
            ended = str(error)
        finally:
            self._pieces.put(ended)

    def _poll(self) -> None:
        """On Tk's thread: show what has come."""
        while not self._pieces.empty():
            self._show(self._pieces.get())
        self.after(POLL_MS, self._poll)

    def _show(self, piece: ReplyChunk | str) -> None:
        if isinstance(piece, str):
            self._work = None
            self._set_busy(False)
            self.status["text"] = piece or self.status["text"]
            return
        self.answer.insert("end", piece.text)
        route = piece.route
        self.status["text"] = f"{route.model} on the {route.route}; {route.bytes_sent} bytes left"

    def _set_busy(self, busy: bool) -> None:
        self.ask_button.state(["disabled" if busy else "!disabled"])
        self.cancel_button.state(["!disabled" if busy else "disabled"])


def main() -> None:
    """Open the window; closing it cancels what runs and frees the model."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(AsyncOverspill(app="desktop")) as ai,
    ):
        window = Window(ai, portal)
        window.mainloop()
        window.cancel()


if __name__ == "__main__":
    try:
        main()
    except tk.TclError as error:
        raise SystemExit(f"No window can be opened: {error}.") from None
