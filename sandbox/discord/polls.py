"""Polls of messages: the checks of what is sent, and the form in which Discord gives it back."""

import time
from typing import Any

from sandbox.discord.errors import Json
from sandbox.discord.form import Form
from sandbox.discord.state import iso

MAX_ANSWERS, MAX_QUESTION, MAX_ANSWER, MAX_HOURS = 10, 300, 55, 768


def check(form: Form, poll: Any) -> None:
    """Faults of a poll that a message brings."""
    if poll is None:
        return
    here = form.at("poll")
    if isinstance(poll, dict):
        here.at("question").text(poll.get("question"), "text", 1, MAX_QUESTION, required=True)
    for index, answer in enumerate(here.items(poll, "answers", 1, MAX_ANSWERS, required=True)):
        place = here.at("answers", index, "poll_media")
        place.text(answer.get("poll_media") if isinstance(answer, dict) else None, "text", 1, MAX_ANSWER, required=True)
    here.integer(poll, "duration", 1, MAX_HOURS)


def shown(poll: Json) -> Json:
    """A checked poll as Discord shows it, before anybody has voted."""
    hours = poll.get("duration") or 24
    return {
        "question": {"text": poll["question"]["text"]},
        "answers": [
            {"answer_id": number, "poll_media": {"text": answer["poll_media"]["text"]}}
            for number, answer in enumerate(poll["answers"], start=1)
        ],
        "expiry": iso(int(time.time() + int(hours) * 3600) * 1000),
        "allow_multiselect": bool(poll.get("allow_multiselect")),
        "layout_type": 1,
        "results": {"answer_counts": [], "is_finalized": False},
    }
