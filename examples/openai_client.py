"""Any OpenAI client, against the daemon: only the base URL changes.

Needs the extras [llama] and [edge], and the package openai.
"""

import json
import subprocess
import sys
import tempfile

from openai import OpenAI

OVERSPILL = [sys.executable, "-m", "overspill.cli.main"]


def main() -> None:
    """Start a daemon on loopback with a token, and talk to it."""
    made = subprocess.run(
        [*OVERSPILL, "token", "new", "--app", "example", "--scope", "infer,models", "--json"],
        capture_output=True,
        check=True,
    )
    token = json.loads(made.stdout)["token"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*OVERSPILL, "serve", "--socket", f"{folder}/d.sock", "--tcp", "127.0.0.1:0"]
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE) as daemon:
            try:
                ready = json.loads(daemon.stdout.readline())  # type: ignore[union-attr]  # a pipe
                client = OpenAI(base_url=f"http://{ready['tcp']}/v1", api_key=token)
                answer = client.chat.completions.create(
                    model=client.models.list().data[0].id,
                    messages=[{"role": "user", "content": "What is 12 + 30?"}],
                )
                print(answer.choices[0].message.content)
                print(f"-- {answer.model}")
            finally:
                daemon.terminate()


if __name__ == "__main__":
    main()
