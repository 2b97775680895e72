"""Stream an answer, and leave early: closing the stream cancels the work."""

from contextlib import closing

from overspill import Overspill

with Overspill(app="streaming") as ai, closing(ai.stream("Tell me a short story.")) as pieces:
    shown = 0
    for piece in pieces:
        print(piece.text, end="", flush=True)
        shown += len(piece.token_ids)
        if shown >= 24:
            break
print("\n-- left after", shown, "tokens")
