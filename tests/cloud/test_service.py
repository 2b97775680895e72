"""The real command in a process of its own, over real sockets: kills, drains, bad input."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import signal
import socket
import subprocess

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    ContextOverflow,
    DoesNotFit,
    EvidenceRejected,
    KeyUnknown,
    OverspillError,
    StreamBroken,
    TransportError,
)
from overspill.exchange import ExchangeLimits
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import default_policy
from overspill_cloud.store import Device, Store

pytestmark = pytest.mark.anyio
SLOW = ("--echo-delay-s", "0.05")


async def test_the_first_line_tells_where_and_what(start_node):
    node = start_node()
    host, port = node.listen.rsplit(":", 1)
    assert (host, port != "0") == ("127.0.0.1", True)
    assert node.started["pid"] == node.process.pid
    assert node.started["assurance"] == "NONE"
    bundle = await GrpcTransport(node.listen).get_bundle()
    assert hashlib.sha256(bundle.node_key_config).hexdigest() == node.started["nkc_sha256"]


async def test_an_enrolled_device_gets_its_answer(start_node, cloud):
    node = start_node()
    engine = await node.enrolled()
    chunks = await cloud.collect(engine, cloud.ask("over the wire"))
    assert cloud.text_of(chunks) == "echo: over the wire"
    assert chunks[-1].finish.receipt
    await engine.aclose()


async def test_many_streams_at_once_keep_apart(start_node, cloud):
    node = start_node("--echo-delay-s", "0.001")
    engines = [await node.enrolled() for _ in range(3)]
    answers = {}

    async def one(engine, words):
        answers[words] = await cloud.collect(engine, cloud.ask(words))

    async with anyio.create_task_group() as tasks:
        for index in range(36):
            tasks.start_soon(one, engines[index % 3], f"stream number {index}")
    assert len(answers) == 36
    for words, chunks in answers.items():
        assert cloud.text_of(chunks) == f"echo: {words}"
        assert chunks[-1].finish.receipt
    for engine in engines:
        await engine.aclose()


async def test_a_unix_socket_serves_too_and_a_stale_one_is_replaced(start_node, cloud, tmp_path):
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    node = start_node(listen=f"unix:{path}")
    engine = await node.enrolled()
    assert cloud.text_of(await cloud.collect(engine, cloud.ask("here"))) == "echo: here"
    await engine.aclose()


async def test_a_killed_node_leaves_the_text_that_came(start_node, cloud):
    node = start_node(*SLOW)
    engine = await node.enrolled()
    stream = engine.generate(cloud.ask("a rather long sentence to be echoed slowly"))
    text = (await anext(stream)).text
    os.kill(node.process.pid, signal.SIGKILL)
    with pytest.raises(StreamBroken) as caught:
        await _drained(stream)
    assert caught.value.partial.startswith(text)
    assert text
    with pytest.raises(TransportError):
        await cloud.collect(engine, cloud.ask())
    await engine.aclose()


async def test_a_frozen_node_is_noticed(start_node, cloud):
    node = start_node(*SLOW)
    key = cloud.device_key()
    await (await node.enrolled(key=key)).aclose()
    limits = ExchangeLimits(idle_timeout_s=1.0, closing_timeout_s=0.2)
    engine = RemoteEngine(
        GrpcTransport(node.listen), node.policy(), key, RemoteOptions(limits=limits)
    )
    stream = engine.generate(cloud.ask("a rather long sentence to be echoed slowly"))
    text = (await anext(stream)).text
    node.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StreamBroken) as caught:
            await _drained(stream)
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert caught.value.partial.startswith(text)
    await engine.aclose()


@pytest.mark.parametrize(("how", "outcome"), [("leave", "cancelled"), ("hang up", "detached")])
async def test_a_stream_that_nobody_reads_is_ended(start_node, cloud, how, outcome):
    node = start_node(*SLOW)
    engine = await node.enrolled()
    # Even guessed in pieces it takes longer than the grace of a lost reader.
    stream = engine.generate(cloud.ask(os.urandom(1500).hex(), max_tokens=3000))
    await anext(stream)
    if how == "hang up":
        await engine.aclose()
        with pytest.raises(StreamBroken):
            await _drained(stream)
    await stream.aclose()
    while f'"outcome": "{outcome}"' not in node.log.read_text():  # noqa: ASYNC110 - a file
        await anyio.sleep(0.05)
    await engine.aclose()


async def test_an_early_refusal_of_a_long_request_arrives(start_node):
    node = start_node()
    transport = GrpcTransport(node.listen)

    async def megabytes():
        for _ in range(8):
            yield os.urandom(1 << 20)

    with pytest.raises(KeyUnknown):
        await _drained(transport.chat(SealedHead(b"?" * 32, b"k" * 1168), megabytes()))
    await transport.aclose()


async def test_a_request_over_16_mib_is_refused_before_anything_leaves(start_node, cloud):
    node = start_node()
    engine = await node.enrolled()
    request = cloud.ask("x" * (17 << 20))
    with pytest.raises(DoesNotFit):
        await cloud.collect(engine, request)
    assert engine.bytes_sent(request.id) == 0
    with pytest.raises(ContextOverflow):  # in several frames, and whole
        await cloud.collect(engine, cloud.ask("x" * (3 << 20)))
    await engine.aclose()


async def test_a_request_to_a_node_that_went_away_sent_nothing(start_node, cloud):
    node = start_node()
    engine = await node.enrolled()
    await cloud.collect(engine, cloud.ask("there"))
    node.process.kill()
    node.process.wait()
    request = cloud.ask("gone")
    with pytest.raises(ConnectFailed):
        await cloud.collect(engine, request)
    assert engine.bytes_sent(request.id) == 0
    await engine.aclose()


async def test_sigterm_lets_streams_end_refuses_new_ones_and_exits_0(start_node, cloud):
    node = start_node(*SLOW)
    engine = await node.enrolled()
    stream = engine.generate(cloud.ask("to the end"))
    chunks = [await anext(stream)]
    node.process.send_signal(signal.SIGTERM)
    with pytest.raises((BusyError, ConnectFailed)):
        await _until_refused(cloud, engine)
    chunks += [chunk async for chunk in stream]
    assert cloud.text_of(chunks) == "echo: to the end"
    assert chunks[-1].finish.receipt
    await engine.aclose()
    assert node.process.wait(30) == 0


async def test_a_drain_that_takes_too_long_moves_its_streams(start_node, cloud):
    node = start_node("--echo-delay-s", "0.2", "--drain-s", "0.1")
    engine = await node.enrolled()
    stream = engine.generate(cloud.ask("far too long for such a drain"))
    await anext(stream)
    node.process.send_signal(signal.SIGTERM)
    with pytest.raises(StreamBroken, match="shutting down") as caught:
        await _drained(stream)
    assert caught.value.partial
    await engine.aclose()
    assert node.process.wait(30) == 0


async def test_a_node_restarted_on_its_port_is_verified_again(start_node, cloud):
    node = start_node()
    engine = await node.enrolled()
    await cloud.collect(engine, cloud.ask())
    before = (await engine.attest()).nkc_sha256
    node.process.kill()
    node.process.wait()
    start_node(listen=node.listen)
    # The same engine: the lost connection may cost a try, then new evidence is verified.
    chunks = await _answered(cloud, engine)
    assert cloud.text_of(chunks) == "echo: hello"
    assert (await engine.attest()).nkc_sha256 != before
    await engine.aclose()


async def test_the_default_policy_refuses_it(start_node, cloud):
    node = start_node()
    engine = node.client(cloud.device_key(), default_policy())
    with pytest.raises(EvidenceRejected):
        await engine.attest()
    await engine.aclose()


async def test_a_prompt_is_nowhere_after_a_run(start_node, cloud, tmp_path):
    """A node keeps no prompt and no answer, neither in its files nor in its log."""
    canary = "CANARY-zebra-7431-quartz"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    node = start_node(environment=environment)
    engine = await node.enrolled()
    assert canary in cloud.text_of(await cloud.collect(engine, cloud.ask(canary)))
    with pytest.raises(OverspillError):
        await cloud.collect(engine, cloud.ask(canary, model=f"no-{canary}"))
    with pytest.raises(OverspillError):
        await cloud.collect(engine, cloud.ask(canary * 1000))
    await engine.aclose()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert node.state / "node.sqlite3" in files
    assert node.log in files
    _assert_absent(files, canary)
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(30) == 0
    _assert_absent([path for path in tmp_path.rglob("*") if path.is_file()], canary)
    assert node.process.stdout.read() == ""


def _assert_absent(files, canary):
    needles = (canary.encode(), canary.encode("utf-16-le"), base64.b64encode(canary.encode())[:-4])
    for path in files:
        data = path.read_bytes()
        assert not any(needle in data for needle in needles), path


async def test_all_clients_are_given_the_same_bytes(start_node):
    node = start_node()
    bundles = []
    for _ in range(2):
        transport = GrpcTransport(node.listen)
        bundles.append(await transport.get_bundle())
        await transport.aclose()
    assert bundles[0] == bundles[1]


async def test_challenges_are_rate_limited(start_node):
    node = start_node()
    transport = GrpcTransport(node.listen)
    with pytest.raises(BusyError):
        await _challenge_often(transport)
    assert await transport.get_bundle()
    await transport.aclose()


# The command line -----------------------------------------------------------------------------


def _run(cloud, *arguments):
    return subprocess.run(
        cloud.command(*arguments), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "a=echo", "--model", "a=echo"], 2, "'a' is given twice"),
        (["--model", "a=/nowhere/model.gguf"], 3, "/nowhere/model.gguf"),
        (["--model", "a="], 2, "NAME=FILE"),
        (["--model", "a=echo", "--listen", "0.0.0.0:0"], 2, "--tls-cert"),
        (["--model", "a=echo", "--listen", "127.0.0.1"], 2, "HOST:PORT"),
        (["--model", "a=echo", "--listen", "unix:/nowhere/node.sock"], 2, "/nowhere/node.sock"),
        (["--model", "a=echo", "--listen", f"unix:/tmp/{'x' * 200}"], 2, "path too long"),
        (["--model", "a=echo", "--tls-cert", "/nowhere.pem"], 2, "--tls-key"),
        (["--model", "a=echo", "--tls-cert", "/no.pem", "--tls-key", "/no.pem"], 2, "/no.pem"),
        (["--model", "a=echo", "--attester", "tea-leaves"], 2, "tea-leaves"),
        (["--model", "a=echo", "--attester", "pinned"], 2, "key"),
        (["--model", "a=echo", "--frobnicate"], 2, "--frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line_and_its_exit_code(cloud, tmp_path, arguments, code, words):
    if "--listen" not in arguments:
        arguments = [*arguments, "--listen", "127.0.0.1:0"]
    done = _run(cloud, "serve", "--state", str(tmp_path / "state"), *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if "--frobnicate" not in arguments:
        assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_named(cloud, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--model", "a=echo", "--listen", where, "--state", str(tmp_path)]
        plain = _run(cloud, "serve", *arguments)
        as_json = _run(cloud, "serve", *arguments, "--json")
    assert (plain.returncode, as_json.returncode) == (7, 7)
    assert plain.stderr.count("\n") == 1
    assert where in plain.stderr
    error = json.loads(as_json.stdout)["error"]
    assert set(error) == {"code", "message", "mend"}
    assert where in error["message"]


def test_devices_are_listed_and_revoked(cloud, tmp_path):
    state = str(tmp_path)
    key = cloud.device_key()
    code = json.loads(_run(cloud, "enroll-code", "--state", state, "--json").stdout)["code"]
    store = Store(tmp_path)
    store.enrol(Device(key.thumbprint, key.public_der, "laptop", 1, 1 << 32), code, 1)
    store.close()
    name = key.thumbprint.hex()
    listed = json.loads(_run(cloud, "devices", "list", "--state", state, "--json").stdout)
    assert [(d["device"], d["label"], d["revoked"]) for d in listed["devices"]] == [
        (name, "laptop", None)
    ]
    assert _run(cloud, "devices", "revoke", name[:12], "--state", state).returncode == 0
    listed = json.loads(_run(cloud, "devices", "list", "--state", state, "--json").stdout)
    assert listed["devices"][0]["revoked"]
    unknown = _run(cloud, "devices", "revoke", "feed", "--state", state)
    assert unknown.returncode == 2
    assert "feed" in unknown.stderr


# TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for localhost and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "node.pem", tmp_path / "node.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


async def test_tls_with_the_servers_own_certificate(start_node, cloud, certificate):
    pem, key = certificate
    node = start_node("--tls-cert", str(pem), "--tls-key", str(key), listen="localhost:0")
    good = GrpcTransport(node.listen, GrpcOptions(ca_pem=pem.read_bytes()))
    assert (await good.get_bundle()).node_key_config
    await good.aclose()
    for options in (GrpcOptions(), GrpcOptions(plaintext=True)):
        bad = GrpcTransport(node.listen, options)
        with pytest.raises(TransportError):
            await bad.get_bundle()
        await bad.aclose()


def test_a_certificate_with_the_key_of_another_is_refused_at_start(cloud, certificate, tmp_path):
    pem, key = certificate
    other = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for wrong in (other.private_bytes(encoding, form, serialization.NoEncryption()), b"no key"):
        key.write_bytes(wrong)
        files = ["--tls-cert", str(pem), "--tls-key", str(key)]
        where = ["--listen", "localhost:0", "--state", str(tmp_path / "state")]
        done = _run(cloud, "serve", "--model", "a=echo", *where, *files)
        assert done.returncode == 2, done.stderr
        assert "key" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_plaintext_never_crosses_a_network():
    with pytest.raises(ConfigurationError, match="Plaintext"):
        GrpcTransport("node.example:8443", GrpcOptions(plaintext=True))


# ----------------------------------------------------------------------------------------------


async def _challenge_often(transport):
    for _ in range(1000):
        await transport.challenge(os.urandom(32))


async def _drained(stream):
    async for _ in stream:
        pass


async def _until_refused(cloud, engine):
    while True:
        await cloud.collect(engine, cloud.ask("x"))


async def _answered(cloud, engine):
    while True:
        try:
            return await cloud.collect(engine, cloud.ask())
        except TransportError:
            await anyio.sleep(0.05)
