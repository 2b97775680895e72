"""What is remembered about running conversations: where they ran and whether they are tainted.

Chat interfaces send the whole conversation each time, so a conversation is known by how it
begins: a keyed digest of its turns up to the first of the user's. No text is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict

from overspill.routing.session_memory import SessionMemory
from overspill.types.chat import Request

MAX_CONVERSATIONS = 1024


class Conversations:
    """A bounded memory of conversations; the one that was quiet for longest is forgotten."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._memory: OrderedDict[bytes, SessionMemory] = OrderedDict()

    def recall(self, request: Request) -> SessionMemory:
        """The memory of the request's conversation; a fresh one for a new conversation."""
        return self._memory.get(self._name(request), SessionMemory())

    def remember(self, request: Request, memory: SessionMemory) -> None:
        """Keep what is now known about the request's conversation."""
        name = self._name(request)
        self._memory[name] = memory
        self._memory.move_to_end(name)
        while len(self._memory) > MAX_CONVERSATIONS:
            self._memory.popitem(last=False)

    def _name(self, request: Request) -> bytes:
        start = []
        for message in request.messages:
            start.append([message.role, message.content])
            if message.role == "user":
                break
        data = json.dumps([request.app, start]).encode()
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()
