"""What only a person may allow: refused with the plan's id, and the plan to be shown to them."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from overspill.client import AsyncOverspill
from overspill.errors import ConsentRequired
from overspill.testing import FakeEngine
from overspill_edge.app import Daemon, ServeOptions
from overspill_edge.listen import TcpAddress
from overspill_edge.tokens import Scope, user_tokens

pytestmark = pytest.mark.anyio

SECRET = "the-users-own-words"
BODIES = {
    "/v1/chat/completions": {"model": "auto", "messages": [{"role": "user", "content": SECRET}]},
    "/v1/completions": {"model": "auto", "prompt": SECRET},
    "/v1/responses": {"model": "auto", "input": SECRET},
    "/v1/messages": {
        "model": "auto",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": SECRET}],
    },
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_refusal_names_the_plan_and_the_app_can_show_it(settings, path, stream):
    model = FakeEngine(lambda request: ConsentRequired("Only a third party is left."))
    client = AsyncOverspill("daemon", settings=settings, device=model)
    daemon = Daemon(ServeOptions(settings=settings, tcp=TcpAddress("127.0.0.1", 0)), client=client)
    ready: asyncio.Future = asyncio.Future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    base = f"http://{(await ready).tcp}"
    tokens = user_tokens(settings.places)

    def holding(app: str, *scopes: Scope) -> dict[str, str]:
        return {"Authorization": f"Bearer {tokens.issue(app, scopes)[0]}"}

    notes, mail = holding("notes", Scope.INFER), holding("mail", Scope.INFER)
    async with httpx2.AsyncClient(base_url=base) as http:
        refused = await http.post(path, json={**BODIES[path], "stream": stream}, headers=notes)
        assert refused.status_code == 403
        assert refused.headers["x-overspill-code"] == "consent_required"
        plan_id = refused.headers["x-overspill-plan"]
        assert plan_id == model.requests[0].id
        if path != "/v1/messages":  # whose errors have no place for it
            assert refused.json()["error"]["plan_id"] == plan_id
        where = f"/overspill/v1/plans/{plan_id}"
        plan = await http.get(where, headers=notes)
        assert (plan.status_code, plan.json()["id"]) == (200, plan_id)
        assert SECRET not in plan.text
        assert (await http.get(where, headers=mail)).status_code == 404
        assert (await http.get(where)).status_code == 401
        admin = holding("admin", Scope.ADMIN, Scope.INFER)
        assert (await http.get(where, headers=admin)).status_code == 200
        seen = (await http.get("/overspill/v1/overview", headers=admin)).json()
        assert [one["request_id"] for one in seen["consents"]] == [plan_id]
        assert seen["consents"][0]["would_leave"] == plan.json()["would_leave"]
        assert SECRET not in json.dumps(seen)
    daemon.stop()
    await running
