"""How a refused form was made is kept as JSON, from which nothing but what is Stoa's own is made again."""

import functools
import json
import os
from datetime import UTC, datetime

import pytest

from bot import kept_forms
from bot.commands.allocation.forms import RequestForm
from bot.commands.project.put_on_record import ProjectForm
from bot.commands.reason_form import ReasonForm
from bot.commands.run.forms import LaunchForm
from bot.commands.stoa.forms import ChangeGrantForm
from broker.allocations.pools import GrantView
from broker.allocations.units import Amount, Unit
from projects import bans, membership
from projects.findings import Message
from projects.people import Actor, LabRole


@pytest.mark.parametrize(
    "made",
    [
        [ReasonForm, "Ban", bans.ban, Actor(7, "Ada", frozenset({LabRole.ADMIN})), "Done."],
        [ProjectForm, Message(1, Actor(7, "Ada"), "It works.", datetime(2030, 1, 1, tzinfo=UTC), "https://x"), []],
        [RequestForm, 3, {"local": Amount(Unit.CORE, 3600)}, {"renews": None, "share": 0.5}],
        [LaunchForm, 3, 4, Unit.GPU, ["demo"]],
        [ChangeGrantForm, [GrantView(1, "local", Unit.CORE, "A", 9, 1, 2, 6, datetime(2030, 1, 1, tzinfo=UTC))]],
    ],
)
def test_what_a_form_was_made_with_is_kept_as_it_was(made: list[object]) -> None:
    assert kept_forms.decoded(json.loads(json.dumps(kept_forms.encoded(made)))) == made


def test_no_function_of_another_package_is_kept_or_called() -> None:
    act = functools.partial(membership.remove, who="7")
    again = kept_forms.decoded(kept_forms.encoded(act))
    assert (again.func, again.args, again.keywords) == (act.func, (), {"who": "7"})
    for other in (os.system, lambda: None, object()):
        with pytest.raises(TypeError):
            kept_forms.encoded(other)
    with pytest.raises(TypeError, match="not ours"):
        kept_forms.decoded({"named": "os:system"})
