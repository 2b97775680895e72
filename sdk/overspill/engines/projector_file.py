"""A projector file (mmproj), looked at before native code sees it."""

from __future__ import annotations

from pathlib import Path

from overspill.engines.gguf_header import read_header
from overspill.errors import ModelInvalid, ModelNotFound

_ARCHITECTURE = "clip"
_MEND = "Use the mmproj file that was published with the model."


def projector_bytes(path: Path) -> int:
    """What its weights take: llama.cpp copies them all.

    Raises ``ModelNotFound``, or ``ModelInvalid`` for what is malformed, no projector, or one for
    sound only.
    """
    try:
        header = read_header(path)
    except ModelNotFound as error:
        raise ModelNotFound(f"There is no projector at {path}.", mend="Check mmproj.") from error
    if header.architecture != _ARCHITECTURE:
        raise ModelInvalid(f"{path} is no projector but a {header.architecture} model.", mend=_MEND)
    if header.metadata.get("clip.has_vision_encoder") is not True:
        raise ModelInvalid(f"{path} is a projector that reads no images.", mend=_MEND)
    return sum(tensor.size for tensor in header.tensors)
