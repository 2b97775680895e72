"""An agent's chain of seven calls that shares one budget: seconds, tokens, and how many to come.

What is left shapes where each call may run; a call for which nothing is left is not begun.
"""

from overspill import Overspill
from overspill.errors import BudgetExhausted

THERMOMETERS = {"Paris": 21, "Oslo": 14, "Cairo": 35}


def get_weather(city: str) -> str:
    """Weather of a city"""
    return f"sunny, {THERMOMETERS[city]} C"


with (
    Overspill(app="agent") as ai,
    ai.budget(seconds=60, tokens=3_000, calls=7) as budget,
):
    try:
        told = []
        for city in THERMOMETERS:
            answer = ai.run(f"What is the weather in {city}?", tools=[get_weather], max_tokens=60)
            told += [result.content for step in answer.steps for result in step.results]
            print(f"{answer.text}  ({len(answer.steps)} calls, {answer.total_tokens} tokens)")
        degrees = ", ".join(said.split()[1] for said in told)
        ordered = ai.chat(f"Sort in ascending order: {degrees}", max_tokens=60)
        print("coldest first:", ordered.text.splitlines()[-1])
    except BudgetExhausted as error:
        print(f"stopped: {error}")

print(f"-- {budget.calls_made} calls, {budget.tokens_left} tokens left")
