"""Overflow to a node of one's own, on this machine: verify, enrol, ask, check the receipt.

Needs the extras [llama] and [cloud], and a checkout: river lies beside this file.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from hashlib import sha256
from json import loads
from pathlib import Path

from overspill import Overspill, Privacy, load_settings, verify_receipt
from overspill.trust.template import dev_policy

RIVER = Path(__file__).parent / "family" / "models" / "river-q8_0.gguf"
NODE = [sys.executable, "-m", "overspill_cloud"]


def main() -> None:
    """Start a node, spill one request over to it, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        state = ["--state", str(Path(folder) / "node")]
        command = [*NODE, "serve", "--model", f"river={RIVER}", "--listen", "127.0.0.1:0"]
        with subprocess.Popen([*command, *state, "--json"], stdout=subprocess.PIPE) as node:
            try:
                started = loads(node.stdout.readline())  # type: ignore[union-attr]  # it is a pipe
                ask(Path(folder), started, state)
            finally:
                node.terminate()


def ask(folder: Path, started: dict[str, str], state: list[str]) -> None:
    """Name what the node has to prove in a policy file; then use it like any other model."""
    policy = folder / "trust.toml"
    digest = sha256(RIVER.read_bytes()).digest()
    policy.write_text(dev_policy(bytes.fromhex(started["dev_root"]), {"river": digest}))
    code = subprocess.run([*NODE, "enroll-code", *state, "--json"], capture_output=True, check=True)
    settings = load_settings(environ={"OVERSPILL_HOME": str(folder / "device")})
    # Development evidence never satisfies the floor "attested"; this app accepts less, and says so.
    settings = replace(settings, device_key="file").with_floor(Privacy.ANY)
    settings = settings.with_cloud(started["listen"], trust_policy=policy)
    with Overspill(app="spill", settings=settings) as ai:
        ai.enroll(loads(code.stdout)["code"])
        reply = ai.chat("What is 348 + 276?", model="river")
    print(reply.text)
    print(f"-- {reply.model} in the {reply.route.route}, {reply.route.bytes_sent} bytes left")
    if reply.receipt is not None:
        print(f"-- receipt verified for {verify_receipt(reply.receipt).model}")


if __name__ == "__main__":
    main()
