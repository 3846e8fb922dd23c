"""Bad input: each gets one private sentence, and nothing changes."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, update
from sqlmodel import select

from bot import kept_forms, text
from bot.commands.form import Again
from bot.commands.project.forms import UpdateForm
from bot.tables import DiscordForm
from broker.allocations import pools
from broker.allocations.units import in_hours
from projects import lifecycle
from projects.db.columns import utcnow
from projects.errors import OverError
from sandbox.people import Answer, Channel
from tests.bot.conftest import PROPOSAL, Lab
from tests.patience import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]


def edited(times: int) -> Callable[[Answer], bool]:
    """Whether an answer is there, and was edited so often."""
    return lambda answer: answer.message is not None and answer.message.edits >= times


def refused(lab: Lab, answer: Answer, sentence: str, heads: dict[str, int]) -> None:
    """The answer is that one sentence, for one person, and the record has not grown."""
    assert answer.kind == "message"
    assert answer.ephemeral
    assert answer.text == text.escape(sentence)
    assert not answer.followups
    assert lab.heads() == heads


@pytest.mark.parametrize(
    ("title", "sentence"),
    [
        ("", "A project needs a title: a few words that say what it is about."),
        ("🧪🔥 @everyone", "A title cannot mention people, roles or channels, such as @everyone: use plain words."),
        ("🧪🔥🧪", "A title needs at least three letters or digits, so that people can say and find it."),
        ("long " * 100, "The title has 499 characters; at most 80 fit."),
        (
            "Hello @every\u200bone",
            "A title cannot mention people, roles or channels, such as @everyone: use plain words.",
        ),
        ("\u3164\u2800\0", "A project needs a title: a few words that say what it is about."),
    ],
)
async def test_a_title(shared_lab: Shared, title: str, sentence: str) -> None:
    lab, _ = shared_lab
    heads = lab.heads()
    refused(lab, await lab.propose(Title=title), sentence, heads)


async def test_a_refused_form_opens_again_as_it_was_filled_in(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    form = await ada.agree(await ada.command("project complete", channel=channel.id))
    empty = await ada.submit(form, {"Outcome": "Abandoned", "What was learnt": " \u200b "}, force=True)
    assert empty.message is not None
    assert empty.message.button_labels == ["Edit and resend"]
    form = await ada.press(empty.message, "Edit and resend")
    assert form.fields[0].value == "Abandoned"
    filled = PROPOSAL | {"Title": "🧪" * 2000}  # 4,000 UTF-16 units, as many as a field holds
    answer = await lab.propose(**filled)
    lab.kill_bot()
    await lab.start_bot()
    for title in ("", "Is it mended?"):
        assert answer.message is not None
        assert answer.message.button_labels == ["Edit and resend"]
        form = await ada.press(answer.message, "Edit and resend")
        assert [field.value or "" for field in form.fields] == list(filled.values())
        filled = PROPOSAL | {"Title": title}
        answer = await ada.submit(form, filled, force=True)
    assert "is proposed" in answer.text
    await lab.guild.wait_for("proposals", lambda m: "Is it mended?" in m.text)
    lab.call(lifecycle.stop, lab.actor("Ada"), int(answer.text.split()[1]), reason="It was for a test.")


async def test_a_refused_form_is_kept_for_a_day_and_for_one_person(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    answer = await lab.propose(Title="")
    assert answer.message is not None
    number = lab.call(lambda session: session.scalars(select(func.max(DiscordForm.id))).one())
    with pytest.raises(OverError):
        lab.call(kept_forms.load, lab.actor("Grace").discord_id, number)
    lab.call(kept_forms.sweep)
    assert (await lab.person("Ada").press(answer.message, "Edit and resend")).kind == "modal"
    lab.call(lambda session: session.execute(update(DiscordForm).values(at=utcnow() - timedelta(days=1, seconds=1))))
    heads = lab.heads()
    refused(lab, await lab.person("Ada").press(answer.message, "Edit and resend"), kept_forms.GONE, heads)
    lab.call(kept_forms.sweep)
    assert lab.call(lambda session: session.scalars(select(DiscordForm)).all()) == []


async def test_a_form_is_offered_again_for_a_day_and_not_where_nothing_can_mend_it(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada = lab.person("Ada")
    answer = await lab.propose(Title="Of a form that comes too late")
    number = int(answer.text.split()[1])
    form = await ada.command("project update", channel="general", project=number)
    lab.call(lifecycle.stop, lab.actor("Ada"), number, reason="It was for a test.")
    late = await ada.submit(form, {"Update": "It goes well."})
    assert late.text == "“Of a form that comes too late” is stopped; it takes no more updates."
    assert late.message is not None
    assert late.message.button_labels == []

    refused_form = UpdateForm(number)
    offer = Again(refused_form, "Edit and resend")
    assert offer.timeout == 24 * 3600
    assert refused_form.timeout is not None
    assert refused_form.timeout > offer.timeout
    for said, opens_with in (("a" * 3000, "a" * 3000), ("b" * 5000, "b" * 3999 + "…")):
        refused_form.fill({"Update": said})
        assert refused_form.update.default == opens_with
        assert (refused_form.update.max_length or 0) >= len(opens_with)


@pytest.mark.parametrize("hours", ["-5", "0", "many", "NaN"])
async def test_hours(shared_lab: Shared, hours: str) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    _, most = lab.call(pools.largest_in, "local")
    said = f"Hours must be a number above 0, at most {in_hours(most)}, such as 1.5."
    refused(lab, await lab.request(channel, hours), said, heads)


async def test_more_hours_than_the_pool_can_give(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    answer = await lab.request(channel, "1e9")
    assert re.search(r"^The grants of “local” have [0-9.,]+ core-hours left for one allocation; ask for", answer.text)
    assert lab.heads() == heads


async def test_a_day_that_has_passed(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    answer = await lab.request(channel, Until="2020-01-01")
    last = datetime.now(UTC).date() + timedelta(days=365)
    said = f"The day must lie in the future, and no later than {last}; 2020-01-01 does not."
    refused(lab, answer, said, heads)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"allocation": 2},
            "Allocation 2 is requested; a run needs an approved one. Allocation 1 on “local” can pay for it.",
        ),
        ({"recipe": "n\0o\u202ep\x1b[1me"}, "There is no recipe “nope”; the recipes are: demo."),
        ({"recipe": "**nope**"}, "There is no recipe “**nope**”; the recipes are: demo."),
        ({"time_limit": "soon"}, "A time limit is written like 45m, 2h or 1h30m, from one minute to 720 hours."),
        ({"gpus": 9}, "The pool “local” has 2 cores; ask for 1 to 2."),
    ],
)
async def test_a_launch(shared_lab: Shared, options: dict[str, object], sentence: str) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    given: dict[str, Any] = {"recipe": "demo", "time_limit": "5m"} | options
    refused(lab, await lab.person("Ada").command("run launch", channel=channel.id, **given), sentence, heads)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps=0", "steps must be"),
        ("layers=3", "layers"),
        ("learning-rat=1", "(did you mean learning"),
        ("steps", "An override is written like"),
    ],
)
async def test_an_override(shared_lab: Shared, override: str, part: str) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    answer = await lab.person("Ada").command(
        "run launch", channel=channel.id, recipe="demo", time_limit="5m", override=override
    )
    assert part in answer.text
    refused(lab, answer, answer.text.replace("\\", ""), heads)


async def test_a_stranger_cannot_launch_and_nobody_can_without_a_project(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    given: dict[str, Any] = {"recipe": "demo", "time_limit": "5m"}
    answer = await lab.person("Omar").command("run launch", channel=channel.id, **given)
    sentence = "Only members of “Do small models dream?” can do this: join it, and its lead, Ada, confirms you."
    refused(lab, answer, sentence, heads)
    answer = await lab.person("Ada").command("run launch", channel="general", **given)
    sentence = "Use this in a project's channel or thread, or name the project in the option “project”."
    refused(lab, answer, sentence, heads)


async def test_only_the_lead_gets_the_form_of_the_scope(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    heads = lab.heads()
    answer = await lab.person("Grace").command("project scope", channel=channel.id)
    refused(lab, answer, "Only the lead of “Do small models dream?”, Ada, can do this.", heads)
    answer = await lab.person("Ada").command("project scope", channel=channel.id)
    refused(lab, answer, "“Do small models dream?” is active: its scope is already written.", heads)


async def test_joining_twice(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    heads = lab.heads()
    card = await lab.guild.wait_for("proposals", lambda m: True)
    answer = await lab.person("Grace").press(card, "Join")
    refused(lab, answer, "You are already in “Do small models dream?”.", heads)


async def test_the_lead_decides_nothing_even_as_a_reviewer(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    heads = lab.heads()
    card = await lab.review_card(2)
    await lab.guild.set_roles("Ada", ["reviewer"])
    answer = await lab.person("Ada").press(card, "Approve")
    await lab.guild.set_roles("Ada", [])
    refused(lab, answer, "Nobody decides on a request of their own project; another reviewer can.", heads)


async def test_a_second_approval(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    number = int((await lab.request(channel)).text.split()[1])
    card = await lab.review_card(number)
    await lab.guild.set_roles("Omar", ["reviewer", "admin"])
    first = await lab.person("Rosa").press(card, "Approve")
    second = await lab.person("Omar").press(card, "Approve")
    await lab.guild.fault(r"PATCH /channels/\d+/messages/", count=100, status=503)
    await lab.person("Rosa").submit(first, {"Core-hours": "0.5", "Reason": "Yes."})
    heads = lab.heads()
    sentence = "This request was already approved, by Rosa."
    refused(lab, await lab.person("Omar").submit(second, {"Reason": "Yes, too."}), sentence, heads)
    refused(lab, await lab.person("Omar").press(card, "Approve"), sentence, heads)
    refused(lab, await lab.person("Omar").press(card, "Decline"), sentence, heads)
    await lab.guild.clear_faults()
    decided = await lab.guild.wait_for("compute-review", lambda m: m.id == card.id and m.button_labels == ["Revoke"])
    assert "Approved by Rosa" in decided.text


async def test_forms_leave_the_judging_to_the_domain_and_count_by_its_limits(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    proposed = int((await lab.propose()).text.split()[1])
    forms = {
        (80, 1000, 1000, 500): await lab.person("Ada").command("project propose"),
        (1000, 1500, 500, 500, None): await lab.person("Ada").command("project scope", project=proposed),
        (4000, 4000, 1500): await lab.person("Ada").command("allocation request", channel=channel.id, pool="local"),
    }
    for limits, form in forms.items():
        assert form.kind == "modal"
        assert {(field.required, field.min_length) for field in form.fields} == {(True, None)}
        assert all(field.placeholder for field in form.fields), "each says what belongs there"
        assert tuple(field.max_length for field in form.fields) == limits


async def test_what_was_written_in_vain_comes_back(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    heads, long = lab.heads(), "Small models. " * 100
    answer = await lab.propose(**{"Why it matters": long})
    refused(lab, answer, "Why it matters has 1,399 characters; at most 1,000 fit.", heads)
    [kept] = answer.message.attachments if answer.message else []
    assert kept.filename == "what-you-wrote.txt"
    written = kept.path.read_text()
    assert f"Research question\n{PROPOSAL['Research question']}\n\nWhy it matters\n{long}\n\n" in written
    short = await lab.request(channel, "-5", Justification="")
    assert short.message is not None
    assert short.message.attachments == [], "a number is typed again in no time"


async def test_an_answer_whose_connection_breaks_is_sent_again(shared_lab: Shared) -> None:
    """What was done is not called a failure, and what was written for it does not come back."""
    lab, channel = shared_lab
    ada, answering = lab.person("Ada"), r"PATCH /webhooks/.*/messages/@original"
    form = await ada.command("project propose")
    await lab.guild.fault(answering, cut=True)
    proposed = await ada.submit(form, PROPOSAL | {"Title": "Do they snore?"})
    offer = await ada.command("run launch", channel=channel.id, recipe="demo", time_limit="10m")
    assert offer.message is not None
    await lab.guild.fault(answering, cut=True)
    launched = await ada.press(offer.message, "Launch")
    for answer, said, edits in ((proposed, "is proposed", 1), (launched, "is queued", 2)):
        now = await lab.guild.wait_for_answer(answer, edited(edits))
        assert now.message is not None
        assert said in now.text
        assert (now.message.attachments, now.followups) == ([], [])
    await lab.guild.fault(answering, count=2, cut=True)
    await ada.submit(await ada.command("project propose"), PROPOSAL | {"Title": "Do they talk?"})
    await until(lambda: "an answer did not arrive" in lab.log)
    assert "a command failed" not in lab.log


async def test_a_form_that_was_open_while_the_bot_was_started_anew(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada = lab.person("Ada")
    form = await ada.command("project propose")
    lab.kill_bot()
    await lab.start_bot()
    heads = lab.heads()
    answer = await ada.submit(form, PROPOSAL)
    assert (answer.kind, answer.ephemeral, lab.heads()) == ("message", True, heads)
    assert answer.text.startswith("This form is closed, and nothing has changed: ")
    [kept] = answer.message.attachments if answer.message else []
    assert kept.path.read_text() == "\n\n".join(PROPOSAL.values())
    form = await ada.command("project propose")
    assert "is proposed" in (await ada.submit(form, PROPOSAL | {"Title": "Do they wake?"})).text


async def test_a_list_that_was_open_while_the_bot_was_started_anew(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    await omar.command("stoa setup", admins="admin")
    await ada.submit(await ada.command("project propose"), PROPOSAL | {"Title": "Does Ada fall?"})
    shown = await omar.submit(await omar.command("stoa forget", person="Ada"), {"Reason": "They asked."})
    assert "1 other text may name the person" in shown.text
    assert shown.message is not None
    page = await omar.press(shown.message, "All")
    assert "**1 of 1**" in page.text
    lab.kill_bot()
    await lab.start_bot()
    heads = lab.heads()
    answer = await omar.press(shown.message, "Forget the person")
    assert (answer.kind, answer.ephemeral, lab.heads()) == ("message", True, heads)
    assert answer.text.startswith("These buttons no longer work, and nothing has changed: ")
