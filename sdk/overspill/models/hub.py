"""A hub repository by name: which of its files make a model, at which commit, with which digests.

Source: the Hugging Face Hub's HTTP interface, ``GET /api/models/{repo}/revision/{rev}?blobs=true``
(commit, files with size and SHA-256 or git blob id) and ``GET /{repo}/resolve/{commit}/{file}``.
Only weights, configuration and tokenizers are ever taken: nothing that runs code when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from overspill.errors import InvalidRequest, ModelInvalid, ModelNotFound, PullFailed
from overspill.models.download import following, refuse_status
from overspill.models.files import GIT_BLOB, SHA256, Digest, PullPlan, RemoteFile, Runtime
from overspill.models.store import slug

if TYPE_CHECKING:
    import httpx2

HUB: Final = "https://huggingface.co"
PREFERRED_QUANTIZATIONS: Final = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16", "BF16")
"""The first of these that a repository has is taken when nobody names one."""
_REFERENCE: Final = re.compile(
    r"(?:hf\.co/|https://huggingface\.co/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<choice>[\w./+-]+))?"
)
_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
_MLX_FILES: Final = re.compile(
    r"(model.*\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json|"
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|"
    r"merges\.txt|chat_template\.(jinja|json))"
)
_MAX_LISTING_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class HubReference:
    """``owner/name``, with ``@revision`` and ``:quantization`` or ``:file.gguf`` where given."""

    repo: str
    revision: str = "main"
    choice: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" + (f":{self.choice}" if self.choice else "")

    def names(self, source: str, main: str) -> bool:
        """Whether a stored model came from here; its ``main`` file has to be the chosen one."""
        if source != f"hf.co/{self.repo}":
            return False
        return self.choice is None or _has_quantization(main, self.choice) or main == self.choice


def parse_reference(text: str) -> HubReference | None:
    """The reference that a text is, or None for anything else (a name of the catalog, say)."""
    match = _REFERENCE.fullmatch(text.strip())
    if match is None or ".." in text:
        return None
    return HubReference(match["repo"], match["revision"] or "main", match["choice"])


async def hub_plan(
    client: httpx2.AsyncClient,
    reference: HubReference,
    *,
    runtime: Runtime,
    hub: str = HUB,
    name: str | None = None,
) -> PullPlan:
    """What pulling a repository would fetch, pinned to the commit it has now.

    ``runtime`` is preferred where the repository has both layouts. Raises ``ModelNotFound``,
    ``InvalidRequest`` for a choice that is not there, ``PullFailed``.
    """
    revision = quote(reference.revision, safe="")
    url = f"{hub}/api/models/{reference.repo}/revision/{revision}?blobs=true"
    listing = await _listing(client, url, reference)
    return plan_from_listing(listing, reference, runtime=runtime, hub=hub, name=name)


def plan_from_listing(
    listing: Mapping[str, Any],
    reference: HubReference,
    *,
    runtime: Runtime,
    hub: str = HUB,
    name: str | None = None,
) -> PullPlan:
    """The same from the hub's answer; pure. Raises as :func:`hub_plan`."""
    try:
        commit = str(listing["sha"])
        siblings = {str(entry["rfilename"]): entry for entry in listing["siblings"]}
    except (KeyError, TypeError):
        raise PullFailed(
            f"The hub's answer about {reference.repo} is not understood.",
            mend="Check that the address is a model hub.",
        ) from None
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise PullFailed(f"The hub named no commit of {reference.repo}.", mend="Try again.")
    chosen, found_runtime = choose_files(tuple(siblings), reference, runtime)
    base = f"{hub}/{reference.repo}/resolve/{commit}"
    files = tuple(_remote_file(base, path, siblings[path]) for path in chosen)
    main = "." if found_runtime == "mlx" else files[0].path
    default = chosen[0].rpartition("/")[2] if main != "." else reference.repo.partition("/")[2]
    return PullPlan(
        name=name or slug(_SHARD.sub("", default)),
        source=f"hf.co/{reference.repo}",
        runtime=found_runtime,
        main=main,
        files=files,
        revision=commit,
        licence=_licence(listing),
    )


def choose_files(
    paths: Sequence[str], reference: HubReference, runtime: Runtime
) -> tuple[tuple[str, ...], Runtime]:
    """The files of one model among a repository's, and the runtime that opens them."""
    ggufs = sorted(p for p in paths if p.endswith(".gguf") and "mmproj" not in p.lower())
    tops = tuple(sorted(p for p in paths if _MLX_FILES.fullmatch(p)))
    has_mlx = "config.json" in tops and any(p.endswith(".safetensors") for p in tops)
    if ggufs and (runtime == "llama.cpp" or reference.choice or not has_mlx):
        return _one_gguf(ggufs, reference), "llama.cpp"
    if has_mlx and reference.choice is None:
        return tops, "mlx"
    raise ModelInvalid(
        f"{reference.repo} has no model that a runtime here could open: neither a .gguf file nor "
        "config.json with safetensors.",
        mend="Choose another repository.",
    )


def _one_gguf(ggufs: Sequence[str], reference: HubReference) -> tuple[str, ...]:
    """The chosen file with all its shards; the first shard is what a runtime opens."""
    choice = reference.choice
    if choice is None:
        whole = [p for p in ggufs if _shard_number(p) in (None, 1)]
        if len(whole) == 1:
            return _with_shards(whole[0], ggufs)
        for quantization in PREFERRED_QUANTIZATIONS:
            found = [p for p in whole if _has_quantization(p, quantization)]
            if found:
                return _with_shards(min(found, key=len), ggufs)
        return _with_shards(whole[0], ggufs)
    found = [p for p in ggufs if p == choice or _has_quantization(p, choice)]
    if not found:
        raise InvalidRequest(
            f"{reference.repo} has no '{choice}'.",
            mend=f"Choose from: {', '.join(ggufs[:20])}.",
        )
    return _with_shards(min(found, key=lambda p: (len(p), p)), ggufs)


def _with_shards(path: str, ggufs: Sequence[str]) -> tuple[str, ...]:
    if _shard_number(path) is None:
        return (path,)
    stem = _SHARD.sub("", path)
    shards = tuple(p for p in ggufs if _SHARD.sub("", p) == stem and _shard_number(p) is not None)
    match = _SHARD.search(path)
    expected = int(match[2]) if match else 1
    if len(shards) != expected:
        raise ModelInvalid(
            f"{stem} has {len(shards)} of its {expected} parts.", mend="Choose another file."
        )
    return shards


def _shard_number(path: str) -> int | None:
    match = _SHARD.search(path)
    return int(match[1]) if match else None


def _has_quantization(path: str, quantization: str) -> bool:
    pattern = rf"(^|[^A-Za-z0-9]){re.escape(quantization)}([^A-Za-z0-9_]|$)"
    return re.search(pattern, path.rpartition("/")[2], re.IGNORECASE) is not None


def _remote_file(base: str, path: str, entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    try:
        digest = (
            Digest(SHA256, str(lfs["sha256"]).lower())
            if lfs
            else Digest(GIT_BLOB, str(entry["blobId"]).lower())
        )
        size = int(lfs["size"] if lfs else entry["size"])
        # Folders inside a repository are left out: a model lies flat here.
        return RemoteFile(f"{base}/{quote(path)}", path.rpartition("/")[2], size, digest)
    except (KeyError, TypeError, ValueError):
        raise PullFailed(
            f"The hub told no size or digest of {path[:120]}.", mend="Choose another repository."
        ) from None


def _licence(listing: Mapping[str, Any]) -> str | None:
    card = listing.get("cardData")
    licence = card.get("license") if isinstance(card, Mapping) else None
    return licence if isinstance(licence, str) else None


async def _listing(
    client: httpx2.AsyncClient, url: str, reference: HubReference
) -> Mapping[str, Any]:
    import httpx2

    try:
        async with following(client, url) as response:
            if response.status_code == 404:
                raise ModelNotFound(f"The hub has no {reference}.", mend="Check its name.")
            if response.status_code != 200:
                refuse_status(response.status_code, str(reference))
            data = bytearray()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > _MAX_LISTING_BYTES:
                    raise PullFailed(f"{reference}: the hub's answer is too long.")
    except httpx2.TransportError as error:
        raise PullFailed(
            f"The hub cannot be reached ({type(error).__name__}).", mend="Check the network."
        ) from None
    return _parsed(bytes(data), reference)


def _parsed(data: bytes, reference: HubReference) -> Mapping[str, Any]:
    import json

    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise PullFailed(f"The hub's answer about {reference} is no JSON object.")
    return parsed
