"""The device's model as the daemon shares it: in turn between apps, loaded while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overspill.config import Settings
from overspill.engines.base import Engine
from overspill.errors import ModelNotFound, UnsupportedOption
from overspill.opening import open_device
from overspill.types.card import ModelCard
from overspill_edge.residence import Residence, ResidentEngine, parse_keep_alive_s
from overspill_edge.turns import FairEngine, TurnOptions, Turns

OpenEngine = Callable[[Settings], Engine]


class SharedDevice:
    """What the routes know of the device's engine. Nothing is shared until :meth:`open`: an app
    that serves its own engines keeps them as they are."""

    def __init__(
        self,
        *,
        keep_alive: str = "forever",
        turns: Turns | None = None,
        open_engine: OpenEngine = open_device,
    ) -> None:
        self.turns = turns or Turns()
        self._keep_alive_s = parse_keep_alive_s(keep_alive)
        self._open_engine = open_engine
        self._resident: ResidentEngine | None = None

    @classmethod
    def of(cls, settings: Settings) -> SharedDevice:
        """As the settings say: one place more than the engine has, so that it never waits."""
        turns = Turns(TurnOptions(places=settings.device_slots + 1))
        return cls(keep_alive=settings.keep_alive, turns=turns)

    def open(self, settings: Settings) -> Engine:
        """The engine that a client is to use."""
        self._resident = ResidentEngine(
            lambda: self._open_engine(settings), keep_alive_s=self._keep_alive_s
        )
        return FairEngine(self._resident, self.turns)

    @property
    def residence(self) -> Residence | None:
        """Where the model is; None where the daemon does not look after one."""
        return None if self._resident is None else self._resident.residence

    @property
    def card(self) -> ModelCard | None:
        """Facts about the model; None where the daemon does not look after one."""
        resident = self._resident
        return resident.card if resident is not None and resident.is_known else None

    def loading(self) -> float | None:
        """The share of the model that is loaded while it is away or being loaded; else None."""
        return None if self._resident is None else self._resident.loaded_while_away

    def load_soon(self) -> None:
        """Begin to load the model, where it is away."""
        if self._resident is not None:
            self._resident.load_soon()

    @contextmanager
    def keeping(self, request_id: str, keep_alive: str | float | None) -> Iterator[None]:
        """What one request asks for. Raises ``InvalidRequest`` for what is no length of time, and
        ``UnsupportedOption`` where the daemon does not look after the model."""
        if keep_alive is None:
            yield
            return
        if self._resident is None:
            raise UnsupportedOption(
                "The model belongs to the app that serves it.",
                param="overspill.keep_alive",
                mend="Leave out 'keep_alive'.",
            )
        with self._resident.keeping(request_id, parse_keep_alive_s(keep_alive)):
            yield

    async def prewarm(self, model: str | None, keep_alive: str | float | None) -> str:
        """Load the model and say its name. Raises ``ModelNotFound`` and what loading raises."""
        resident = self._named(model)
        keep_s = None if keep_alive is None else parse_keep_alive_s(keep_alive)
        await resident.prewarm(keep_s)
        return resident.card.name

    async def unload(self, model: str | None) -> tuple[str, bool]:
        """Its name, and whether it was loaded. Raises ``ModelNotFound`` and ``ModelBusy``."""
        resident = self._named(model)
        return resident.card.name, await resident.unload()

    def _named(self, model: str | None) -> ResidentEngine:
        resident = self._resident
        if resident is None or not resident.is_known:
            raise ModelNotFound("The daemon has no model on this device.", mend="Pull one first.")
        if model not in (None, resident.card.name):
            raise ModelNotFound.among(str(model), (resident.card.name,))
        return resident
