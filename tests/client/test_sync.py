"""The blocking client is the async one, and nothing but."""

import asyncio
import inspect
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest

from overspill import AsyncOverspill, Overspill
from overspill.config import load_settings
from overspill.errors import InvalidRequest, NotOpen, UsageError
from overspill.testing import FakeEngine
from overspill.types.route import Route


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_both_clients_offer_the_same():
    assert public(Overspill) - {"close"} == public(AsyncOverspill) - {"aclose"}


PROPERTIES = {name for name in public(Overspill) if isinstance(vars(Overspill)[name], property)}


def arguments(function) -> list:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found]


def test_both_are_made_by_the_same_arguments():
    assert arguments(Overspill.__init__) == arguments(AsyncOverspill.__init__)


@pytest.mark.parametrize("name", sorted(public(Overspill) - {"close"} - PROPERTIES))
def test_each_method_takes_the_same_arguments_and_gives_the_same(name):
    blocking, original = getattr(Overspill, name), getattr(AsyncOverspill, name)
    assert arguments(blocking) == arguments(original)
    gives = inspect.signature(blocking).return_annotation
    awaited = inspect.signature(original).return_annotation
    same = {
        f"AsyncGenerator[{kind}]": f"Generator[{kind}, None, None]" for kind in ("ReplyChunk",)
    } | {"Iterator[Budget]": "AbstractContextManager[Budget]"}
    assert gives == same.get(awaited, awaited)


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_a_property_is_one_on_both(name):
    assert isinstance(vars(AsyncOverspill)[name], property)


@pytest.fixture
def settings(tmp_path):
    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})


def test_chat_stream_plan_models_availability(settings):
    with Overspill("t", settings=settings, device=FakeEngine("one two")) as ai:
        assert ai.chat("x").text == "one two"
        assert "".join(piece.text for piece in ai.stream("x")) == "one two"
        assert ai.plan("x").route is Route.DEVICE
        assert [card.name for card in ai.models()] == ["fake"]
        assert ai.availability().device.value == "available"


def test_leaving_a_stream_early_cancels_the_work(settings):
    device = FakeEngine("one two three")
    with Overspill("t", settings=settings, device=device) as ai:
        for _ in ai.stream("x"):
            break
        import gc

        gc.collect()
        assert device.cancelled == 1


def test_ctrl_c_in_a_stream_is_a_keyboard_interrupt_and_frees_the_engine(settings):
    device = FakeEngine("one two three", delay_s=0.2)
    with Overspill("t", settings=settings, device=device) as ai:
        stream = ai.stream("x")
        assert next(stream).text == "one"
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        assert device.cancelled == 1


def test_a_budget_reaches_the_calls_inside(settings):
    device = FakeEngine()
    with Overspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=9):
            ai.chat("x")
            list(ai.stream("x"))
        ai.chat("x")
    assert [r.deadline_s is not None for r in device.requests] == [True, True, False]


def test_errors_cross_over_as_they_are(settings):
    with (
        Overspill("t", settings=settings, device=FakeEngine()) as ai,
        pytest.raises(InvalidRequest, match="temperature"),
    ):
        ai.chat("x", temperature=9)


def test_outside_its_block_it_says_so(settings):
    ai = Overspill("t", settings=settings, device=FakeEngine("one two"))
    for _ in range(2):
        with pytest.raises(NotOpen, match="with block"):
            ai.chat("x")
        with pytest.raises(NotOpen, match="with block"):
            next(ai.stream("x"))
        with ai, pytest.raises(UsageError, match="open already"):
            ai.__enter__()
    with ai:
        assert ai.chat("x").text == "one two"


def test_ctrl_c_while_an_answer_is_awaited_frees_the_engine(settings):
    device = FakeEngine("one two three", delay_s=30)
    with Overspill("t", settings=settings, device=device) as ai:

        def interrupt():
            while not device.requests:
                time.sleep(0.001)
            # To the thread that waits, as the terminal does: else it would wait on.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            ai.chat("x")
        thread.join()
        until(lambda: device.cancelled)  # it would go on for 90 seconds
        device._delay_s = 0.0
        assert ai.chat("x").text == "one two three"


def test_ctrl_c_while_a_call_is_on_its_way_frees_the_engine(settings):
    """It may come when the engine works already and the caller has nothing yet to cancel."""
    device = FakeEngine("one two three", delay_s=30)
    with Overspill("t", settings=settings, device=device) as ai:
        portal = ai._portal
        start = portal.start_task_soon

        def interrupted(*work, **options):
            start(*work, **options)
            portal.start_task_soon = start
            while not device.requests:
                time.sleep(0.001)
            raise KeyboardInterrupt

        portal.start_task_soon = interrupted
        with pytest.raises(KeyboardInterrupt):
            ai.chat("x")
        until(lambda: device.cancelled == 1)


def test_ctrl_c_before_a_call_begins_keeps_it_from_the_engine(settings):
    device = FakeEngine("one two three", delay_s=30)
    with Overspill("t", settings=settings, device=device) as ai:
        portal = ai._portal
        start = portal.start_task_soon
        late = []

        def interrupted(*work, **options):
            late.append((work, options))
            portal.start_task_soon = start
            raise KeyboardInterrupt

        portal.start_task_soon = interrupted
        with pytest.raises(KeyboardInterrupt):
            ai.chat("x")
        ((work, options),) = late
        with pytest.raises(CancelledError):
            start(*work, **options).result(20)
        assert len(device.requests) == device.cancelled


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_stream_ends_with_its_client(settings):
    with Overspill("t", settings=settings, device=FakeEngine("one two three")) as ai:
        streams = [ai.stream("x") for _ in range(3)]
        for stream in streams:
            next(stream)
    streams[0].close()
    with pytest.raises(NotOpen, match="with block"):
        next(streams[1])
    with ai, pytest.raises(NotOpen, match="closed"):
        next(streams[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_told_to_open_a_client_of_its_own(settings):
    """Its thread is not there: a call would be waited for without end."""
    with Overspill("t", settings=settings, device=FakeEngine("one two")) as ai:
        stream = ai.stream("x")
        next(stream)
        child = os.fork()
        if child == 0:
            os._exit(told_in_a_fork(ai, stream))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ai.chat("x").text == "one two"


def told_in_a_fork(ai, stream) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    with suppress(NotOpen):
        ai.chat("x")
        return 1
    with suppress(NotOpen):
        next(stream)
        return 2
    ai.close()
    return 0


@pytest.mark.anyio
async def test_another_event_loop_is_told_to_open_a_client_of_its_own(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("one two")) as ai:

        def elsewhere():
            with pytest.raises(NotOpen, match="another event loop"):
                asyncio.run(ai.chat("x"))
            with pytest.raises(NotOpen, match="another event loop"):
                asyncio.run(ai.plan("x"))

        await asyncio.to_thread(elsewhere)
        with pytest.raises(UsageError, match="open already"):
            await ai.__aenter__()
        assert (await ai.chat("x")).text == "one two"


@pytest.mark.anyio
async def test_an_answer_can_be_left_while_its_next_piece_is_awaited(settings):
    """Ctrl-C comes at any moment: also before the caller knows which step it waits for."""
    import anyio

    from overspill.sync import _Steps

    device = FakeEngine("one two three", delay_s=30)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        steps = _Steps(ai.run_request(ai.build("x")))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(suppressed, steps.next)
            while not device.requests:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            await steps.aclose()
        assert device.cancelled == 1


async def suppressed(step):
    with pytest.raises(StopAsyncIteration):
        await step()
