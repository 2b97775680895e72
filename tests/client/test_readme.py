"""What the SDK's README shows runs."""

from __future__ import annotations

import re


def test_the_examples_of_tools_and_testing_run(repository):
    text = (repository / "sdk" / "README.md").read_text("utf-8")
    tools, typed, testing = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(tools.partition("\nwith ")[0], "sdk/README.md", "exec"), names)
    exec(compile(testing, "sdk/README.md", "exec"), names)
    compile(typed, "sdk/README.md", "exec")  # its run: test_typed_output
    assert len(names["model"].requests) == 4
