"""Settings, from a TOML file and the environment, and the places where files go.

The only reader of ``os.environ`` in the project. The environment may choose a model, a cloud and
a stricter privacy floor; it can never name a trust policy or lower what must be proven.

``config.toml`` in the configuration folder::

    model = "brook"                 # device model: a name, a .gguf file or an MLX folder
    embedding_model = "bge.gguf"    # optional; without it `model` embeds, where it can
    keep_alive = "10m"              # the daemon lets go of a model unused for so long
    hub = "https://huggingface.co"  # where `overspill models pull` looks
    privacy = "attested"            # floor: device, attested or any
    routing_policy = "routing.toml" # optional; relative to this file
    draft_model = "small.gguf"      # optional; of the same tokenizer, its guesses are checked
    speculation = "auto"            # check guesses where that pays; "off" never guesses

    [adapters]
    legal = "legal-lora.gguf"       # LoRA adapters by name; relative to this file

    [cloud]
    address = "node.example:8443"   # or unix:/path
    trust_policy = "trust.toml"     # optional; without it the strictest default holds
    ca = "ca.pem"                   # optional: the TLS authority to accept

    [third_party]                   # optional: an API, asked with a person's consent each time
    name = "maker"
    base_url = "https://api.maker.example/v1"
    model = "big"
    context = 128000                # tokens
    key_file = "maker.key"          # holds the API key; readable by its owner alone
    price_prompt_per_mtok = 3.0     # optional, as are price_completion_per_mtok, tools, json_schema
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from overspill.errors import ConfigurationError
from overspill.types.chat import Privacy

ENVIRONMENT = ("OVERSPILL_HOME", "OVERSPILL_MODEL", "OVERSPILL_CLOUD", "OVERSPILL_PRIVACY")
"""Every variable that is read. `OVERSPILL_HOME` puts all places under one folder."""
Speculation: TypeAlias = Literal["auto", "always", "off"]


@dataclass(frozen=True, slots=True)
class Places:
    """Folders for settings, data, state (receipts, keys), caches and sockets."""

    config: Path
    data: Path
    state: Path
    cache: Path
    runtime: Path


@dataclass(frozen=True, slots=True)
class AdminPlace:
    """Where the administrator's policy is, and the user id that it has to belong to."""

    path: Path
    owner_uid: int = 0


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Where the overflow goes; ``trust_policy`` None means the strictest default. With ``locate``
    the node is asked where the other replicas are, and those are used too."""

    address: str
    trust_policy: Path | None = None
    ca: Path | None = None
    locate: bool = False


@dataclass(frozen=True, slots=True)
class ThirdPartySettings:
    """A provider's API as the last resort. That it is named permits nothing: see ``on_consent``.

    ``context`` is in tokens, prices are per million of them; nobody proves what is said here.
    """

    name: str
    base_url: str
    model: str
    context: int
    key_file: Path
    price_prompt_per_mtok: float = 0.0
    price_completion_per_mtok: float = 0.0
    tools: bool = False
    json_schema: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a client needs to know.

    ``embedding_model`` None means ``model``. ``isolate`` runs the device's engine in a worker
    process. ``adapters`` are LoRA adapters of ``model`` by name; ``draft_model`` is a smaller model
    of its tokenizer, whose guesses it checks; ``speculation`` is ``auto``, ``always`` or ``off``,
    which changes an answer's speed and never its words; ``mmproj`` is the projector file by which
    it reads images. ``device_key`` says where this device's key is kept:
    ``keychain``, ``file`` (0600, in the state folder), or ``auto``: the keychain where there is
    one. With ``shrink_context`` a model whose context does not fit the memory gets a smaller one,
    and its card says so; without it, it is refused.
    """

    places: Places
    model: str = "brook"
    embedding_model: str | None = None
    privacy: Privacy = Privacy.ATTESTED
    cloud: CloudSettings | None = None
    third_party: ThirdPartySettings | None = None
    routing_policy: Path | None = None
    isolate: bool = True
    max_context_tokens: int | None = None
    shrink_context: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)
    draft_model: str | None = None
    speculation: Speculation = "auto"
    mmproj: Path | None = None
    device_slots: int = 4
    private_terms: tuple[str, ...] = field(default=())
    device_key: str = "auto"
    keep_alive: str = "forever"
    """How long the daemon keeps its model loaded after the last use: ``10m``, ``0``, ..."""
    hub: str = "https://huggingface.co"
    """Where models that are not here are pulled from; a mirror speaks the same interface."""
    admin_policy: AdminPlace | None = None
    """None is the system's own place: no settings file and no environment can name another."""
    privacy_is_set: bool = False
    """Whether somebody chose the floor: what was chosen is only ever raised."""

    def with_floor(self, floor: Privacy) -> Settings:
        """The same settings with this floor, or with their own where that was set and is higher."""
        if self.privacy_is_set:
            floor = floor.tightened_by(self.privacy)
        return replace(self, privacy=floor, privacy_is_set=True)

    def with_model(self, model: str) -> Settings:
        """The same settings with this device model; another one than theirs has neither their
        adapters nor their draft model nor their projector."""
        if model == self.model:
            return self
        return replace(self, model=model, adapters={}, draft_model=None, mmproj=None)

    def with_cloud(
        self, address: str, *, trust_policy: Path | None = None, ca: Path | None = None
    ) -> Settings:
        """The same settings with another cloud."""
        return replace(self, cloud=CloudSettings(address, trust_policy, ca))


def default_places(environ: Mapping[str, str] | None = None) -> Places:
    """The user's own folders, or everything under ``OVERSPILL_HOME``."""
    env = os.environ if environ is None else environ
    home = env.get("OVERSPILL_HOME")
    if home:
        root = Path(home).expanduser()
        return Places(*(root / n for n in ("config", "data", "state", "cache", "run")))
    from platformdirs import PlatformDirs

    dirs = PlatformDirs("overspill", appauthor=False)
    runtime = env.get("XDG_RUNTIME_DIR")
    return Places(
        config=dirs.user_config_path,
        data=dirs.user_data_path,
        state=dirs.user_state_path,
        cache=dirs.user_cache_path,
        # Without a login session's own folder: never a shared /tmp.
        runtime=Path(runtime) / "overspill" if runtime else dirs.user_state_path / "run",
    )


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``path`` (default: ``config.toml`` in the configuration folder), then the
    environment. Raises ``ConfigurationError`` naming file, key and mend."""
    env = os.environ if environ is None else environ
    places = default_places(env)
    file = path or places.config / "config.toml"
    if path is not None and not path.exists():
        raise ConfigurationError(f"No settings file at {path}.", mend="Create it or leave it out.")
    settings = _from_file(file, places) if file.exists() else Settings(places=places)
    return _from_environment(settings, env)


def quiet_grpc() -> None:
    """Keep gRPC's C core from writing lines of its own to stderr; before ``grpc`` is imported.

    They name peers' addresses, and every failure is raised as a typed error anyway. A
    ``GRPC_VERBOSITY`` that was set stays.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def refuse_usage_reports() -> None:
    """Ray would report to its makers that it runs, and where: it reads this before it starts."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def quiet_tpm() -> None:
    """Keep the TPM library from writing to stderr; before its first call. What the TPM refuses is
    raised anyway, and what it merely lacks is no error. A ``TSS2_LOG`` that was set stays."""
    os.environ.setdefault("TSS2_LOG", "all+NONE")


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child process, with ``extra`` on top."""
    return {**os.environ, **(extra or {})}


_KEYS: dict[str, type] = {
    "model": str,
    "embedding_model": str,
    "privacy": str,
    "routing_policy": str,
    "isolate": bool,
    "max_context_tokens": int,
    "shrink_context": bool,
    "adapters": dict,
    "draft_model": str,
    "speculation": str,
    "mmproj": str,
    "device_slots": int,
    "private_terms": list,
    "device_key": str,
    "hub": str,
    "keep_alive": str,
    "cloud": dict,
    "third_party": dict,
}
_CLOUD_KEYS: dict[str, type] = {"address": str, "trust_policy": str, "ca": str, "locate": bool}
_THIRD_PARTY_KEYS: dict[str, type] = {
    "name": str,
    "base_url": str,
    "model": str,
    "context": int,
    "key_file": str,
    "price_prompt_per_mtok": float,
    "price_completion_per_mtok": float,
    "tools": bool,
    "json_schema": bool,
}
_THIRD_PARTY_NEEDS = ("name", "base_url", "model", "context", "key_file")


def _from_file(file: Path, places: Places) -> Settings:
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}.", mend="Mend the file."
        ) from None
    _check_keys(raw, _KEYS, file, "")
    if "cloud" in raw:
        raw["cloud"] = _cloud(raw["cloud"], file)
    if "third_party" in raw:
        raw["third_party"] = _third_party(raw["third_party"], file)
    if "privacy" in raw:
        raw["privacy"] = _privacy(raw["privacy"], str(file))
        raw["privacy_is_set"] = True
    if "routing_policy" in raw:
        raw["routing_policy"] = _beside(file, raw["routing_policy"])
    if raw.get("speculation", "auto") not in get_args(Speculation):
        raise ConfigurationError(
            f"{file}: 'speculation' is {raw['speculation']!r}.",
            mend=f"Use {', '.join(get_args(Speculation))}.",
        )
    if "mmproj" in raw:
        raw["mmproj"] = _beside(file, raw["mmproj"])
    if "adapters" in raw:
        _check_keys(raw["adapters"], dict.fromkeys(raw["adapters"], str), file, "adapters.")
        raw["adapters"] = {name: _beside(file, path) for name, path in raw["adapters"].items()}
    if "private_terms" in raw:
        raw["private_terms"] = tuple(str(term) for term in raw["private_terms"])
    return Settings(places=places, **raw)


def _cloud(table: Mapping[str, Any], file: Path) -> CloudSettings:
    _check_keys(table, _CLOUD_KEYS, file, "cloud.")
    if "address" not in table:
        raise ConfigurationError(f"{file}: [cloud] has no address.", mend="Add one.")
    return CloudSettings(
        table["address"],
        _beside(file, table.get("trust_policy")),
        _beside(file, table.get("ca")),
        table.get("locate", False),
    )


def _third_party(table: Mapping[str, Any], file: Path) -> ThirdPartySettings:
    _check_keys(table, _THIRD_PARTY_KEYS, file, "third_party.")
    for key in _THIRD_PARTY_NEEDS:
        if not table.get(key):
            raise ConfigurationError(f"{file}: [third_party] has no {key}.", mend="Add it.")
    if table["context"] < 0:
        raise ConfigurationError(f"{file}: 'third_party.context' is {table['context']}.")
    key_file = file.parent / Path(table["key_file"]).expanduser()
    return ThirdPartySettings(**{**table, "key_file": key_file})


def _check_keys(raw: Mapping[str, Any], known: Mapping[str, type], file: Path, where: str) -> None:
    for key, value in raw.items():
        if key not in known:
            raise ConfigurationError(
                f"{file}: unknown key '{where}{key}'.", mend=f"Known: {', '.join(known)}."
            )
        wanted = (int, float) if known[key] is float else (known[key],)
        if not isinstance(value, wanted) or (known[key] is not bool and isinstance(value, bool)):
            raise ConfigurationError(
                f"{file}: '{where}{key}' is {value!r}.", mend=f"Give a {known[key].__name__}."
            )


def _beside(file: Path, name: str | None) -> Path | None:
    return None if name is None else file.parent / Path(name).expanduser()


def _from_environment(settings: Settings, env: Mapping[str, str]) -> Settings:
    if model := env.get("OVERSPILL_MODEL"):
        settings = settings.with_model(model)
    if address := env.get("OVERSPILL_CLOUD"):
        old = settings.cloud or CloudSettings(address)
        settings = replace(settings, cloud=replace(old, address=address))
    if privacy := env.get("OVERSPILL_PRIVACY"):
        floor = _privacy(privacy, "OVERSPILL_PRIVACY")
        settings = settings.with_floor(settings.privacy.tightened_by(floor))
    return settings


def _privacy(value: str, where: str) -> Privacy:
    if value not in tuple(Privacy):
        raise ConfigurationError(
            f"{where}: privacy is {value!r}.", mend="Use device, attested or any."
        )
    return Privacy(value)
