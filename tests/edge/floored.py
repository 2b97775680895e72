"""What an app does under the floor ``device`` while its engine crashes; run behind a tap.

``python floored.py sdk|daemon``: a cloud by name, one by address, an enrolled-looking device key, a
provider with a key and a consent that is always given are all there. None of them may be used.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx2
import psutil

from overspill import Grant, Overspill
from overspill.config import load_settings
from overspill.errors import ContextOverflow, EngineDied
from overspill.opening import open_device, open_device_key, open_third_party
from overspill.providers.openai_api import ProviderOptions
from overspill.types.card import ModelCard
from overspill.types.chat import Grammar
from overspill.worker import WorkerEngine

LONG = "Write a story about a river that wanted to see the sea."
ENDLESS = "[a-z ]{600}"  # so long that nobody has ended it before its worker is killed


def provider() -> ProviderOptions:
    card = ModelCard(name="large", context=100_000, runtime="maker")
    return ProviderOptions("maker", "https://api.maker.example/v1", card, api_key="sk-there")


def consent(plan):
    return Grant("maker", plan.request_id, int(time.time()) + 600)


def sdk() -> None:
    """The device's worker is killed before an answer, and in the middle of another."""
    settings = load_settings()
    assert open_device_key(settings).public_der
    engine = open_device(settings)
    assert isinstance(engine, WorkerEngine)
    third = open_third_party(settings, provider())
    with Overspill("t", settings=settings, device=engine, third_party=third) as first:
        assert first.chat("Sort: 3, 1, 2", privacy="device").route.route == "device"
    with Overspill("t", settings=settings, daemon="never", on_consent=consent) as ai:
        own = ai._core._own._device
        assert ai.chat("Sort: 3, 1, 2", privacy="device").route.route == "device"
        ai.plan("Prove that there are infinitely many primes.", privacy="device")
        died = 0
        for wait_for_text in (False, True, True):
            try:
                held = Grammar("regex", ENDLESS)
                for piece in ai.stream(LONG, privacy="device", output=held):
                    if piece.text and wait_for_text:
                        os.kill(own.pid, signal.SIGKILL)
                    if not wait_for_text:
                        break
            except EngineDied:
                died += 1
        assert died == 2, died
        try:
            ai.chat("word " * 40_000, privacy="device")
        except ContextOverflow:
            return
        raise AssertionError("a prompt beyond the context was answered")


def daemon() -> None:
    """The same through a daemon and its dialects."""
    command = [sys.executable, "-m", "overspill.cli.main", "serve", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        path = load_settings().places.runtime / "overspill.sock"
        process.stdout.readline()
        way = httpx2.HTTPTransport(uds=str(path))
        body = {"model": "auto", "messages": [{"role": "user", "content": LONG}]}
        floor = {"X-Overspill-Privacy": "device"}
        with httpx2.Client(transport=way, base_url="http://localhost", timeout=100) as http:
            ask = "/v1/chat/completions"
            assert http.post(ask, json=body | {"max_tokens": 9}, headers=floor).status_code == 200
            endless = {
                "stream": True,
                "overspill": {"grammar": {"syntax": "regex", "text": ENDLESS}},
            }
            with http.stream("POST", ask, json=body | endless, headers=floor) as answer:
                lines = answer.iter_lines()
                next(line for line in lines if '"content":"' in line)
                for worker in psutil.Process(process.pid).children(recursive=True):
                    worker.kill()
                rest = list(lines)
            assert not any("[DONE]" in line for line in rest), rest[-1]
            assert http.post(ask, json=body | {"max_tokens": 9}, headers=floor).status_code == 200
            assert http.get("/overspill/v1/status").status_code == 200
        process.terminate()


{"sdk": sdk, "daemon": daemon}[sys.argv[1]]()
