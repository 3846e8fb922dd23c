"""How each kind of entry reads: a sentence a kind, and one table that takes a kind to its sentence."""

from collections.abc import Callable, Mapping
from typing import Any

from bot import text
from broker.allocations.ledger import in_hours
from projects import policies

Payload = Mapping[str, Any]

ROOM_FOR_TEXT = 900


def _by(payload: Payload) -> str:
    by = payload.get("by")
    return "The lab" if by is None else f"**{text.line(by['name'], 80)}**"


def quoted(said: str, label: str = "") -> str:
    if not said.strip():
        return ""
    return f"\n{label}\n{text.quote(said, ROOM_FOR_TEXT)}" if label else f"\n{text.quote(said, ROOM_FOR_TEXT)}"


def line(value: object) -> str:
    return text.line(str(value), 120)


def _run(payload: Payload) -> str:
    about = f"Run {payload['run']}"
    return f"The sample of {about.lower()}" if "sample" in payload else about


def _proposed(p: Payload) -> str:
    return (
        f"🌱 {_by(p)} proposes **{line(p['title'])}**."
        f"{quoted(p['question'], 'The question:')}{quoted(p['why'], 'Why it matters:')}"
        f"{quoted(p['needs'], 'Who is needed:')}\nAsk and discuss here; the Join button is on the card above."
    )


def _joined(p: Payload) -> str:
    return f"🤝 {_by(p)} joins the project. Welcome!"


def _scoped(p: Payload) -> str:
    return (
        f"📐 {_by(p)} has written the scope.{quoted(p['goal'], '**Goal**')}{quoted(p['plan'], '**Plan**')}"
        f"{quoted(p['compute'], '**Compute**')}{quoted(p['release'], '**To be released**')}{_models(p)}"
    )


def _models(p: Payload) -> str:
    if "licence" not in p:
        return ""
    held = p["release_policy"] == "held"
    how = "are held back until reviewers release them" if held else "are public as they come"
    return f"\nCheckpoints {how}; the models' licence is {line(p['licence'])}."


def _activated(p: Payload) -> str:
    return (
        f"🏛️ The project has a scope and {text.count(p['people'], 'person', 'people')}, so it is active. "
        "What happens in it is told here, for everyone to read."
    )


def _channel_opened(p: Payload) -> str:
    return f"🏛️ {_by(p)} has opened this channel. What happens in the project is told here, for everyone to read."


def _paused(p: Payload) -> str:
    return f"⏸️ {_by(p)} pauses the project.{quoted(p['why'])}"


def _resumed(p: Payload) -> str:
    return f"▶️ {_by(p)} lets the project go on."


def _stopped(p: Payload) -> str:
    return f"⏹️ {_by(p)} has stopped the project.{quoted(p['why'])}"


def _update(p: Payload) -> str:
    return f"📣 {_by(p)} reports:{quoted(p['text'])}"


def _finding(p: Payload) -> str:
    day = line(str(p["said_at"])[:10])
    return (
        f"📌 {_by(p)} puts on record what **{line(p['author']['name'])}** wrote on {day}:{quoted(p['text'])}\n"
        f"[Go to the message]({p['link']})"
    )


def _needs_changed(p: Payload) -> str:
    return f"🔎 {_by(p)} says who is needed now:{quoted(p['needs'] or 'Nobody more.')}"


def _followed(p: Payload) -> str:
    return f"👀 {_by(p)} follows the project."


def _left(p: Payload) -> str:
    return f"👋 {_by(p)} {'follows the project no longer' if p.get('role') == 'follower' else 'leaves the project'}."


def _lead_offered(p: Payload) -> str:
    to = line(p["to"]["name"])
    return f"🔑 {_by(p)} offers the lead to **{to}**, who answers by these buttons.{quoted(p['why'])}"


def _lead_accepted(p: Payload) -> str:
    before = f" **{line(p['before']['name'])}** stays in it; thank you!" if "before" in p else ""
    return f"🔑 {_by(p)} leads the project from now on.{before}"


def _lead_declined(p: Payload) -> str:
    return f"🔑 {_by(p)} ends the offer of the lead; it stays where it is."


def _released(p: Payload) -> str:
    return f"🔓 {_by(p)} releases what was held back; the models' licence is {line(p['licence'])}.{quoted(p['why'])}"


def _project_says(emoji: str, said: str) -> Callable[[Payload], str]:
    """A sentence about a project, with the reason where one was given."""

    def rendering(p: Payload) -> str:
        return f"{emoji} {said.format(by=_by(p))}{quoted(str(p.get('why', '')))}"

    return rendering


def _completed(p: Payload) -> str:
    return f"🏁 {_by(p)} has completed the project: **{line(p['outcome'])}**.{quoted(p['learnt'], 'What was learnt:')}"


def _requested(p: Payload) -> str:
    renews = f", in place of allocation {p['renews']}" if "renews" in p else ""
    return (
        f"🙋 {_by(p)} asks for {text.gpu_hours(p['seconds'])} of {text.code(p['pool'], 60)} until {line(p['until'])} "
        f"(allocation {p['allocation']}{renews}).{quoted(p['why'])}"
    )


def _approved(p: Payload) -> str:
    part = "" if p["seconds"] + p.get("second_half", 0) == p["asked"] else f" of the {in_hours(p['asked'])} asked for"
    half = ""
    if p.get("second_half"):
        half = f", and {text.gpu_hours(p['second_half'])} more on a report of progress by {p['half_until']}"
    first = f"; {line(p['endorsed_by'])} has endorsed it" if p.get("endorsed_by") else ""
    return (
        f"✅ {_by(p)} approves {text.gpu_hours(p['seconds'])}{part} on {text.code(p['pool'], 60)}, given by "
        f"{line(p['sponsor'])} (allocation {p['allocation']}){half}{first}.{quoted(p['why'])}"
    )


def _declined(p: Payload) -> str:
    return (
        f"🚫 {_by(p)} declines the {text.gpu_hours(p['asked'])} asked for on {text.code(p['pool'], 60)} "
        f"(allocation {p['allocation']}).{quoted(p['why'])}"
    )


def _endorsed(p: Payload) -> str:
    return (
        f"☑️ {_by(p)} endorses {text.gpu_hours(p['seconds'])} on {text.code(p['pool'], 60)} "
        f"(allocation {p['allocation']}); a grant of this size needs a second reviewer.{quoted(p['why'])}"
    )


def _allocation_says(emoji: str, said: str) -> Callable[[Payload], str]:
    """A sentence about an allocation that has one amount of GPU-seconds at most, put where it says {amount}."""

    def rendering(p: Payload) -> str:
        seconds = next((p[key] for key in ("returned", "seconds", "spent", "left", "asked") if key in p), 0)
        amount = text.gpu_hours(abs(seconds))
        about = said.format(by=_by(p), allocation=f"allocation {p['allocation']}", amount=amount)
        return f"{emoji} {about}{quoted(str(p.get('why', '')))}"

    return rendering


def _adjusted(p: Payload) -> str:
    more = "more" if p["seconds"] > 0 else "less"
    return (
        f"⚖️ An operator corrects allocation {p['allocation']}: {text.gpu_hours(abs(p['seconds']))} {more}."
        f"{quoted(p['why'])}"
    )


MORE = " Its lead can ask for more by `/allocation change`."


def _warning(p: Payload) -> str:
    if "percent" in p:
        return (
            f"⚠️ {p['percent']}% of allocation {p['allocation']} are spent; {text.gpu_hours(p['left'])} are left.{MORE}"
        )
    ends = f", on {line(p['ends'])}" if "ends" in p else ""
    return f"⏰ Allocation {p['allocation']} ends in {text.count(p.get('days', 0), 'day')} or less{ends}.{MORE}"


def _changed(p: Payload) -> str:
    ends = f", until {line(p['ends'])}" if "ends" in p else ""
    half = f" and {text.gpu_hours(p['second_half'])} more on a report" if p.get("second_half") else ""
    more = f": {text.gpu_hours(p['seconds'])} more{half}" if p["seconds"] else ""
    return f"✅ {_by(p)} approves the change of allocation {p['allocation']}{more}{ends}.{quoted(p['why'])}"


def _change_requested(p: Payload) -> str:
    wants = [f"{text.gpu_hours(p['seconds'])} more"] if p["seconds"] else []
    wants += [f"an end on {line(p['until'])}"] if p["until"] else []
    return f"🙋 {_by(p)} asks for {' and '.join(wants)} on allocation {p['allocation']}.{quoted(p['why'])}"


def _queued(p: Payload) -> str:
    if "sample" in p and "prompt" in p:
        return f"✍️ {_by(p)} lets the last checkpoint of run {p['run']} continue:{quoted(p['prompt'])}"
    if "sample" in p:
        return f"✍️ A short text will be sampled from the last checkpoint of run {p['run']}."
    if "prepares" in p:
        return (
            f"🗂️ {_by(p)} lets run {p['run']} prepare the data of {_prepared(p)}, for every later run of that recipe, "
            f"in at most {text.duration(p['time_limit'])}. It waits for its turn."
        )
    return f"🚀 {_by(p)} launches run {p['run']}: {_asked(p)}"


def _prepared(p: Payload) -> str:
    return text.code(p["prepares"], 60)


def _at_step(p: Payload) -> str:
    """Where a run stands; a preparation has no steps."""
    return "" if "prepares" in p else f" at step {p['step']:,}"


def _forked(p: Payload) -> str:
    return f"🔱 {_by(p)} forks run {p['run']} from step {p['from_step']:,} of run {p['parent']}: {_asked(p)}"


def _asked(p: Payload) -> str:
    changed = ", ".join(f"{name}={value}" for name, value in p["overrides"].items())
    return (
        f"recipe {text.code(p['recipe'], 60)}{f' with {line(changed)}' if changed else ''} on "
        f"{text.count(p['gpus'], 'GPU')}, at most {text.duration(p['time_limit'])}. It waits for its turn."
    )


def _starting(p: Payload) -> str:
    return f"🛫 {_run(p)} has got its place, with {text.gpu_hours(p['reserved'])} set aside for it."


def _started(p: Payload) -> str:
    again = f" again (attempt {p['attempt']})" if p["attempt"] > 1 else ""
    return f"▶️ {_run(p)} is running{again}."


def _requeued(p: Payload) -> str:
    on = "begin anew" if "prepares" in p else "go on from its last checkpoint"
    return f"🔁 {_run(p)} was interrupted and will {on}.{quoted(p['why'])}"


def _stopping(p: Payload) -> str:
    what = "pause" if p.get("stops_as") == "paused" else "stop"
    first = "" if "prepares" in p else "; it writes a checkpoint first"
    return f"✋ {_by(p)} asks {_run(p).lower()} to {what}{first}.{quoted(p['why'])}"


def _run_paused(p: Payload) -> str:
    return f"⏸️ {_run(p)} is paused{_at_step(p)}, after {_spent(p)}.{quoted(p['why'])}"


def _run_resumed(p: Payload) -> str:
    start = "begin anew" if "prepares" in p else f"go on from step {p['step']:,}"
    return (
        f"⏯️ {_by(p)} lets {_run(p).lower()} {start}, on {text.count(p['gpus'], 'GPU')} for at "
        f"most {text.duration(p['time_limit'])}. It waits for its turn.{quoted(p['why'])}"
    )


def _extended(p: Payload) -> str:
    return f"⏳ {_by(p)} gives {_run(p).lower()} {text.duration(p['seconds'])} more."


def _refunded(p: Payload) -> str:
    return (
        f"↩️ {_run(p)} gets {text.gpu_hours(p['seconds'])} back, all since its last whole checkpoint: a fault of the "
        f"machines ended attempt {p['attempt']}.{quoted(p['why'])}"
    )


def _checkpoint(p: Payload) -> str:
    which = "The first checkpoint" if p.get("first") else "The last checkpoint" if p.get("final") else "A checkpoint"
    held = ", held back until reviewers release it" if p.get("held") else ""
    return f"📦 {which} of run {p['run']} is on the Hub{held}: [step {p['step']}]({p['url']})"


def _delayed(p: Payload) -> str:
    return (
        f"⏳ The checkpoint of step {p['step']:,} of run {p['run']} is not on the Hub yet, after "
        f"{text.count(p['tries'], 'try', 'tries')}. It is kept here and tried again; the run goes on."
    )


def _lost(p: Payload) -> str:
    return (
        f"💔 The checkpoint of step {p['step']:,} of run {p['run']} cannot be read, after "
        f"{text.count(p['tries'], 'try', 'tries')}, and is not published; those after it are."
    )


def _opened(p: Payload) -> str:
    return f"🔓 The checkpoints of run {p['run']} are open to everyone: [{p['count']} on the Hub]({p['url']})"


def _withheld(p: Payload) -> str:
    return f"🔒 The checkpoints of run {p['run']} are held back until reviewers release them."


def _finished(p: Payload) -> str:
    if "sample" in p and "prompt" in p:
        asked = f"✍️ The last checkpoint of run {p['run']} was given:{quoted(p['prompt'])}"
        return f"{asked}{quoted(p['text'], 'It goes on:')}"
    if "sample" in p:
        return f"✍️ What the last checkpoint of run {p['run']} writes:{quoted(p['text'])}"
    if "prepares" in p:
        return f"🏁 The data of {_prepared(p)} are prepared (run {p['run']}), for {_spent(p)}."
    return f"🏁 {_run(p)} is finished{_at_step(p)}, for {_spent(p)}."


def _failed(p: Payload) -> str:
    return f"❌ {_run(p)} has failed, after {_spent(p)}.{quoted(p['why'])}"


def _timed_out(p: Payload) -> str:
    return f"⏱️ {_run(p)} reached its time limit{_at_step(p)}, for {_spent(p)}."


def _cancelled(p: Payload) -> str:
    return f"✋ {_run(p)} is cancelled, for {_spent(p)}.{quoted(p['why'])}"


def _spent(p: Payload) -> str:
    return text.gpu_hours(p["spent"])


def _channel_deleted(p: Payload) -> str:
    return (
        f"🚫 The channel of **P{p['project']} · {line(p['title'])}** was deleted. Nothing more is posted there; "
        "the project's record goes on."
    )


def _pool(p: Payload) -> str:
    return f"🖥️ A new pool: {text.code(p['pool'], 60)} with {p['gpus']} × {line(p['gpu_type'])}."


def _grant(p: Payload) -> str:
    return (
        f"🎁 {line(p['sponsor'])} gives {text.gpu_hours(p['seconds'])} of {text.code(p['pool'], 60)} "
        f"to the community, until {line(str(p['until'])[:10])}. Thank you!"
    )


def _pool_changed(p: Payload) -> str:
    return (
        f"🖥️ {_by(p)} changes the pool {text.code(p['pool'], 60)}: it has {text.count(p['gpus'], 'GPU')} and a price "
        f"weight of {p['price_weight']:g}.{quoted(p['why'])}"
    )


def _grant_changed(p: Payload) -> str:
    more = f"{text.gpu_hours(p['seconds'])} more, " if p["seconds"] else ""
    return (
        f"🎁 {_by(p)} changes grant {p['grant']} of {line(p['sponsor'])} on {text.code(p['pool'], 60)}: {more}until "
        f"{line(str(p['until'])[:10])}.{quoted(p['why'])}"
    )


def _catalogue(done: str) -> Callable[[Payload], str]:
    def rendering(p: Payload) -> str:
        what = f"the {line(p['what'])} {text.code(p['name'], 60)}"
        place = ""
        if p.get("dataset"):
            place = f": {text.code(p['dataset'], 200)} at {text.code(p['revision'], 40)}, {line(p['licence'])}"
        body = quoted(p["body"], "It reads:") if done == "proposes" and p.get("body") else ""
        return f"📚 {_by(p)} {done} {what}{place}.{quoted(p['why'])}{body}"

    return rendering


def _preparing(p: Payload) -> str:
    return f"🗂️ Run {p['run']} prepares the data of {text.code(p['recipe'], 60)}, for every later run of that recipe."


def _disk_low(p: Payload) -> str:
    return (
        f"💽 The disk is nearly full: {p['free_gib']:g} GiB are free and {p['floor_gib']:g} must be. Runs write a "
        "checkpoint and pause, and none starts, until there is room."
    )


def _disk_enough(p: Payload) -> str:
    return f"💽 There is room on the disk again, {p['free_gib']:g} GiB: runs go on."


def _redacted(p: Payload) -> str:
    if field := p.get("field"):
        return f"🪦 The project's {line(field)} was removed, here and from its card.{quoted(p['why'])}"
    which = ", ".join(map(str, p["numbers"][:20])) + (" …" if len(p["numbers"]) > 20 else "")
    entries = "Entry" if len(p["numbers"]) == 1 else "Entries"
    return f"🪦 {entries} {which} of this record {'was' if entries == 'Entry' else 'were'} blanked.{quoted(p['why'])}"


PLACES = {
    "proposals": "proposals are in <#{id}>",
    "review": "requests are reviewed in <#{id}>",
    "announcements": "what comes of projects is announced in <#{id}>",
    "record": "the lab's own record is told in <#{id}>",
    "reviewer_role": "reviewers have the role {name}",
    "moderator_role": "moderators have the role {name}",
    "admin_role": "admins have the role {name}",
    "lab_category": "the lab's channels are under {name}",
    "projects_category": "the projects' channels are under {name}",
}


def _set_up(p: Payload) -> str:
    told = [
        f"> {PLACES[place].format(id=target['id'], name=text.code(target['name'], 100))}"
        for place, target in p["places"].items()
    ]
    return "\n".join([f"🧭 {_by(p)} sets this server up:", *told])


def _banned(p: Payload) -> str:
    return f"⛔ {text.line(p['person']['name'], 80)} is banned: they can read, and do nothing else.{quoted(p['why'])}"


def _unbanned(p: Payload) -> str:
    return f"🕊️ {text.line(p['person']['name'], 80)} can take part again.{quoted(p['why'])}"


def _policy(p: Payload) -> str:
    was, now = policies.said_as(p["was"]), policies.said_as(p["now"])
    change = f"{text.code(p['policy'], 60)} is {line(now)}, was {line(was)}"
    return f"⚖️ {_by(p)} changes a policy: {change}.{quoted(p['why'])}"


def generic(kind: str) -> Callable[[Payload], str]:
    def rendering(p: Payload) -> str:
        return f"{_by(p)}: {line(kind.replace('.', ' '))}.{quoted(str(p.get('why', '')))}"

    return rendering


RENDERINGS: Mapping[str, Callable[[Payload], str]] = {
    "project.proposed": _proposed,
    "project.joined": _joined,
    "project.scoped": _scoped,
    "project.activated": _activated,
    "project.channel_opened": _channel_opened,
    "project.paused": _paused,
    "project.resumed": _resumed,
    "project.stopped": _stopped,
    "project.update": _update,
    "project.finding": _finding,
    "project.needs_changed": _needs_changed,
    "project.followed": _followed,
    "project.left": _left,
    "project.lead_offered": _lead_offered,
    "project.lead_accepted": _lead_accepted,
    "project.lead_declined": _lead_declined,
    "project.released": _released,
    "project.hidden": _project_says("🙈", "{by} takes the project out of the lists."),
    "project.unhidden": _project_says("👁️", "{by} shows the project in the lists again."),
    "project.completed": _completed,
    "allocation.requested": _requested,
    "allocation.approved": _approved,
    "allocation.declined": _declined,
    "allocation.endorsed": _endorsed,
    "allocation.withdrawn": _allocation_says("↩️", "{by} withdraws the request for {amount} ({allocation})."),
    "allocation.asked": _allocation_says("❓", "{by} asks about the request ({allocation}):"),
    "allocation.answered": _allocation_says("💬", "{by} answers about the request ({allocation}):"),
    "allocation.reported": _allocation_says("📝", "{by} reports on {allocation}:"),
    "allocation.half_released": _allocation_says("✅", "{by} releases the second half of {allocation}: {amount}."),
    "allocation.half_returned": _allocation_says(
        "⌛", "The second half of {allocation}, {amount}, returns to its sponsor's grant: nobody released it in time."
    ),
    "allocation.revoked": _allocation_says("🚫", "{by} revokes {allocation}; {amount} return to the sponsor's grant."),
    "allocation.expired": _allocation_says(
        "⌛", "The time of {allocation} is over; {amount} return to the sponsor's grant."
    ),
    "allocation.ended": _allocation_says("🏁", "There is no more use for {allocation}; {amount} return to its grant."),
    "allocation.exhausted": _allocation_says("🪫", "All of {allocation} is spent." + MORE),
    "allocation.reopened": _allocation_says("🔋", "There are {amount} left on {allocation} again."),
    "allocation.returned": _allocation_says("↩️", "{amount} of {allocation}, which has ended, return to its grant."),
    "allocation.renewed": _allocation_says(
        "♻️", "Another allocation succeeds {allocation} and pays for its runs; {amount} return to its grant."
    ),
    "allocation.adjusted": _adjusted,
    "allocation.warning": _warning,
    "allocation.change_requested": _change_requested,
    "allocation.change_endorsed": _allocation_says(
        "☑️", "{by} endorses the change of {allocation}, {amount} more; a change of this size needs a second reviewer."
    ),
    "allocation.change_declined": _allocation_says("🚫", "{by} declines the change of {allocation}."),
    "allocation.change_withdrawn": _allocation_says("↩️", "{by} withdraws the request to change {allocation}."),
    "allocation.changed": _changed,
    "run.queued": _queued,
    "run.starting": _starting,
    "run.started": _started,
    "run.requeued": _requeued,
    "run.stopping": _stopping,
    "run.forked": _forked,
    "run.paused": _run_paused,
    "run.resumed": _run_resumed,
    "run.extended": _extended,
    "run.refunded": _refunded,
    "run.finished": _finished,
    "run.failed": _failed,
    "run.timed_out": _timed_out,
    "run.cancelled": _cancelled,
    "checkpoint.published": _checkpoint,
    "checkpoint.delayed": _delayed,
    "checkpoint.lost": _lost,
    "checkpoints.released": _opened,
    "checkpoints.withheld": _withheld,
    "run.preparing": _preparing,
    "catalogue.proposed": _catalogue("proposes"),
    "catalogue.accepted": _catalogue("accepts"),
    "catalogue.declined": _catalogue("declines"),
    "catalogue.retired": _catalogue("retires"),
    "disk.low": _disk_low,
    "disk.enough": _disk_enough,
    "channel.deleted": _channel_deleted,
    "pool.added": _pool,
    "grant.added": _grant,
    "pool.changed": _pool_changed,
    "grant.changed": _grant_changed,
    "server.set_up": _set_up,
    "person.banned": _banned,
    "person.unbanned": _unbanned,
    "record.redacted": _redacted,
    "record.forgotten": _redacted,
    "policy.changed": _policy,
}
