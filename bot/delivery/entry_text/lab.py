"""Entries about the lab: pools, grants, shares, catalogue, policies, people, the server, the disk and the record."""

from bot import text
from bot.delivery.entry_text.phrases import by, line, quoted, unit, why
from bot.delivery.entry_text.registry import Payload, Text, entry
from broker.allocations.units import Unit
from projects import policies


@entry("pool.added")
def pool_added(p: Payload) -> str:
    has = f"{line(Unit.of_type(p['gpu_type'], p['gpus']))}{_nodes(p)}{_memory(p)}{_preemption(p)}"
    return f"🖥️ A new pool: {text.code(p['pool'], 60)} with {has}."


@entry("pool.changed")
def pool_changed(p: Payload) -> str:
    return (
        f"🖥️ {by(p)} changes the pool {text.code(p['pool'], 60)}: it has {unit(p).count(p['gpus'])}{_nodes(p)} and "
        f"a price weight of {p['price_weight']:g}{_memory(p)}{_preemption(p)}.{why(p)}"
    )


def _nodes(p: Payload) -> str:
    return text.nodes(p["gpus"] // p.get("gpus_a_node", p["gpus"]), p["gpus"])


def _preemption(p: Payload) -> str:
    return f"; {text.preemption(p['preempt_after'])}" if "preempt_after" in p else ""


def _memory(p: Payload) -> str:
    return text.memory(p.get("memory_gib"), p.get("host_memory_gib"), unit(p))


@entry("grant.added")
def grant_added(p: Payload) -> str:
    return (
        f"🎁 {line(p['sponsor'])} gives {unit(p).hours(p['seconds'])} on {text.code(p['pool'], 60)} "
        f"to the community, until {text.day(p['until'])}. Thank you!"
    )


@entry("grant.changed")
def grant_changed(p: Payload) -> str:
    more = f"{unit(p).hours(p['seconds'])} more, " if p["seconds"] else ""
    return (
        f"🎁 {by(p)} changes grant {p['grant']} of {line(p['sponsor'])} on {text.code(p['pool'], 60)}: {more}until "
        f"{text.day(p['until'])}.{why(p)}"
    )


def catalogue(verb: str) -> Text:
    """A text about an entry of the catalogue, which is a recipe, a dataset, a program or pairs."""

    def worded(p: Payload) -> str:
        what = f"the {line(p['what'])} {text.code(p['name'], 60)}"
        source = ""
        if p.get("dataset"):
            source = f": {text.code(p['dataset'], 200)} at {text.code(p['revision'], 40)}, {line(p['licence'])}"
        body = quoted(p["body"], "It reads:") if verb == "proposes" and p.get("body") else ""
        return f"📚 {by(p)} {verb} {what}{source}.{why(p)}{body}"

    return worded


for kind, verb in (("proposed", "proposes"), ("accepted", "accepts"), ("declined", "declines"), ("retired", "retires")):
    entry(f"catalogue.{kind}")(catalogue(verb))


@entry("catalogue.tried")
def catalogue_tried(p: Payload) -> str:
    return (
        f"🧪 {by(p)} has tried the program {text.code(p['name'], 60)}: it ended well after "
        f"{text.duration(p['seconds'])}. An admin may accept it."
    )


@entry("host.removed")
def host_removed(p: Payload) -> str:
    return f"🖥️ The host {text.code(p['host'], 60)} is gone: other hosts serve its pools.{why(p)}"


@entry("host.drained")
def host_drained(p: Payload) -> str:
    runs = "its runs write a checkpoint and go back to the queue" if p["pauses"] else "its runs go on to their end"
    return f"🖥️ The host {text.code(p['host'], 60)} is drained and starts no run; {runs}.{why(p)}"


@entry("host.undrained")
def host_undrained(p: Payload) -> str:
    return f"🖥️ The host {text.code(p['host'], 60)} starts runs again.{why(p)}"


@entry("machine.admitted")
def machine_admitted(p: Payload) -> str:
    return (
        f"🖥️ The machine {text.code(p['machine'], 60)} is lent to the lab: it takes runs of {text.code(p['pool'], 60)}."
    )


@entry("machine.revoked")
def machine_revoked(p: Payload) -> str:
    return f"🖥️ The machine {text.code(p['machine'], 60)} takes no more runs.{why(p)}"


@entry("corpus.added")
def corpus_added(p: Payload) -> str:
    of = text.contents(p.get("documents"), p.get("tokens"), p["bytes"])
    licence = f", {line(p['licence'])}" if p.get("licence") else ""
    return f"📚 New on {text.code(p['pool'], 60)}: {text.code(p['name'], 64)} ({line(p['what'])}, {of}{licence})."


@entry("corpus.stored")
def corpus_stored(p: Payload) -> str:
    return f"📚 {text.code(p['name'], 64)} of {text.code(p['pool'], 60)} is in the store: pools that lack it copy it."


@entry("corpus.retired")
def corpus_retired(p: Payload) -> str:
    return f"📚 {text.code(p['name'], 64)} on {text.code(p['pool'], 60)} is retired.{why(p)}"


@entry("share.set_aside")
def set_aside(p: Payload) -> str:
    if not p["share"]:
        return f"⚖️ {by(p)}: nothing of what {line(p['sponsor'])} gives is set aside any more.{why(p)}"
    own = ", ".join(f"P{number}" for number in p["projects"][:20]) + (" …" if len(p["projects"]) > 20 else "")
    return (
        f"⚖️ {by(p)} sets {p['share']:.4g} of what {line(p['sponsor'])} gives aside for the sponsor's own projects, "
        f"{own}: there they go first until they have used that part.{why(p)}"
    )


@entry("policy.changed")
def policy_changed(p: Payload) -> str:
    was, now = policies.said_as(p["was"]), policies.said_as(p["now"])
    change = f"{text.code(p['policy'], 60)} is {line(now)}, was {line(was)}"
    return f"⚖️ {by(p)} changes a policy: {change}.{why(p)}"


@entry("person.banned")
def banned(p: Payload) -> str:
    leads = ", ".join(f"P{number}" for number in p.get("leads", ())[:20])
    another = f" An admin can appoint another lead of {leads} with `/project appoint`." if leads else ""
    return f"⛔ {text.line(p['person']['name'], 80)} is banned: they can read, and do nothing else.{another}{why(p)}"


@entry("person.unbanned")
def unbanned(p: Payload) -> str:
    return f"🕊️ {text.line(p['person']['name'], 80)} can take part again.{why(p)}"


PURPOSES = {
    "proposals": "proposals are in <#{id}>",
    "review": "requests are reviewed in <#{id}>",
    "announcements": "results of projects are announced in <#{id}>",
    "record": "the lab's own record is posted in <#{id}>",
    "general": "newcomers are welcomed in <#{id}>",
    "reviewer_role": "reviewers have the role {name}",
    "moderator_role": "moderators have the role {name}",
    "admin_role": "admins have the role {name}",
    "lab_category": "the lab's channels are under {name}",
    "projects_category": "the projects' channels are under {name}",
}


@entry("server.set_up")
def server_set_up(p: Payload) -> str:
    chosen = [
        f"> {PURPOSES[purpose].format(id=target['id'], name=text.code(target['name'], 100))}"
        for purpose, target in p["places"].items()
    ]
    return "\n".join([f"🧭 {by(p)} sets this server up:", *chosen])


@entry("channel.deleted")
def channel_deleted(p: Payload) -> str:
    return (
        f"🚫 The channel of **P{p['project']} · {line(p['title'])}** was deleted. Nothing more is posted there; "
        "the project's record goes on."
    )


@entry("disk.low")
def disk_low(p: Payload) -> str:
    return (
        f"💽 The disk is nearly full: {p['free_gib']:g} GiB is free, {p['floor_gib']:g} GiB is required. Runs write a "
        "checkpoint and pause, and no run starts, until there is space."
    )


@entry("disk.enough")
def disk_enough(p: Payload) -> str:
    return f"💽 The disk has space again, {p['free_gib']:g} GiB: runs go on."


@entry("part.failed")
def part_failed(p: Payload) -> str:
    return (
        f"🛠️ An admin is needed; this failed: {line(p['part'])} ({line(p['error'])}). Everything else goes on. "
        "The log and `stoa doctor` say more."
    )


def redacted(p: Payload) -> str:
    if field := p.get("field"):
        return f"🪦 The project's {line(field)} was removed, here and from its card.{why(p)}"
    numbers = ", ".join(map(str, p["numbers"][:20])) + (" …" if len(p["numbers"]) > 20 else "")
    entries, were = ("Entry", "was") if len(p["numbers"]) == 1 else ("Entries", "were")
    return f"🪦 {entries} {numbers} of this record {were} blanked.{why(p)}"


entry("record.redacted")(redacted)
entry("record.forgotten")(redacted)
