"""The command line in this process, with a home of its own."""

import json
from dataclasses import dataclass

import pytest

from overspill.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and both outputs."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """OVERSPILL_HOME; the device's key in a file, the model `echo`."""
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text('model = "echo"\ndevice_key = "file"\n')
    monkeypatch.setenv("OVERSPILL_HOME", str(home))
    return home


@pytest.fixture
def overspill(home, capfd):
    """``overspill("plan", "hi")`` runs a command line."""

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def brook_file():
    """The model that ships in the package."""
    from overspill.engines.registry import BROOK

    return BROOK
