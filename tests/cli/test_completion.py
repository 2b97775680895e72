"""Completion: the shell asks the command itself; nothing is installed unasked."""

import os
import subprocess
import sys

from overspill.config import child_environment


def test_a_shell_is_told_the_verbs_that_begin_so(home):
    asked = {
        "_OVERSPILL_COMPLETE": "complete_bash",
        "COMP_WORDS": "overspill ser",
        "COMP_CWORD": "1",
        "HOME": str(home),
    }
    done = subprocess.run(
        [sys.executable, "-m", "overspill.cli.main"],
        env=child_environment(asked),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["serve", "service"]
    assert os.listdir(home) == ["config"]


def test_the_help_names_the_option_that_installs_it(overspill):
    assert "--install-completion" in overspill("--help").out
