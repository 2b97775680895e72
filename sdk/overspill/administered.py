"""Routes as the administrator leaves them: the floor raised, clouds, models, third parties off."""

from __future__ import annotations

from dataclasses import replace

from overspill.cloud_gate import CloudGate, CloudState
from overspill.errors import OverspillError, PolicyRefusal
from overspill.gathering import Routes
from overspill.policy_lock import AdminPolicy
from overspill.types.card import ModelCard
from overspill.types.chat import Request


class AdministeredGate(CloudGate):
    """A cloud of which the administrator leaves some models, or nothing."""

    def __init__(self, gate: CloudGate, policy: AdminPolicy, *, names_model: bool) -> None:
        super().__init__(gate.engine)
        self._gate = gate
        self._policy = policy
        self._names_model = names_model
        self.meter = gate.meter
        self.known_cards = self._allowed(gate.known_cards)

    async def state(self, patience_s: float | None = None) -> CloudState:
        """As the gate says, without what is not allowed; a cloud that is not is never contacted."""
        engine, policy = self.engine, self._policy
        if engine is not None and not policy.allows_cloud(engine.addresses):
            return CloudState(problem=refused(policy, "does not allow this cloud"))
        state = await self._gate.state(patience_s)
        if state.result is None:
            return state
        cards = self._allowed(state.cards)
        # Whoever names no model is answered by the node's first.
        if not cards or not (self._names_model or cards[0] is state.cards[0]):
            return CloudState(
                problem=refused(policy, f"does not allow the model '{state.cards[0].name}'")
            )
        return replace(state, cards=cards)

    def remember(self, problem: OverspillError) -> None:
        """For the gate, which outlives this request."""
        self._gate.remember(problem)

    def _allowed(self, cards: tuple[ModelCard, ...]) -> tuple[ModelCard, ...]:
        return tuple(card for card in cards if self._policy.allows_model(card.name))


def administered(routes: Routes, policy: AdminPolicy, *, names_model: bool) -> Routes:
    """What ``policy`` leaves of ``routes`` to a request that does, or does not, name a model."""
    floor = routes.floor if policy.privacy is None else routes.floor.tightened_by(policy.privacy)
    device = routes.device
    if device is not None and not policy.allows_model(device.card.name):
        device = None
    third_party = None if policy.third_parties is False else routes.third_party
    return replace(
        routes,
        floor=floor,
        device=device,
        third_party=third_party,
        cloud=AdministeredGate(routes.cloud, policy, names_model=names_model),
    )


def check_request(request: Request, policy: AdminPolicy) -> None:
    """Raise ``PolicyRefusal`` for what a request names and the administrator does not allow."""
    if request.model is not None and not policy.allows_model(request.model):
        raise refused(policy, f"does not allow the model '{request.model}'")
    if request.grant is not None and policy.third_parties is False:
        raise refused(policy, "has switched third parties off")


def refused(policy: AdminPolicy, why: str) -> PolicyRefusal:
    """The refusal, with the file that says so."""
    return PolicyRefusal(
        f"The administrator's policy ({policy.path}) {why}.",
        mend="Ask who looks after this machine.",
    )
