"""Whatever members type, every message fits Discord's limits and carries no markup or mention of theirs."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from discord import ui
from hypothesis import given, settings
from hypothesis import strategies as st

from bot import text
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.cards.review_card import change_card, review_card
from bot.cards.run_card import moved_card, run_card
from bot.cards.sweep_card import moved_sweep_card, sweep_card
from bot.commands.run import data_answers
from bot.delivery import posts
from bot.delivery.entry_text import TEXTS
from bot.delivery.posts import Destination, PostContext
from bot.mention import Mention
from broker.allocations import requests
from broker.allocations.allocations import AllocationState, AllocationView
from broker.allocations.change_requests import ChangeState
from broker.allocations.ledger import Account
from broker.allocations.units import Unit
from broker.plots.curve import Curve
from broker.plots.loss_curve import draw
from broker.reports.data_read import ReadableData
from broker.reports.review_context import Remark, ReviewContext
from broker.reports.run_details import RunDetails
from broker.reports.why import Why
from broker.reviews.changes import ChangeView
from broker.runs.runs import CheckpointLink, RunKind, RunState, RunView
from broker.runs.sweeps import SweepView
from broker.scheduling.fairshare import Standing
from projects.projects import Member, Outcome, ProjectView, Stage
from projects.record.record import EntryView
from trainer.contract import Part, Passage, SeenRow, SeenStep, SeenText

LONG = [
    "x" * 4000,
    "🧪" * 4000,
    "@everyone " * 400,
    "*_~`|>[](<" * 400,
    "\n" * 3999 + "end",
    "a\n" * 2000,
    "\\" * 4000,
    "<@1> <#2> <@&3>" * 250,
]
MANY = tuple(Member(str(n), "Name of thirty-two characters...", n == 0) for n in range(200))


def project(said: str) -> ProjectView:
    return ProjectView(
        1, said[:80], Stage.COMPLETED, said, said, said, said, said, said, said, Outcome.RESULT, said, MANY
    )


def request(said: str) -> AllocationView:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    state, account = AllocationState.APPROVED, Account(3600, 0, 0)
    return AllocationView(1, 1, said, said, said, said, 3600, until, said, state, said, said, said, account)


def change(said: str, state: ChangeState) -> ChangeView:
    return ChangeView(1, 1, said, 3600, datetime(2031, 1, 1, tzinfo=UTC), said, state, said, said, said)


def context(said: str) -> ReviewContext:
    most = dict.fromkeys(Unit, 9 * 10**12 + 1)
    return ReviewContext(
        3,
        most,
        most,
        1,
        2,
        True,
        1,
        2,
        3,
        4,
        Standing(1.0, 1, 2, 0.5, 0.5, 9.0),
        list(Unit),
        [Remark(said, said, True)] * 9,
    )


def run(said: str) -> RunView:
    return RunView(
        id=1,
        kind=RunKind.TRAIN,
        project_id=1,
        project=said,
        recipe=said,
        overrides={said: said},
        pool=said,
        unit=Unit.CORE,
        sponsor=said,
        gpus=1,
        time_limit=60,
        requested_by=said,
        state=RunState.FAILED,
        reason=said,
        end_reason=None,
        attempt=1,
        parent_id=None,
        step=3,
        total_steps=10,
        tokens=300,
        loss=1.0,
        rate=1.0,
        held_out=1.0,
        held_out_step=64,
        spike=1.0,
        spike_step=3,
        unigram_entropy=1.0,
        spent=1,
        account=Account(3600, 0, 0),
        checkpoints=(CheckpointLink(1, "https://hub/step1"),),
        sample=said,
        started_at=None,
        ended_at=None,
        stages=(2, 10),
        name=said,
        tags=(said,) * 5,
        phase=said,
        phase_at=datetime(2030, 1, 1, tzinfo=UTC),
    )


def sweep(said: str, state: RunState) -> SweepView:
    name, value = said[:40].strip() or "x", said[:80]  # an override has at most 80 characters
    ran = [replace(run(said), id=n, state=state, overrides={name: value, "seed": str(n % 3)}) for n in range(64)]
    return SweepView(1, 1, said, said, [name, "seed"], {name: value}, 1, 60, ran, Account(3600, 0, 0))


def checked(card: Card) -> None:
    texts = [item.content for item in card.walk_children() if isinstance(item, ui.TextDisplay)]
    assert sum(map(text.length, texts)) <= 4000
    assert len(list(card.walk_children())) <= 40
    assert all(texts)
    assert texts[-1].splitlines()[-1] == card.marker
    assert "@everyone" not in "".join(texts)


@pytest.mark.parametrize("said", LONG, ids=range(len(LONG)))
async def test_cards(said: str) -> None:
    for stage in Stage:
        shown = replace(project(said), stage=stage, stage_reason=said)
        checked(project_card(shown, [request(said)] * 30, [run(said)] * 30, channel_id="1", min_people=2))
    for state in AllocationState:
        checked(review_card(replace(request(said), state=state), context(said)))
    for decision in ChangeState:
        checked(change_card(change(said, decision), request(said), context(said)))
    for phase in RunState:
        training = replace(run(said), state=phase, delayed=said, parent_id=1, attempt=3)
        why = Why(1, said, said, Unit.CORE, 1, phase, said, 9, 9, None, datetime(2030, 1, 1, tzinfo=UTC))
        details = RunDetails(2.5, 1.25, 0.4, 7, said, said, said, said)
        card = run_card(training, picture="curve.png", why=why, thread_id="1", details=details)
        checked(card)
        galleries = [item for item in card.walk_children() if isinstance(item, ui.MediaGallery)]
        assert [bool(picture.description) for gallery in galleries for picture in gallery.items] == [True]
        checked(moved_card(training, "https://discord.com/channels/1/2/3"))
        many = sweep(said, phase)
        checked(sweep_card(many, picture="curves.png", why=why, thread_id="1"))
        checked(moved_sweep_card(many, "https://discord.com/channels/1/2/3"))


@pytest.mark.parametrize("said", LONG, ids=range(len(LONG)))
async def test_what_a_run_has_read(said: str) -> None:
    place = ReadableData(1, Path(), 10**6, 1024, 9, 2, 5)
    parts = [Part(document=said, start=0, end=1)] * 5
    rows = [
        SeenRow(row=at, source=said, licence=said, number=0, documents=parts, text=said, tokens=[])
        for at in range(data_answers.ROWS)
    ]
    page = data_answers.rows(1, place, SeenStep(step=9, batch=1024, sequence_length=2048, rows=rows), 1)
    assert text.length(page) <= text.MESSAGE
    assert page.endswith("-# `/run data run:1 step:9 page:2` shows the next. The data are kept with the run: 1.0 MB.")
    assert page.count("```") == 2 * data_answers.ROWS
    passages = [Passage(source=said, licence=said, document=said, share=0.5, steps=list(range(99)))] * 10
    for found in (0, 12_345):
        told = SeenText(tokens=9, found=found, passages=passages, searched=5, held=6, begun=5, done=9)
        answer = data_answers.passages(place, said, told)
        assert text.length(answer) <= text.MESSAGE
        assert answer.endswith("-# Searched: the first 5 of 6 tokens.")
        assert "@everyone" not in answer + page


def payload_of(kind: str, said: str) -> dict[str, Any]:
    """A payload with all that the text of any entry needs; every text in it is `said`."""
    numbers = ("seconds", "asked", "allocation", "run", "attempt", "gpus", "time_limit", "reserved", "step", "spent")
    words = (
        "title",
        "question",
        "needs",
        "why",
        "goal",
        "plan",
        "compute",
        "release",
        "outcome",
        "learnt",
        "pool",
        "tags",
    )
    payload: dict[str, Any] = dict.fromkeys((*numbers, "from_step", "parent"), 7) | dict.fromkeys(
        (*words, "sponsor", "gpu_type", "until", "recipe", "text"), said
    )
    everyone = [{"id": member.discord_id, "name": member.name, "lead": member.lead} for member in MANY]
    payload |= {"by": {"id": "1", "name": said}, "overrides": {said: said}, "url": "https://hub/step7"}
    payload |= {"host": said, "machine": said, "bytes": 10**15, "documents": 10**12, "tokens": 10**13}
    payload |= {"reservation": 3, "begins": "2030-12-12T09:00:00+00:00", "ends": "2030-12-13T09:00:00+00:00"}
    payload |= {"loss": "9.876", "usual": "3.141"}
    payload |= {"for_run": 8, "for_project": 2, "preempt_after": 3600}
    payload |= {"tries": 5, "count": 3, "free_gib": 1.5, "floor_gib": 5.0}
    payload |= {"what": "recipe", "name": said, "body": said, "dataset": said, "revision": said, "licence": said}
    payload |= {"licence": said, "release_policy": "held", "to": {"id": "2", "name": said}}
    payload |= {"before": {"id": "2", "name": said}, "endorsed_by": said, "renews": 3}
    payload |= {
        "policy": said,
        "was": 1,
        "now": said,
        "part": said,
        "error": said,
        "share": 2.5,
        "projects": list(range(1, 900)),
    }
    payload |= {"person": {"id": "3", "name": said}, "numbers": list(range(1, 900))}
    payload |= {"role": "newcomer", "leads": list(range(1, 900))}
    payload |= {
        "author": {"id": "4", "name": said},
        "said_at": "2030-01-01",
        "link": "https://discord.com/channels/1/2/3",
    }
    payload |= {"price_weight": 2.5, "grant": 7, "places": {"record": {"id": "5", "name": said[:100]}}}
    payload |= {"sweep": 3, "points": said, "runs": list(range(64)), "cost": 7, "best": 3, "point": said}
    payload |= {"ends": dict.fromkeys(RunState, 9), "measure": "loss", "value": "3.141", "stops_as": "paused"}
    payload["people"] = everyone if kind == "project.completed" else 2
    return payload


@pytest.mark.parametrize("said", LONG, ids=range(len(LONG)))
@pytest.mark.parametrize("kind", [*TEXTS, "something.else"])
def test_posts(kind: str, said: str) -> None:
    payload = payload_of(kind, said)
    told = EntryView(1, "project:1", 12, kind, "00112233445566", payload)
    context = PostContext(project(said), "5", [run(said)] * 30)
    for destination in posts.destinations(told, has_channel=True):
        shown = posts.render(told, destination, context, Mention(2**63))
        assert re.findall(r"<@[!&]?\d+>|@everyone|@here", shown) == [f"<@{2**63}>"]
        assert shown.splitlines()[-2] == f"-# For <@{2**63}>"
        assert text.length(shown) <= 4000
        assert shown.splitlines()[-1] == "-# P1 · record 12 · 00112233"
        assert "GPU-seconds" not in shown
    evaluation = {"evaluation": 3, "nth": 1, "tasks": [said] * 20, "steps": list(range(10**9, 10**9 + 200))}
    evaluation |= {"results": [[said, said, 10**9, 1e-9, 1e-9]] * 60, "more_results": 10**6}
    study = {"study" if key == "evaluation" else key: value for key, value in evaluation.items()}
    program = {"program" if key == "evaluation" else key: value for key, value in evaluation.items()}
    program |= {"tasks": [said], "parameters": dict.fromkeys(map(str, range(40)), said)}
    baseline = {"baseline" if key == "evaluation" else key: value for key, value in evaluation.items()}
    baseline["baseline"] = said
    for other in ({"sample": 2}, {"prepares": said}, evaluation, study, program, baseline):
        about = EntryView(1, "project:1", 12, kind, "00112233445566", payload | other)
        assert text.length(posts.render(about, Destination.RUN, context)) <= 4000
    of_cpus = replace(told, payload=payload | {"unit": "core"})
    assert "GPU" not in posts.render(of_cpus, Destination.RUN, context)


def test_an_announcement_names_whole_runs_and_counts_the_others() -> None:
    people = [{"id": "1", "name": "Ada", "lead": True}]
    payload = {"outcome": "result", "learnt": "word " * 300, "people": people}
    told = EntryView(1, "project:1", 12, "project.completed", "00112233445566", payload)
    url = f"https://hub/{'long' * 40}/step1"
    ran = [replace(run("demo"), id=number, checkpoints=(CheckpointLink(1, url),)) for number in range(25)]
    lines = posts.render(told, Destination.ANNOUNCEMENTS, PostContext(project("Why?"), "5", ran)).splitlines()
    links = [line for line in lines if line.startswith("**Run ")]
    assert 1 < len(links) < 25
    assert all(line.endswith(f"[step 1]({url})") for line in links)
    assert lines[-2:] == [f"-# and {25 - len(links)} more", "-# P1 · record 12 · 00112233"]


@given(st.text(alphabet="ab @everyone<#*_`\\\n[]()🧪", max_size=200), st.integers(1, 80))
@settings(max_examples=300)
def test_bounds_and_escapes(said: str, most: int) -> None:
    for shown in (text.line(said, most), text.quote(said, most), text.bounded(text.escape(said), most)):
        assert text.length(shown) <= most
        bare = shown.removesuffix("…")
        assert (len(bare) - len(bare.rstrip("\\"))) % 2 == 0
    assert "@everyone" not in text.escape(said)


def test_an_address_leads_where_it_did_and_no_line_of_a_quote_is_a_heading() -> None:
    said = "@ada wrote https://a.org/@ada_b\u2028# big\u2029-# small\x85> not hers"
    shown = ["@\u200bada wrote https://a.org/%40ada_b", "\\# big", "\\-# small", "\\> not hers"]
    assert text.quote(said, 500).splitlines() == [f"> {line}" for line in shown]


@given(st.lists(st.text(alphabet="a 🧪", min_size=1, max_size=300), max_size=60), st.text("end", max_size=400))
@settings(max_examples=100)
def test_a_list_keeps_whole_entries_its_end_and_the_count_of_the_rest(entries: list[str], end: str) -> None:
    shown = text.listed(entries, end=end, of=len(entries) + 2)
    assert text.length(shown) <= text.MESSAGE
    kept = shown.removesuffix(f"\n{end}" if end else "").splitlines()
    more = int(kept.pop().removeprefix("-# and ").removesuffix(" more"))
    assert kept == entries[: len(kept)]
    assert len(kept) + more == len(entries) + 2
    assert shown.endswith(end)


@given(st.integers(1, 10**9))
def test_prefilled_hours_read_back_the_same(seconds: int) -> None:
    assert requests.parse_hours(text.exact_hours(seconds)) == seconds


def test_a_curve_is_drawn_from_little_and_much() -> None:
    much = [(n * 100, 9.0 - n / 1000) for n in range(2000)]
    for loss in (much[:2], much):
        curve = Curve("Run 1 · demo", loss, [(100, 8.5)], [0, 100], 7.0)
        assert draw(curve).startswith(b"\x89PNG")
    assert Curve("a", much, [], [], None).digest != Curve("a", much[:-1], [], [], None).digest
