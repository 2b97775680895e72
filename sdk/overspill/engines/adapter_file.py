"""A LoRA adapter in GGUF, looked at before native code sees it."""

from __future__ import annotations

from pathlib import Path

from overspill.engines.gguf_header import GgufHeader, read_header
from overspill.errors import ModelInvalid


def adapter_header(name: str, path: Path) -> GgufHeader:
    """The header of a file that is given as adapter ``name``.

    Raises ``ModelNotFound``, or ``ModelInvalid`` for what is malformed or no adapter.
    """
    header = read_header(path)
    if header.metadata.get("general.type") != "adapter":
        raise ModelInvalid(
            f"{path}, given as adapter {name!r}, is no adapter.",
            mend="Give a LoRA adapter in GGUF, as convert_lora_to_gguf.py writes it.",
        )
    return header
