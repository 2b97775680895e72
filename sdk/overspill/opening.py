"""From settings to engines and policies: which device model, which cloud, under which rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from overspill.config import Settings
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.errors import ConfigurationError
from overspill.identity.base import DeviceKey
from overspill.modelroom import resolve
from overspill.policy_certificate import scorer_path, verify
from overspill.remote import RemoteEngine
from overspill.routing.complexity import Scorer
from overspill.routing.policy import RoutingPolicy, parse_policy
from overspill.state.log_state import LogStateStore
from overspill.transport.base import Transport
from overspill.trust.policy import TrustPolicy, default_policy
from overspill.trust.policy import load_policy as load_trust_policy
from overspill.types.card import ModelCard

if TYPE_CHECKING:
    from overspill.identity.rotation import KeyRotation
    from overspill.identity.select import KeyPlace
    from overspill.providers.granted import GrantedEngine
    from overspill.providers.openai_api import ProviderOptions


def open_device(settings: Settings) -> Engine:
    """The device's engine, not yet started; in a worker process unless settings say otherwise.

    Raises ``ModelNotFound``, ``ModelInvalid``, ``MissingExtra``, or ``UnsupportedOption`` for a
    projector of a model whose runtime reads no images.
    """
    from overspill.engines.options import EngineOptions, SchedulerOptions
    from overspill.engines.registry import open_engine

    options = EngineOptions(
        context_tokens=settings.max_context_tokens,
        max_sequences=settings.device_slots,
        shrink_context=settings.shrink_context,
        adapters={name: str(path) for name, path in settings.adapters.items()},
        draft_model=settings.draft_model,
        mmproj=None if settings.mmproj is None else str(settings.mmproj),
        scheduler=SchedulerOptions(speculation=settings.speculation),
    )
    name, spec = resolve(settings, settings.model)
    if not settings.isolate:
        return open_engine(spec, name=name, options=options)
    from overspill.worker import WorkerEngine

    return WorkerEngine(spec, name=name, options=options)


def open_embedder(settings: Settings) -> Embedder:
    """What embeds on this device, not yet started; as :func:`open_device`.

    Raises ``UnsupportedOption`` for a model whose runtime gives no embeddings.
    """
    from overspill.engines import embedders
    from overspill.engines.options import EngineOptions

    name, spec = resolve(settings, settings.embedding_model or settings.model)
    options = EngineOptions(shrink_context=settings.shrink_context)
    opened = embedders.open_embedder(spec, name=name, options=options)
    if not settings.isolate:
        return opened
    from overspill.worker import WorkerEmbedder

    return WorkerEmbedder(spec, name=name, options=options)


def open_cloud(settings: Settings) -> RemoteEngine:
    """The cloud as an engine; nothing is contacted yet.

    Raises ``ConfigurationError`` for a trust policy, an authority or a device key that cannot be
    read.
    """
    return RemoteEngine(
        open_transports(settings),
        open_trust_policy(settings),
        open_device_key(settings),
        log_state=open_log_state(settings),
        open_road=_road_opener(settings) if settings.cloud and settings.cloud.locate else None,
    )


def open_third_party(settings: Settings, options: ProviderOptions) -> GrantedEngine:
    """A provider's API as the last resort, behind this device's book of grants.

    Nobody is contacted. Raises as :func:`open_device_key` and :func:`open_routing_policy`.
    """
    from overspill.providers.granted import GrantedEngine
    from overspill.providers.grants import GrantBook
    from overspill.providers.openai_api import OpenAIEngine
    from overspill.redacting import RedactingEngine

    api = OpenAIEngine(options)
    book = GrantBook(settings.places.state / "grants.sqlite", open_device_key(settings))
    veiled = RedactingEngine(api, open_routing_policy(settings))
    return GrantedEngine(veiled, options.name, book, bytes_sent=api.bytes_sent)


def open_named_third_party(settings: Settings) -> GrantedEngine | None:
    """The provider that the settings name, if they do; its key is read from its file.

    Nobody is contacted. Raises ``ConfigurationError`` for a key file that others could read or that
    is no key, else as :func:`open_third_party`.
    """
    named = settings.third_party
    if named is None:
        return None
    from overspill.identity.private_file import read_private
    from overspill.providers.openai_api import ProviderOptions

    card = ModelCard(
        named.model,
        named.context,
        named.name,
        tools=named.tools,
        json_schema=named.json_schema,
        price_prompt_per_mtok=named.price_prompt_per_mtok,
        price_completion_per_mtok=named.price_completion_per_mtok,
    )
    api_key = (read_private(named.key_file) or "").strip()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigurationError(
            f"The key file {named.key_file} holds no API key.",
            mend="Put the key into it, on one line, and nothing else.",
        )
    return open_third_party(settings, ProviderOptions(named.name, named.base_url, card, api_key))


def open_log_state(settings: Settings) -> LogStateStore:
    """What this client remembers of the logs that releases are in."""
    return LogStateStore(settings.places.state / "logs.sqlite")


def open_device_key(settings: Settings) -> DeviceKey:
    """This device's key, made at first use. Raises ``ConfigurationError`` for one that is
    damaged, expired or readable by others, or a place that does not exist."""
    from overspill.identity.select import device_key

    return device_key(*_key_place(settings))


def open_key_rotation(settings: Settings) -> KeyRotation:
    """The rotation of this device's key, where the settings keep it."""
    from overspill.identity.select import key_rotation

    return key_rotation(*_key_place(settings))


def _key_place(settings: Settings) -> tuple[Path, KeyPlace]:
    from overspill.identity.select import KeyPlace

    if settings.device_key not in tuple(KeyPlace):
        raise ConfigurationError(
            f"'device_key' is {settings.device_key!r}.", mend=f"Use {', '.join(KeyPlace)}."
        )
    return settings.places.state / "device-key", KeyPlace(settings.device_key)


def open_transport(settings: Settings) -> Transport:
    """The road to the cloud, to its first replica where there are several.

    Raises ``ConfigurationError`` when none is set.
    """
    return open_transports(settings)[0]


def open_transports(settings: Settings) -> list[Transport]:
    """The roads to the cloud's replicas: the address may name several, with commas between them.

    Raises ``ConfigurationError`` when none is set, and for what is no address.
    """
    cloud = settings.cloud
    addresses = [] if cloud is None else [one.strip() for one in cloud.address.split(",")]
    if cloud is None or not all(addresses):
        raise ConfigurationError("No cloud is set.", mend="Set [cloud] address, or --cloud.")
    opened = _road_opener(settings)
    return [opened(_checked_address(address)) for address in addresses]


def _checked_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if address.startswith("unix:"):
        return address
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigurationError(
            f"'{address:.80}' is no address of a cloud.", mend="Give HOST:PORT or unix:/path."
        )
    return address


def _road_opener(settings: Settings) -> Callable[[str], Transport]:
    """What opens a road to an address, with the settings' authority."""
    from overspill.transport.grpc import GrpcOptions, GrpcTransport

    path = None if settings.cloud is None else settings.cloud.ca
    ca = None if path is None else _text(path).encode()
    options = GrpcOptions(ca_pem=ca) if ca else None
    return lambda address: GrpcTransport(address, options)


def open_trust_policy(settings: Settings) -> TrustPolicy:
    """The policy that the settings name, or the strictest default."""
    cloud = settings.cloud
    if cloud is None or cloud.trust_policy is None:
        return default_policy()
    return load_trust_policy(cloud.trust_policy)


def open_routing_policy(settings: Settings) -> RoutingPolicy:
    """The user's routing policy, or the built-in one, with the user's private terms.

    Raises ``ConfigurationError`` for a file that is none, and for one that says that it is
    certified and was changed since.
    """
    policy, file = RoutingPolicy(), settings.routing_policy
    if file is not None:
        policy = parse_policy(_text(file), str(file))
        if policy.certificate:
            verify(file)
        policy = with_scorer(policy, file)
    if settings.private_terms:
        policy = replace(policy, listed_terms=(*policy.listed_terms, *settings.private_terms))
    return policy


def with_scorer(policy: RoutingPolicy, path: Path) -> RoutingPolicy:
    """The policy with the scorer that lies beside its file, where it was calibrated with one.

    Raises ``ConfigurationError`` for a scorer that is not the one that was certified.
    """
    if not policy.scorer_sha256:
        return policy
    beside = scorer_path(path)
    try:
        scorer = Scorer.from_json(_text(beside))
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{beside} is no scorer.") from error
    if not policy.is_for(scorer.sha256):
        raise ConfigurationError(
            f"{beside} is not the scorer that {path.name} was certified with.",
            mend="Restore both files, or run `overspill calibrate` again.",
        )
    return policy.having(scorer)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error  # without the path a second time
        raise ConfigurationError(f"{path} cannot be read: {why}.", mend="Check it.") from None
