"""Entries about projects: `project.…`, `reservation.…` and `share.…`."""

from datetime import datetime

from bot import text
from bot.delivery.entry_text.phrases import by, line, quoted, unit, why
from bot.delivery.entry_text.registry import Payload, entry

NEWCOMER = " The lead confirms newcomers with the button below or `/project confirm`."
COMPUTE = "\n**Next** The lead asks for compute with the button below or `/allocation request`."
READ_ALONG = "What happens in the project is posted here, for everyone to read."


@entry("project.proposed")
def proposed(p: Payload) -> str:
    return (
        f"🌱 {by(p)} proposes **{line(p['title'])}**."
        f"{quoted(p['question'], 'The question:')}{quoted(p['why'], 'Why it matters:')}"
        f"{quoted(p['needs'], 'Who is needed:')}\nAsk and discuss here."
        "\n**Next** Join with the button on the card above; the lead writes the scope, here or with `/project scope`."
    )


@entry("project.joined")
def joined(p: Payload) -> str:
    newcomer = p.get("role") == "newcomer"
    return f"🤝 {by(p)} joins the project. Welcome!{NEWCOMER if newcomer else ''}"


@entry("project.confirmed")
def confirmed(p: Payload) -> str:
    return f"🤝 {by(p)} confirms **{line(p['person']['name'])}** as a contributor."


@entry("project.removed")
def removed(p: Payload) -> str:
    return f"🚪 {by(p)} removes **{line(p['person']['name'])}** from the project.{why(p)}"


@entry("project.scoped")
def scoped(p: Payload) -> str:
    return (
        f"📐 {by(p)} has written the scope.{quoted(p['goal'], '**Goal**')}{quoted(p['plan'], '**Plan**')}"
        f"{quoted(p['compute'], '**Compute**')}{quoted(p['release'], '**To be released**')}{_models(p)}"
    )


def _models(p: Payload) -> str:
    if "licence" not in p:
        return ""
    held = p["release_policy"] == "held"
    how = "are held back until reviewers release them" if held else "are public as soon as they are written"
    return f"\nCheckpoints {how}; the models' licence is {line(p['licence'])}."


@entry("reservation.added")
def reservation_added(p: Payload) -> str:
    return f"🗓️ {by(p)} reserves {_reserved(p)} for the project (reservation {p['reservation']}).{why(p)}"


@entry("reservation.cancelled")
def reservation_cancelled(p: Payload) -> str:
    return f"🗓️ {by(p)} cancels reservation {p['reservation']}, of {_reserved(p)}.{why(p)}"


def _reserved(p: Payload) -> str:
    begins, ends = (datetime.fromisoformat(p[at]) for at in ("begins", "ends"))
    return f"{unit(p).count(p['gpus'])} of {text.code(p['pool'], 60)} {text.period(begins, ends)}"


@entry("share.set")
def share_set(p: Payload) -> str:
    return (
        f"⚖️ {by(p)} sets the project's share in fair-share to {p['share']:g}, was {p['was']:g}; the usual share is 1."
        f"{why(p)}"
    )


@entry("project.activated")
def activated(p: Payload) -> str:
    people = text.count(p["people"], "person", "people")
    return f"🏛️ The project has a scope and {people}, so it is active. {READ_ALONG}{COMPUTE}"


@entry("project.channel_opened")
def channel_opened(p: Payload) -> str:
    return f"🏛️ {by(p)} has opened this channel. {READ_ALONG}{COMPUTE}"


@entry("project.paused")
def paused(p: Payload) -> str:
    return f"⏸️ {by(p)} pauses the project.{why(p)}"


@entry("project.resumed")
def resumed(p: Payload) -> str:
    return f"▶️ {by(p)} resumes the project."


@entry("project.stopped")
def stopped(p: Payload) -> str:
    return f"⏹️ {by(p)} has stopped the project.{why(p)}"


@entry("project.completed")
def completed(p: Payload) -> str:
    return f"🏁 {by(p)} has completed the project: **{line(p['outcome'])}**.{quoted(p['learnt'], 'What was learnt:')}"


@entry("project.update")
def update(p: Payload) -> str:
    return f"📣 {by(p)} reports:{quoted(p['text'])}"


@entry("project.finding")
def finding(p: Payload) -> str:
    return (
        f"📌 {by(p)} puts on record what **{line(p['author']['name'])}** wrote on {text.day(p['said_at'])}:"
        f"{quoted(p['text'])}\n"
        f"[Go to the message]({p['link']})"
    )


@entry("project.needs_changed")
def needs_changed(p: Payload) -> str:
    return f"🔎 {by(p)} says who is needed now:{quoted(p['needs'] or 'Nobody else.')}"


@entry("project.followed")
def followed(p: Payload) -> str:
    return f"👀 {by(p)} follows the project."


@entry("project.left")
def left(p: Payload) -> str:
    return f"👋 {by(p)} {'no longer follows' if p.get('role') == 'follower' else 'leaves'} the project."


@entry("project.lead_offered")
def lead_offered(p: Payload) -> str:
    to = line(p["to"]["name"])
    return f"🔑 {by(p)} offers the lead to **{to}**, who answers with the buttons below.{why(p)}"


@entry("project.lead_accepted")
def lead_accepted(p: Payload) -> str:
    before = f" **{line(p['before']['name'])}** stays in the project; thank you!" if "before" in p else ""
    return f"🔑 {by(p)} now leads the project.{before}"


@entry("project.lead_appointed")
def lead_appointed(p: Payload) -> str:
    before, now = line(p["before"]["name"]), line(p["person"]["name"])
    return f"🔑 {by(p)} appoints **{now}** to lead the project in place of **{before}**.{why(p)}"


@entry("project.lead_declined")
def lead_declined(p: Payload) -> str:
    return f"🔑 {by(p)} ends the offer of the lead; the lead does not change."


@entry("project.released")
def released(p: Payload) -> str:
    return (
        f"🔓 {by(p)} releases the checkpoints that were held back; the models' licence is {line(p['licence'])}.{why(p)}"
    )


@entry("project.hidden")
def hidden(p: Payload) -> str:
    return f"🙈 {by(p)} hides the project from the lists.{why(p)}"


@entry("project.unhidden")
def unhidden(p: Payload) -> str:
    return f"👁️ {by(p)} shows the project in the lists again.{why(p)}"
