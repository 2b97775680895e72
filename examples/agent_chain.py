"""An agent's chain of calls with one deadline: what a call leaves over, the next one gets."""

from overspill import Overspill
from overspill.errors import BudgetExhausted, DeadlineExceeded

STEPS = (
    "Is this message positive or negative? I love this phone.",
    "What is 27 + 48?",
    "Convert 3 hours to minutes.",
    "Put these words in alphabetical order: pear, apple, fig",
)

with Overspill(app="agent") as ai, ai.budget(seconds=30):
    for step in STEPS:
        try:
            reply = ai.chat(step, max_tokens=120)
        except (BudgetExhausted, DeadlineExceeded) as error:
            print(f"stopped: {error}")
            break
        print(f"{reply.total_s:5.2f} s  {reply.text.splitlines()[-1]}")
