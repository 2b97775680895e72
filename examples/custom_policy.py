"""A routing policy of one's own: what may leave is written down in a file, and a plan shows it.

The texts are too long for the device's model, so only a third party could answer. Each plan says
whether it may be asked. Nothing is sent: planning contacts nobody.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from overspill import ModelCard, Overspill, Privacy, load_settings
from overspill.opening import open_third_party
from overspill.providers.openai_api import ProviderOptions

POLICY = """
version = "notes-1"
listed_terms = ["Project Heron"]  # private words: a text with one of them stays here
redact = ["email"]                # leaves as [EMAIL_1], and comes back with its meaning

[detectors]
phone = "device"                  # stricter than the default, which is "attested"
"""
PROVIDER = ProviderOptions(
    name="example.org",
    base_url="https://api.example.org/v1",
    card=ModelCard("large", context=100_000, runtime="openai", price_prompt_per_mtok=3.0),
    api_key="not needed for a plan",
)
REPORT = "The meeting was long, and nobody wrote down what was said. " * 120
TEXTS = {
    "an ordinary report": REPORT,
    "with an address": REPORT + "Write to ada@example.org.",
    "with a telephone number": REPORT + "Call +44 20 7946 0018.",
    "with a private term": REPORT + "It was about project heron.",
}

with tempfile.TemporaryDirectory() as folder:
    policy = Path(folder, "routing.toml")
    policy.write_text(POLICY)
    # The user accepts less proof than by default; the file and each request can only tighten it.
    settings = replace(load_settings(), routing_policy=policy).with_floor(Privacy.ANY)
    with Overspill(
        app="policy", settings=settings, third_party=open_third_party(settings, PROVIDER)
    ) as ai:
        for name, text in TEXTS.items():
            plan = ai.plan(f"Sum this up: {text}", max_tokens=100)
            print(f"{name}: {plan.decision.stages[-1].code}; would leave: {plan.would_leave}")
            for stage in plan.decision.stages:
                print(f"    stage {stage.stage} {stage.code} {dict(stage.numbers)}")
