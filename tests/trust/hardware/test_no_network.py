"""Verification makes no network call: Python's own audit events say so, for every vector."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from overspill.config import child_environment

VECTORS = Path(__file__).resolve().parent.parent / "vectors"

_VERIFY_ALL = """
import base64, json, sys
from pathlib import Path
from overspill.trust.certificates import parse_certificate
from overspill.trust.policy import default_policy, parse_policy
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.verifier import Context, appraise
from overspill.types.evidence import Evidence, EvidenceBundle

vendor_roots()  # files of the package, read once
folder = Path(sys.argv[1])
vectors = {file.stem: json.loads(file.read_text()) for file in folder.rglob("*.json")}
raw_roots = vectors.pop("roots")
roots = VendorRoots(
    nvidia_rim=(),
    **{name: tuple(parse_certificate(base64.b64decode(t)) for t in some)
       for name, some in raw_roots.items()},
)
seen = []

def refuse(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn",
                         "urllib.", "http.", "ftplib.", "smtplib.")) or event == "os.system":
        raise RuntimeError(f"{event} while verifying")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise RuntimeError(f"a file written while verifying: {arguments[0]}")

sys.addaudithook(refuse)
for name, vector in vectors.items():
    if "files" not in vector:
        continue
    files = [base64.b64decode(text) for text in vector["files"]]
    policy = parse_policy(vector["policy"]) if "policy" in vector else None
    nonce = bytes.fromhex(vector["nonce"]) if "nonce" in vector else None
    for some in (roots, None):
        found = appraise_raw(vector["kind"], files, RawContext(vector["now_unix"], nonce), policy,
                             some)
        seen.append([vector["kind"], found.verdict])
for name, vector in vectors.items():
    if "evidence" not in vector:
        continue
    piece = Evidence(vector["evidence"]["type"], bytes.fromhex(vector["evidence"]["data"]))
    log = tuple(bytes.fromhex(entry) for entry in vector["measured_log"])
    bundle = EvidenceBundle(bytes.fromhex(vector["node_key_config"]), (piece,), measured_log=log)
    context = Context(vector["now_unix"], vector["address"], vector["is_local"],
                      bytes.fromhex(vector["nonce"]))
    policy = parse_policy(vector["policy"]) if vector["policy"] else default_policy()
    rejection = appraise(bundle, context, policy).rejection
    seen.append(["bundle", rejection.reason if rejection else "accepted"])
for kind in ("sev-snp", "tdx", "tpm", "dev-ed25519", "pinned-operator", "nvidia-gpu"):
    bundle = EvidenceBundle(b"OVSN", (Evidence(kind, b"x"),))
    assert appraise(bundle, Context(0, "node.example:443", False), default_policy()).rejection
try:
    import socket
    socket.socket()
except RuntimeError:
    print(json.dumps(seen))  # the hook works
"""


def test_no_socket_no_process_and_no_file_written():
    environment = child_environment({"PYTHONPATH": ":".join(sys.path)})
    done = subprocess.run(
        [sys.executable, "-c", _VERIFY_ALL, str(VECTORS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {kind for kind, _ in seen} == {"snp", "tdx", "tpm", "nvidia", "bundle"}
    assert {verdict for _, verdict in seen} >= {"accepted", "authentic", "rejected"}
    assert ["bundle", "accepted"] in seen
    assert len(seen) > 80
