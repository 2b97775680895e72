"""Overflow to a node of one's own, on this machine: verify, enrol, ask, check the receipts.

The device's model has room for 128 tokens here. The policy keeps what is easy, escalates what is
too hard for it, and spills what is too long.

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
PROMPTS = (
    "What is 25 cm in millimetres?",
    "What is 348 + 276?",
    "Give a one-sentence summary. Felix lost a table in Seattle on a very long and rainy day, and "
    "nobody in the whole town knew where it had gone. A horse found it on Sunday.",
)
NODE = [sys.executable, "-m", "overspill_cloud"]


def main() -> None:
    """Start a node, let requests overflow to it, and stop it."""
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
    settings = replace(settings, device_key="file", max_context_tokens=128)
    settings = settings.with_floor(Privacy.ANY)
    settings = settings.with_cloud(started["listen"], trust_policy=policy)
    with Overspill(app="spill", settings=settings) as ai:
        ai.enroll(loads(code.stdout)["code"])
        for prompt in PROMPTS:
            reply = ai.chat(prompt, max_tokens=80)
            taken = reply.route
            print(f"{prompt}  {reply.text.splitlines()[-1]}")
            print(f"-- {reply.model}: {taken.route}, {taken.reason}; {taken.bytes_sent} bytes left")
            if reply.receipt is not None:
                print(f"-- receipt verified for {verify_receipt(reply.receipt).model}")


if __name__ == "__main__":
    main()
