"""Where peers are looked for, how they are run, and what is said when one is absent or fails."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from overspill.bench import peers
from overspill.bench.peer_server import running
from overspill.bench.peers import PeerPaths, ServerCommand, find_peers, need
from overspill.errors import ConfigurationError, EngineError

NAMES = ("llama_bench", "llama_server", "llama_batched_bench")


def program(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_given_program_goes_before_the_path_and_that_before_what_was_built(
    tmp_path, on_path, name
):
    cache, file = tmp_path / "cache", name.replace("_", "-")
    assert getattr(find_peers(PeerPaths(), cache), name) is None
    built = program(cache / "peers" / "build" / "bin" / file)
    assert getattr(find_peers(PeerPaths(), cache), name) == built
    installed = program(on_path / file)
    assert getattr(find_peers(PeerPaths(), cache), name) == installed
    given = program(tmp_path / "given")
    assert getattr(find_peers(PeerPaths(**{name: given}), cache), name) == given


def test_the_example_server_is_found_in_the_sources_that_were_unpacked(tmp_path, on_path):
    script = tmp_path / "peers" / "src" / "examples" / "server" / "server.py"
    program(script)
    assert find_peers(PeerPaths(), tmp_path).example_server == script


@pytest.mark.parametrize("name", [*NAMES, "example_server"])
def test_a_given_path_without_a_file_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(ConfigurationError, match="nowhere"):
        find_peers(PeerPaths(**{name: tmp_path / "nowhere"}), tmp_path)


@pytest.mark.parametrize("name", [*NAMES, "example_server"])
def test_an_absent_peer_is_an_error_that_says_how_to_get_it(name):
    with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')} PATH"):
        need(PeerPaths(), name)


@pytest.mark.anyio
async def test_llama_bench_is_asked_for_one_repetition_and_believed(tmp_path):
    said = json.dumps([{"avg_ts": 101.5, "n_threads": 2}])
    fake = program(tmp_path / "llama-bench", f"echo \"$@\" > {tmp_path}/asked\necho '{said}'")
    assert await peers.llama_bench(fake, tmp_path / "m.gguf", 128) == 101.5
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["-m", str(tmp_path / "m.gguf"), *"-p 0 -n 128 -r 1 -o json".split()]


@pytest.mark.anyio
async def test_llama_batched_bench_counts_generated_tokens_over_the_whole_time(tmp_path):
    # It says the case before the last for sure, and its last line only if it is quick enough.
    line = json.dumps({"pl": 16, "tg": 128, "pp": 64, "t": 8.0, "speed": 384.0})
    fake = program(tmp_path / "llama-batched-bench", f"echo warming up\necho '{line}'")
    command = peers.batched_command(
        fake, Path("m.gguf"), streams=16, prompt=64, tokens=128, context_tokens=256
    )
    assert command[command.index("-npl") + 1] == "16,1"
    assert await peers.llama_batched_bench(command, 16) == 16 * 128 / 8.0
    with pytest.raises(EngineError, match="no result for 8 streams"):
        await peers.llama_batched_bench(command, 8)


@pytest.mark.anyio
async def test_a_program_that_fails_is_an_error_with_its_last_words(tmp_path):
    fake = program(tmp_path / "llama-bench", "echo usage >&2; echo no such model >&2; exit 3")
    with pytest.raises(EngineError, match="llama-bench ended with code 3: no such model"):
        await peers.llama_bench(fake, tmp_path / "m.gguf", 8)


# --- servers ------------------------------------------------------------------------------------


def fake_server(dialect: str = "native", *more: str) -> ServerCommand:
    script = Path(__file__).with_name("fake_llama_server.py")
    command = (sys.executable, str(script), "--port", "{port}", *more)
    return ServerCommand("llama-server", command, "/health", dialect, {})


@pytest.mark.anyio
@pytest.mark.parametrize("dialect", ["native", "openai"])
async def test_a_server_runs_while_its_block_does_and_answers_in_full(dialect):
    async with running(fake_server(dialect)) as server:
        times = await server.stream(24, 7, 1)
        assert times.tokens == 7
        assert len(times.pieces) == 7
        assert times.started_s <= times.pieces[0][0] <= times.pieces[-1][0] <= times.ended_s
    with pytest.raises(Exception, match="No server"):
        await server.stream(24, 7, 1)


@pytest.mark.anyio
async def test_a_server_that_ends_while_it_starts_is_an_error_with_its_last_words():
    with pytest.raises(EngineError, match="while it started: out of memory"):
        async with running(fake_server("native", "--refuse", "out of memory")):
            raise AssertionError


@pytest.mark.anyio
async def test_a_server_that_is_never_ready_is_ended(monkeypatch):
    monkeypatch.setattr("overspill.bench.peer_server.START_TIMEOUT_S", 0.5)
    command = fake_server()
    command = ServerCommand("llama-server", command.command, "/not-there", "native", {})
    with pytest.raises(EngineError, match="not ready within"):
        async with running(command):
            raise AssertionError


@pytest.mark.anyio
async def test_files_are_written_with_the_port_as_a_number(tmp_path):
    script = "import json,sys; print(json.load(open(sys.argv[1]))); sys.exit('read')"
    command = ServerCommand(
        "examples/server",
        (sys.executable, "-c", script, "{folder}/config.json"),
        "/healthz",
        "openai",
        {"config.json": '{"server": {"port": "{port}"}}'},
    )
    with pytest.raises(EngineError, match="read"):
        async with running(command):
            raise AssertionError


def test_servers_get_a_slot_for_each_stream_and_nothing_else_is_changed(tmp_path):
    model = tmp_path / "m.gguf"
    native = peers.llama_server(Path("llama-server"), model, slots=16, context_tokens=256)
    assert native.command[-4:] == ("-np", "16", "-c", "4096")
    example = peers.example_server(Path("server.py"), model, slots=16, context_tokens=256)
    chosen = json.loads(example.files["config.json"])["model"]
    assert (chosen["n_seq_max"], chosen["n_ctx"]) == (16, 4096)
    library = peers.library_server(model, context_tokens=256)
    assert library.command[-2:] == ("--interrupt_requests", "false")


def test_a_server_whose_dependencies_are_missing_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "_LIBRARY_SERVER_NEEDS", ("fastapi", "a_module_of_nobody"))
    with pytest.raises(ConfigurationError, match=r"needs a_module_of_nobody.*overspill\[bench\]"):
        peers.library_server(tmp_path, context_tokens=256)


# --- the script that builds them ----------------------------------------------------------------


@pytest.fixture
def build_peers(repository, tmp_path):
    """``build_peers("--sdist", file)`` with a home of its own and only what ``PATH`` names."""

    def run(*arguments, path=""):
        return subprocess.run(
            [sys.executable, repository / "scripts/build_peers.py", *map(str, arguments)],
            env={**os.environ, "PATH": str(path), "OVERSPILL_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
        )

    return run


def sdist(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            data = name.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


LLAMA = "llama_cpp_python-1.2.3/vendor/llama.cpp/CMakeLists.txt"
SERVER = "llama_cpp_python-1.2.3/examples/server/server.py"


def test_without_cmake_the_script_says_so_before_anything_is_fetched(build_peers, tmp_path):
    done = build_peers()
    assert done.returncode == 2
    assert done.stderr.startswith("build_peers: cmake was not found")
    assert not (tmp_path / "home").exists()


def test_what_is_no_source_distribution_is_refused(build_peers, tmp_path):
    tools = program(tmp_path / "tools" / "cmake").parent
    (tmp_path / "text").write_text("no archive", "utf-8")
    for file in (tmp_path / "text", sdist(tmp_path / "other.tar.gz", "other-1.0/setup.py")):
        done = build_peers("--sdist", file, path=tools)
        assert done.returncode == 2
        assert done.stderr.startswith(f"build_peers: {file}")


def test_an_archive_cannot_write_outside_its_folder(build_peers, tmp_path):
    tools = program(tmp_path / "tools" / "cmake").parent
    done = build_peers(
        "--sdist", sdist(tmp_path / "evil.tar.gz", LLAMA, "../../../evil"), path=tools
    )
    assert done.returncode == 2
    assert not list(tmp_path.rglob("evil"))


def test_programs_are_built_once_where_the_benchmark_looks_for_them(build_peers, tmp_path):
    # Stands in for CMake: the build step leaves a program where CMake would.
    cmake = program(
        tmp_path / "tools" / "cmake",
        f'echo "$@" >> {tmp_path}/calls\n'
        'if [ "$1" = --build ]; then /bin/mkdir -p "$2/bin"; '
        'echo > "$2/bin/llama-server"; /bin/chmod +x "$2/bin/llama-server"; fi',
    )
    file = sdist(tmp_path / "good.tar.gz", LLAMA, SERVER)
    assert build_peers("--sdist", file, "--jobs", "2", path=cmake.parent).returncode == 0
    found = find_peers(PeerPaths(), tmp_path / "home" / "cache")
    assert found.llama_server is not None
    assert found.example_server is not None
    configured, built = (tmp_path / "calls").read_text().splitlines()
    assert "-DLLAMA_USE_PREBUILT_UI=OFF" in configured
    assert "--parallel 2" in built
    again = build_peers(path=cmake.parent)
    assert "built already" in again.stdout
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_build_that_fails_leaves_nothing_that_looks_built(build_peers, tmp_path):
    cmake = program(tmp_path / "tools" / "cmake", '[ "$1" != --build ]')
    file = sdist(tmp_path / "good.tar.gz", LLAMA)
    done = build_peers("--sdist", file, path=cmake.parent)
    assert done.returncode == 2
    assert "failed; see the lines above" in done.stderr
    assert not (tmp_path / "home/cache/peers/built").exists()
