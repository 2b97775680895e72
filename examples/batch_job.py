"""A batch job: requests in OpenAI's batch format, answered on this machine, each exactly once.

Needs the extras [local] and [edge]. The second run finds everything done: had the first one been
killed, it would have gone on where that stopped.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BATCH = [sys.executable, "-m", "overspill.cli.main", "batch"]
REVIEWS = {
    "r-1": "The trip was impressive.",
    "r-2": "We had a terrible meal.",
    "r-3": "I think the phone is great.",
    "r-4": "Honestly, the phone was really useless.",
}


def request(custom_id: str, review: str) -> str:
    """One line of the file: what would be posted to the daemon, with a name to know it by."""
    asked = f"Classify the sentiment as positive or negative: {review}"
    body = {"model": "auto", "messages": [{"role": "user", "content": asked}], "max_tokens": 20}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line) + "\n"


def main() -> None:
    """Write the requests, answer them, and read the answers by name."""
    with tempfile.TemporaryDirectory() as folder:
        requests, answers = Path(folder, "requests.jsonl"), Path(folder, "answers.jsonl")
        requests.write_text("".join(request(*review) for review in REVIEWS.items()))
        for _ in range(2):
            command = [*BATCH, str(requests), "--out", str(answers), "--json"]
            told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"-- {told['done']} answered now, {told['taken_up']} were answered already")
        found = map(json.loads, answers.read_text().splitlines())
        for answer in sorted(found, key=lambda answer: answer["custom_id"]):
            said = answer["response"]["body"]["choices"][0]["message"]["content"]
            where = answer["overspill"]["route"]
            print(f"{answer['custom_id']}  {said:<9} {where:<7} {REVIEWS[answer['custom_id']]}")


if __name__ == "__main__":
    main()
