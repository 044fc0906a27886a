"""What the README shows is run: the questions in SQL, on a real guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest
from vmi_inside import sql

README = Path(__file__).parents[1] / "README.md"
QUESTIONS = re.findall(
    r"--[^\n]*\n(select .*?);", "".join(re.findall(r"```sql\n(.*?)```", README.read_text(), re.S)), re.S
)
#: Those that the lab's guest has an answer to.
ANSWERED = ("LISTEN", "on_disk", "rwx%")


def test_there_are_questions() -> None:
    assert len(QUESTIONS) >= 7


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_a_question_of_the_readme(lab_guest: LabGuest, question: str) -> None:
    with lab_guest.attach() as guest:
        found = sql.query(guest, question)
    if any(word in question for word in ANSWERED):
        assert len(found)
