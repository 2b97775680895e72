"""Fixtures that every room shares, and the rule that nothing skips unseen.

``OVERSPILL_SHARED`` names an optional folder of others' data (vectors, results, a story model);
it defaults to ``shared`` beside the checkout. With ``OVERSPILL_CI_ALL=1`` a run fails when a test
skips that ``tests/allowed_skips.txt`` does not name.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from overspill.event_loop import new_event_loop

# A loaded machine is no failure: examples have no deadline, and CI's are the same each time.
hypothesis.settings.register_profile("overspill", deadline=None, derandomize=True)
hypothesis.settings.register_profile(
    "mutation", parent=None, deadline=None, derandomize=True, max_examples=15, database=None
)
hypothesis.settings.load_profile("overspill")

# No test writes into the keychain of who runs it: a keychain is one that the test made.
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"

REPOSITORY = Path(__file__).resolve().parent.parent
ALLOWED_SKIPS = REPOSITORY / "tests" / "allowed_skips.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of what is drawn at random is tried."""
    parser.addoption(
        "--plan-requests",
        type=int,
        default=200,
        help="random requests of which plan and real route are compared (default 200)",
    )
    parser.addoption(
        "--ledger-requests",
        type=int,
        default=200,
        help="random requests whose receipts are compared with a node's ledger (default 200)",
    )


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run on asyncio: grpc.aio knows no other loop. What grpc brings for an earlier
    test's loop is nobody's failure.
    """
    return "asyncio", {"loop_factory": new_event_loop}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of others' data; skips, saying why, where there is none."""
    folder = Path(os.environ.get("OVERSPILL_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared data folder not found at {folder}; set OVERSPILL_SHARED to it")
    return folder


@pytest.fixture(scope="session")
def made_gguf() -> ModuleType:
    """The module that writes GGUF files with random weights: ``Shape`` and ``write``."""
    return _maker("made_gguf")


@pytest.fixture(scope="session")
def made_mmproj() -> ModuleType:
    """The module that writes projectors with random weights: ``Projector`` and ``write``."""
    return _maker("made_mmproj")


@pytest.fixture
def hub() -> Iterator[Any]:
    """A model hub on loopback, that serves well, badly, or only so far."""
    with _beside("loopback_hub").serving() as serving:
        yield serving


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real PostgreSQL, started once; skips, naming the package, where there is none."""
    pytest.importorskip("psycopg", reason="pip install 'overspill[dev]'")
    module = _beside("postgres_server")
    if module.programs() is None:
        pytest.skip(module.MISSING)
    with module.serving() as server:
        yield server


@pytest.fixture(scope="session")
def ray_environment() -> dict[str, str]:
    """The environment of a process that can import Ray; skips where Ray is not."""
    module = _beside("ray_site")
    environment = module.environment()
    if environment is None:
        pytest.skip(module.MISSING)
    return dict(environment)


def _maker(name: str) -> ModuleType:
    pytest.importorskip("gguf", reason="pip install 'overspill[dev]'")
    return _beside(name)


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def need_program() -> Callable[[str, str], str]:
    """``need_program("swtpm", "swtpm")``: its path, or a skip that names the package to install."""

    def find(program: str, package: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is not installed; on Debian: apt-get install {package}")
        return path

    return find


# --- nothing skips unseen ---------------------------------------------------------------------

_Skip = tuple[str, str]


def _allowed_patterns() -> list[_Skip]:
    """(node id pattern, reason pattern) per line of the committed list."""
    patterns = []
    for line in ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            node, _, reason = line.partition(" | ")
            patterns.append((node.strip(), reason.strip()))
    return patterns


def _unexpected(skips: list[_Skip]) -> list[_Skip]:
    allowed = _allowed_patterns()

    def is_allowed(node: str, reason: str) -> bool:
        return any(
            fnmatch.fnmatchcase(node, n) and fnmatch.fnmatchcase(reason, r) for n, r in allowed
        )

    return [skip for skip in skips if not is_allowed(*skip)]


class _SkipWatch:
    """Collects skips; in a full run those that no line allows fail it."""

    def __init__(self) -> None:
        self.skips: list[_Skip] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        text = report.longrepr
        reason = text[2] if isinstance(text, tuple) else str(text)
        self.skips.append((report.nodeid, reason.removeprefix("Skipped: ")))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if _unexpected(self.skips) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for node, reason in _unexpected(self.skips):
            terminalreporter.write_line(
                f"NOT ALLOWED TO SKIP: {node}: {reason} "
                "(install what it needs, or name it in tests/allowed_skips.txt)",
                red=True,
            )


def pytest_configure(config: pytest.Config) -> None:
    """Watch for skips in full runs only; elsewhere pytest's own ``-ra`` lists them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start what runs in the background so; Ctrl-C is tested all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("OVERSPILL_CI_ALL") == "1":
        config.pluginmanager.register(_SkipWatch(), "overspill-skip-watch")


# --- the end of the process -------------------------------------------------------------------

_SESSION = pytest.StashKey[pytest.Session]()
_ENGINES = frozenset({"llama_cpp", "mlx"})


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the session: others may still change its result when it finishes."""
    session.config.stash[_SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's own end: with llama.cpp, MLX and a dozen
    other native libraries in one process, their threads at times crash it after the last test.
    Without an engine the end is the usual one, so that coverage and mutation runs keep their data.
    """
    session = config.stash.get(_SESSION, None)
    if session is not None and not _ENGINES.isdisjoint(sys.modules):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(session.exitstatus))
