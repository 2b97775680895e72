"""How an app that uses overspill is tested: a scripted model at the seam, and nothing mocked.

    pytest test_notes_app.py

The client around the fake is the real one, with its routes, floors, budgets, tools and errors.
"""

import pytest

from overspill import Overspill, OverspillError, load_settings
from overspill.errors import EngineDied
from overspill.testing import Answer, FakeEngine, call

# --- the app ------------------------------------------------------------------------------------


def title(ai: Overspill, note: str) -> str:
    """A title for a note, or its first words where no model can give one."""
    try:
        return ai.chat(f"A title for this note: {note}", privacy="device").text
    except OverspillError as error:
        return error.partial or " ".join(note.split()[:3])


def remind(ai: Overspill, wish: str, calendar: list[str]) -> str:
    """Let the model put something into the calendar."""

    def add_entry(day: str, text: str) -> str:
        """Put an entry into the calendar."""
        calendar.append(f"{day}: {text}")
        return "done"

    return ai.run(wish, tools=[add_entry]).text


# --- its tests ----------------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path):
    """A client over a scripted model, with settings that are not the developer's own."""
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    return lambda model: Overspill(app="notes", settings=settings, device=model)


def test_the_title_is_the_models(ask):
    model = FakeEngine(["Shopping"])
    with ask(model) as ai:
        assert title(ai, "milk, bread, apples") == "Shopping"
    assert "milk, bread, apples" in model.requests[0].messages[-1].content
    assert model.closed


@pytest.mark.parametrize(("words", "shown"), [(0, "milk, bread, apples"), (1, "Shopping")])
def test_a_model_that_dies_leaves_a_title(ask, words, shown):
    dying = Answer("Shopping list", error=EngineDied("gone"), error_after=words)
    with ask(FakeEngine([dying])) as ai:
        assert title(ai, "milk, bread, apples") == shown


def test_a_reminder_ends_up_in_the_calendar(ask):
    calendar: list[str] = []
    model = FakeEngine([call("add_entry", day="Monday", text="dentist"), "I will remind you."])
    with ask(model) as ai:
        assert remind(ai, "The dentist on Monday!", calendar) == "I will remind you."
    assert calendar == ["Monday: dentist"]


def test_a_call_with_wrong_arguments_changes_nothing(ask):
    calendar: list[str] = []
    model = FakeEngine([call("add_entry", when="Monday"), "Which day?"])
    with ask(model) as ai:
        assert remind(ai, "The dentist!", calendar) == "Which day?"
    assert calendar == []
    assert "day" in model.requests[1].messages[-1].content
