"""Look before you leap: a plan says where a prompt would run, why, and what would leave."""

from overspill import Overspill, Privacy

PROMPTS = ("How many days are in 3 weeks?", "Write to ada@example.org about her card.")

with Overspill(app="planner") as ai:
    for prompt in PROMPTS:
        plan = ai.plan(prompt, privacy=Privacy.DEVICE)
        print(f"{prompt}\n  {plan.route} ({plan.reason}); leaves: {plan.would_leave}")
        for stage in plan.decision.stages:
            print(f"    stage {stage.stage}: {stage.code} {dict(stage.numbers)}")
