"""A desktop app that PyInstaller made: its worker, its data and its runtimes are all in there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from overspill._pyinstaller import hook_dirs
from overspill.freeze import COMMAND, WORKER, python_command

APP = """\
import json
from overspill import selftest

if __name__ == "__main__":
    print(json.dumps(selftest().as_dict()))
"""
LEFT_OUT = (
    # Runtimes and services that this app does not use; each is seconds of the build.
    *("llama_cpp", "mlx", "mlx_lm", "transformers", "tokenizers", "PIL", "tkinter"),
    *("sigstore", "tuf", "dcap_qvl", "phonenumbers", "securesystemslib", "requests", "urllib3"),
    *("grpc_tools", "hypothesis", "pydantic", "keyring", "psutil", "setuptools", "httpx2"),
    *("overspill_edge", "overspill_cloud", "overspill.cli", "typer", "rich", "filelock"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The bundled app's program."""
    pytest.importorskip("PyInstaller", reason="pip install 'overspill[dev]'")
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "app.py").write_text(APP)
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR"]
    command += ["--distpath", "dist", "--workpath", "build", "--specpath", "."]
    command += [part for path in hook_dirs() for part in ("--additional-hooks-dir", path)]
    command += [part for name in LEFT_OUT for part in ("--exclude-module", name)]
    done = subprocess.run(
        [*command, "app.py"],
        cwd=folder,
        env={**os.environ, "PYINSTALLER_CONFIG_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "dist" / "app" / "app"


@pytest.mark.timeout(600)
def test_a_bundled_app_answers_by_a_worker_of_its_own(bundle, tmp_path):
    environment = {
        "PATH": "/nowhere",
        "OVERSPILL_HOME": str(tmp_path / "home"),
        "OVERSPILL_MODEL": "echo",
    }
    done = subprocess.run(
        [str(bundle)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tried = json.loads(done.stdout)
    assert tried["ok"], [check for check in tried["checks"] if check["ok"] is False]
    found = {check["name"]: check for check in tried["checks"]}
    assert "in a bundle" in found["system"]["detail"]
    assert found["answer"]["ok"]
    assert found["cancel"]["ok"]
    assert list((bundle.parent / "_internal" / "overspill").rglob("brook-*.gguf"))


def test_a_worker_of_a_bundle_is_the_app_with_other_work(monkeypatch):
    assert python_command(WORKER)[1:] == ["-P", "-m", "overspill.worker"]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert python_command(WORKER) == [sys.executable, "--overspill-run", "overspill.worker"]


@pytest.mark.parametrize(
    "argv",
    [["app"], ["app", "--overspill-run"], ["app", "--overspill-run", "os"], ["app", "file.txt"]],
)
def test_only_overspills_own_work_can_be_asked_of_a_bundle(monkeypatch, argv):
    from overspill.freeze import freeze_support

    monkeypatch.setattr(sys, "argv", argv)
    freeze_support()
    assert sys.argv == argv


def test_what_a_bundle_may_run_is_there():
    assert find_spec(WORKER) is not None
    assert find_spec(COMMAND) is not None
