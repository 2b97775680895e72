"""Two apps whose prompts begin alike, each with a secret: what one said changes nothing for the
other, neither its answer nor the work that it takes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio

BEGINNING = "Notes of the meeting that both apps have. " * 30


def asked(secret: str) -> dict:
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": f"{BEGINNING}The secret is {secret}."}],
        "max_tokens": 4,
        "overspill": {},
    }


PATHS = {
    "/v1/chat/completions": asked,
    "/v1/completions": lambda secret: {
        "model": "echo", "prompt": f"{BEGINNING}The secret is {secret}.", "max_tokens": 4,
    },
    "/v1/responses": lambda secret: {
        "model": "echo", "input": f"{BEGINNING}The secret is {secret}.", "max_output_tokens": 16,
    },
    "/v1/messages": lambda secret: {
        "model": "echo", "max_tokens": 4,
        "messages": [{"role": "user", "content": f"{BEGINNING}The secret is {secret}."}],
    },
}  # fmt: skip


class Meter:
    """Tokens that the backend computed, request by request: what time is spent on."""

    def __init__(self, backend, monkeypatch) -> None:
        self._computed = 0
        run = backend.run

        def counted(rows):
            self._computed += sum(len(row.tokens) for row in rows)
            return run(rows)

        monkeypatch.setattr(backend, "run", counted)

    def taken(self) -> int:
        found, self._computed = self._computed, 0
        return found


@pytest.mark.parametrize("path", PATHS)
async def test_the_others_prompt_saves_no_work_and_is_never_said(start_daemon, monkeypatch, path):
    """By what is computed, which is what there is to be timed: no clock is read."""
    body = PATHS[path]
    async with start_daemon() as running, running.http(tcp=True) as http:
        meter = Meter(running.backend, monkeypatch)
        notes = {"Authorization": f"Bearer {running.token(app='notes')}"}
        mail = {"Authorization": f"Bearer {running.token(app='mail')}"}

        async def ask(secret: str, who: dict[str, str]) -> tuple[int, str]:
            answer = await http.post(path, json=body(secret), headers=who)
            assert answer.status_code == 200, answer.text
            return meter.taken(), answer.text

        cold, _ = await ask("plum", notes)
        others, said = await ask("plum", mail)
        assert others == cold
        guessed, _ = await ask("pear", mail)  # its own beginning is known by now
        wrong, _ = await ask("pear", notes)
        right, _ = await ask("plum", mail)
        assert guessed < cold / 4
        assert wrong < cold / 4
        assert "pear" not in said
        fresh = {"Authorization": f"Bearer {running.token(app='fresh')}"}
        assert (await ask("plum", fresh))[0] == cold
        assert right < cold / 4
