"""A device of its own in a process of its own: enrols, asks once, says what came.

    python version_client.py FOLDER LISTEN DEV_ROOT CODE TEXT [--newer]

FOLDER holds the node's certificate. With ``--newer`` each request has a field that no node knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path

import google.protobuf

from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill.wire import plaintext

FAR_UNIX = 1 << 40
UNKNOWN_FIELD = b"\xba\x3e\x03new"
"""Field 999, of a version to come."""


async def main() -> None:
    """Command line."""
    folder, listen, root, code, text = sys.argv[1:6]
    if "--newer" in sys.argv:
        known = plaintext.request_to_bytes
        plaintext.request_to_bytes = lambda request: known(request) + UNKNOWN_FIELD
    policy = parse_policy(dev_policy(bytes.fromhex(root), {"echo": hashlib.sha256().digest()}))
    options = GrpcOptions(ca_pem=(Path(folder) / "tls.crt").read_bytes(), server_name="localhost")
    key = SoftwareKey.generate(FAR_UNIX)
    async with RemoteEngine(GrpcTransport(listen, options), policy, key) as engine:
        await engine.enroll(code)
        request = Request((Message("user", text),), max_tokens=200)
        chunks = [chunk async for chunk in engine.generate(request)]
    told = {
        "protobuf": google.protobuf.__version__,
        "text": "".join(chunk.text for chunk in chunks),
        "is_confirmed": bool(chunks[-1].finish and chunks[-1].finish.receipt),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main())
