"""The tokenizer of a folder in the MLX (Hugging Face) layout, seen as tokens' bytes.

``tokenizers`` alone, not transformers: decoding by bytes needs the vocabulary's own spelling,
and an answer's text must be right at every token, which decoding token by token is not.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from overspill.engines.backend import Vocabulary
from overspill.errors import ModelInvalid


class FolderTokenizer:
    """Reads tokenizer.json, tokenizer_config.json and the end tokens of the configs.

    ``size`` is the number of logits a model gives, which may exceed the vocabulary. Raises
    :class:`ModelInvalid` for files that are missing or can't be read.
    """

    def __init__(self, folder: Path, *, size: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            # tokenizers raises bare Exception.
            raise ModelInvalid(
                f"{folder / 'tokenizer.json'} cannot be read: {error}.", mend="Fetch it again."
            ) from error
        self._plain.encode_special_tokens = True
        self._config = read_json(folder / "tokenizer_config.json", required=False)
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._is_byte_level = "ByteLevel" in json.dumps(_decoder(folder))
        templates = _templates(folder, self._config)
        self.chat_template = templates.get("default")
        self.tool_template = templates.get("tool_use")
        self.vocabulary = self._vocabulary(folder, size)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; nothing is added."""
        tokenizer = self._tokenizer if special else self._plain
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def wrapped(self, text: str) -> list[int]:
        """Token ids with those that the tokenizer sets around a text; marks in it stay text."""
        return list(self._plain.encode(text, add_special_tokens=True).ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; b"" for control tokens and ids beyond the vocabulary."""
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        spelled = self._tokenizer.id_to_token(token)
        if spelled is None:
            return b""
        if self._is_byte_level:
            return b"".join(_byte_of(char) for char in spelled)
        if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
            return bytes.fromhex(spelled[3:5])
        return spelled.replace("\u2581", " ").encode()

    def _vocabulary(self, folder: Path, size: int) -> Vocabulary:
        bos, eos = self._text("bos_token"), self._text("eos_token")
        ends = {self._tokenizer.token_to_id(eos)} if eos else set()
        for name in ("config.json", "generation_config.json"):
            found = read_json(folder / name, required=False).get("eos_token_id")
            ends |= set(found) if isinstance(found, list) else {found}
        begins = self._tokenizer.encode("", add_special_tokens=True).ids
        adds_bos = bool(self._config.get("add_bos_token")) or bool(begins)
        return Vocabulary(
            size=size,
            end_ids=frozenset(token for token in ends if isinstance(token, int)),
            bos_id=self._tokenizer.token_to_id(bos) if bos and adds_bos else None,
            bos_text=bos,
            eos_text=eos,
            control_texts=tuple(t.content for t in self._added.values() if t.special),
        )

    def _text(self, name: str) -> str:
        value = self._config.get(name) or ""
        return str(value["content"] if isinstance(value, dict) else value)


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object from a file; raises :class:`ModelInvalid`."""
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path} cannot be read: {error}.", mend="Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{path} holds no JSON object.", mend="Fetch it again.")
    return value


def _decoder(folder: Path) -> Any:
    return read_json(folder / "tokenizer.json").get("decoder")


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by their names, as transformers reads them: files come before the config."""
    files = {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in (
            ("default", folder / "chat_template.jinja"),
            ("tool_use", folder / "additional_chat_templates" / "tool_use.jinja"),
        )
        if path.exists()
    }
    if files:
        return files
    listed = config.get("chat_template")
    if not isinstance(listed, list):
        listed = [{"name": "default", "template": listed}]
    named = {entry.get("name"): entry.get("template") for entry in listed}
    return {name: text for name, text in named.items() if isinstance(text, str)}


@cache
def _byte_table() -> dict[str, bytes]:
    # GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py, bytes_to_unicode).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


def _byte_of(char: str) -> bytes:
    return _byte_table().get(char) or char.encode()
