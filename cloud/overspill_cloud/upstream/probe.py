"""What an upstream is: which server, which model, how long a context, how many at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from overspill.errors import ConfigurationError, ConnectFailed, ModelNotFound
from overspill.types.card import ModelCard
from overspill_cloud.upstream.address import UpstreamAddress
from overspill_cloud.upstream.dialect import BY_OWNER, LLAMA_SERVER, PLAIN, Dialect

if TYPE_CHECKING:
    import httpx2

_MAX_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A running upstream. ``sequences`` is how many it runs at once, None where it does not say."""

    card: ModelCard
    dialect: Dialect
    sequences: int | None


async def probe(client: httpx2.AsyncClient, address: UpstreamAddress, name: str) -> Found:
    """Ask the upstream what it is; ``name`` is the model's public name.

    Raises ``ConnectFailed``, ``ModelNotFound`` with the names that it serves, or
    ``ConfigurationError`` where it says no context length.
    """
    listed = (await get_json(client, address, "/v1/models")).get("data") or ()
    models = {str(one.get("id")): one for one in listed if isinstance(one, Mapping)}
    if address.model not in models:
        raise ModelNotFound(
            f"The upstream {address.place} does not serve '{address.model}'.",
            mend=f"It serves: {', '.join(models) or 'nothing'}.",
        )
    entry = models[address.model]
    dialect = BY_OWNER.get(str(entry.get("owned_by")), PLAIN)
    props: Mapping[str, Any] = {}
    if dialect is LLAMA_SERVER:
        props = await get_json(client, address, "/props")
    return Found(_card(entry, props, dialect, name, address), dialect, props.get("total_slots"))


async def get_json(
    client: httpx2.AsyncClient, address: UpstreamAddress, path: str
) -> Mapping[str, Any]:
    """The JSON object at a path. Raises ``ConnectFailed`` for anything else."""
    import httpx2

    try:
        response = await client.get(f"{address.base_url}{path}")
        said = response.json() if len(response.content) <= _MAX_BYTES else None
    except (httpx2.HTTPError, ValueError) as error:
        raise ConnectFailed(
            f"The upstream {address.place} does not answer ({type(error).__name__}).",
            mend="Start it first, and see that it is the address it listens on.",
        ) from error
    if response.status_code != 200 or not isinstance(said, Mapping):
        raise ConnectFailed(
            f"The upstream {address.place} answers {path} with {response.status_code}.",
            mend="Wait until it has loaded its model; give an OpenAI-compatible server.",
        )
    return said


def _card(
    entry: Mapping[str, Any],
    props: Mapping[str, Any],
    dialect: Dialect,
    name: str,
    address: UpstreamAddress,
) -> ModelCard:
    meta = entry.get("meta") or {}
    settings = props.get("default_generation_settings") or {}
    context = settings.get("n_ctx") or entry.get("max_model_len") or 0
    if not isinstance(context, int) or context <= 0:
        raise ConfigurationError(
            f"The upstream {address.place} does not say how long its context is.",
            mend="Use vLLM, SGLang or llama-server.",
        )
    capabilities = props.get("chat_template_caps") or {}
    sees = bool((props.get("modalities") or {}).get("vision"))
    return ModelCard(
        name,
        context,
        f"upstream/{dialect.name}",
        quantization=str(props.get("model_ftype") or "unknown"),
        parameters=int(meta.get("n_params") or 0),
        tools=bool(capabilities.get("supports_tools", dialect is not PLAIN)),
        json_schema=dialect is not PLAIN,
        modalities=("text", "image") if sees else ("text",),
        notes=dialect.notes,
    )
