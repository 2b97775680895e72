"""`overspill chat`: a conversation that goes on after Ctrl-C, and ends when it is told to."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from overspill import Overspill
from overspill.cli.chat import Conversation
from overspill.config import child_environment, load_settings
from overspill.errors import EngineError
from overspill.testing import FakeEngine

pty = pytest.importorskip("pty", reason="needs terminals as POSIX has them")


@pytest.fixture
def talk(tmp_path, capsys):
    """``talk(engine, "hi", "/why")``: the conversation after those lines, and what was printed."""

    def run(engine, *lines, system=None):
        settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
        left = iter(lines)
        with Overspill("t", settings=settings, device=engine) as ai:
            conversation = Conversation(ai, {}, system)
            conversation.run(lambda: next(left, None))
        return conversation, capsys.readouterr()

    return run


def test_a_question_may_begin_with_a_path_and_an_unknown_command_is_named(talk):
    engine = FakeEngine("fine")
    _, said = talk(engine, "/etc/hosts has what in it?", "/nothing", "/quit", "too late")
    assert [request.messages[-1].content for request in engine.requests] == [
        "/etc/hosts has what in it?"
    ]
    assert "There is no /nothing:" in said.err


def test_each_question_carries_what_was_said_before(talk):
    engine = FakeEngine("fine")
    conversation, said = talk(engine, "how are you", "  ", "and now", system="Be brief.")
    contents = [[m.content for m in request.messages] for request in engine.requests]
    assert contents == [
        ["Be brief.", "how are you"],
        ["Be brief.", "how are you", "fine", "and now"],
    ]
    assert said.out == "fine\nfine\n"
    assert said.err.count("0 bytes left this device") == 2
    assert len(conversation.turns) == 4


def test_commands(talk):
    engine = FakeEngine("fine")
    conversation, said = talk(
        engine, "/why", "one", "/why", "two", "/undo", "/nothing", "/new", "three", "/exit", "four"
    )
    assert len(engine.requests) == 3
    assert [m.content for m in engine.requests[-1].messages] == ["three"]
    assert "no answer yet" in said.err
    assert "stage 0" in said.err
    assert "/undo" in said.err
    assert len(conversation.turns) == 2


def test_a_question_that_failed_is_one_line_and_no_part_of_the_conversation(talk):
    class Failing(FakeEngine):
        async def _generate(self, request):
            if "break" in request.messages[-1].content:
                raise EngineError("The engine stopped.", mend="Ask again.")
            async for chunk in super()._generate(request):
                yield chunk

    engine = Failing("fine")
    conversation, said = talk(engine, "hello", "break", "again")
    assert "overspill: The engine stopped. Ask again." in said.err
    assert [m.content for m in engine.requests[-1].messages] == ["hello", "fine", "again"]
    assert len(conversation.turns) == 4


ON_ITS_TERMINAL = (
    "import fcntl, termios\n"
    "from overspill import Overspill\n"
    "from overspill.cli import chat\n"
    "from overspill.testing import FakeEngine\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "with Overspill('t', device=FakeEngine('one two three', delay_s=0.5)) as ai:\n"
    "    chat.Conversation(ai, {}).run(chat.read_line)\n"
)


class Terminal:
    """A conversation on a terminal of its own, with an engine that takes its time."""

    def __init__(self, home):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=child_environment({"OVERSPILL_HOME": str(home), "TERM": "dumb"}),
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text, patience_s=60):
        end = time.monotonic() + patience_s
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.ours, 4096).decode()
                except OSError:
                    break
        before, found, self.seen = self.seen.partition(text)
        assert found, before
        return before

    def press_until(self, key, text):
        """As a person does: again, where the program was just about to read."""
        for _ in range(20):
            self.type(key)
            with suppress(AssertionError):
                self.until(text, 1)
                return
        self.until(text, 0)

    def type(self, text):
        os.write(self.ours, text.encode())

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal(home):
    opened = []

    def start():
        opened.append(Terminal(home))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(terminal):
    chat = terminal()
    chat.until("> ")
    chat.type("hello\n")
    chat.until("one")
    chat.type("\x03")
    stopped = chat.until("> ")
    assert "[stopped; device: fake" in stopped
    assert "three" not in stopped
    chat.type("again\n")
    assert "one two three" in chat.until("> ")
    chat.press_until("\x03", "/exit or Ctrl-D leaves")
    chat.type("\x04")
    assert chat.process.wait(30) == 0


def test_lines_from_a_pipe_are_questions(home):
    result = subprocess.run(
        [sys.executable, "-m", "overspill.cli.main", "chat"],
        input="hello\n/exit\n",
        env=child_environment({"OVERSPILL_HOME": str(home)}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "echo: hello\n"
