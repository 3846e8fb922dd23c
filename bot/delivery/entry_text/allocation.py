"""Entries about compute for a project: `allocation.…`."""

from bot import text
from bot.delivery.entry_text.phrases import by, line, unit, why
from bot.delivery.entry_text.registry import Payload, Text, entry
from broker.allocations.units import in_hours

MORE = " The project's lead can ask for more with `/allocation change`."


@entry("allocation.requested")
def requested(p: Payload) -> str:
    renews = f", in place of allocation {p['renews']}" if "renews" in p else ""
    return (
        f"🙋 {by(p)} asks for {unit(p).hours(p['seconds'])} on {text.code(p['pool'], 60)} until "
        f"{text.day(p['until'])} (allocation {p['allocation']}{renews}).{why(p)}"
    )


@entry("allocation.approved")
def approved(p: Payload) -> str:
    part = "" if p["seconds"] + p.get("second_half", 0) == p["asked"] else f" of the {in_hours(p['asked'])} asked for"
    half = ""
    if p.get("second_half"):
        half = f", and {unit(p).hours(p['second_half'])} more on a report of progress by {text.day(p['half_until'])}"
    first = f"; {line(p['endorsed_by'])} has endorsed it" if p.get("endorsed_by") else ""
    return (
        f"✅ {by(p)} approves {unit(p).hours(p['seconds'])}{part} on {text.code(p['pool'], 60)}, sponsored by "
        f"{line(p['sponsor'])} (allocation {p['allocation']}){half}{first}.{why(p)}"
        "\n**Next** Launch a run with the button below or `/run launch`."
    )


@entry("allocation.declined")
def declined(p: Payload) -> str:
    return (
        f"🚫 {by(p)} declines the {unit(p).hours(p['asked'])} asked for on {text.code(p['pool'], 60)} "
        f"(allocation {p['allocation']}).{why(p)}"
    )


@entry("allocation.endorsed")
def endorsed(p: Payload) -> str:
    return (
        f"☑️ {by(p)} endorses {unit(p).hours(p['seconds'])} on {text.code(p['pool'], 60)} "
        f"(allocation {p['allocation']}); a grant of this size needs a second reviewer.{why(p)}"
    )


@entry("allocation.adjusted")
def adjusted(p: Payload) -> str:
    more = "more" if p["seconds"] > 0 else "less"
    return f"⚖️ An operator corrects allocation {p['allocation']}: {unit(p).hours(abs(p['seconds']))} {more}.{why(p)}"


@entry("allocation.warning")
def warning(p: Payload) -> str:
    if "percent" in p:
        left = unit(p).hours(p["left"])
        return f"⚠️ Allocation {p['allocation']} is {p['percent']}% spent, with {left} left.{MORE}"
    ends = f", on {text.day(p['ends'])}" if "ends" in p else ""
    return f"⏰ Allocation {p['allocation']} ends in {text.count(p.get('days', 0), 'day')} or less{ends}.{MORE}"


@entry("allocation.changed")
def changed(p: Payload) -> str:
    ends = f", until {text.day(p['ends'])}" if "ends" in p else ""
    half = f" and {unit(p).hours(p['second_half'])} more on a report" if p.get("second_half") else ""
    more = f": {unit(p).hours(p['seconds'])} more{half}" if p["seconds"] else ""
    return f"✅ {by(p)} approves the change of allocation {p['allocation']}{more}{ends}.{why(p)}"


@entry("allocation.change_requested")
def change_requested(p: Payload) -> str:
    wants = [f"{unit(p).hours(p['seconds'])} more"] if p["seconds"] else []
    wants += [f"an end on {text.day(p['until'])}"] if p["until"] else []
    return f"🙋 {by(p)} asks for {' and '.join(wants)} on allocation {p['allocation']}.{why(p)}"


def sentence(emoji: str, template: str) -> Text:
    """A text that fills in {by}, {allocation} and {amount}, the hours of an entry which has one amount at most."""

    def worded(p: Payload) -> str:
        seconds = next((p[key] for key in ("returned", "seconds", "spent", "left", "asked") if key in p), 0)
        amount = unit(p).hours(abs(seconds))
        said = template.format(by=by(p), allocation=f"allocation {p['allocation']}", amount=amount)
        return f"{emoji} {said[0].upper()}{said[1:]}{why(p)}"

    return worded


for kind, emoji, template in (
    ("withdrawn", "↩️", "{by} withdraws the request for {amount} ({allocation})."),
    ("asked", "❓", "{by} asks about the request ({allocation}):"),
    ("answered", "💬", "{by} answers about the request ({allocation}):"),
    ("reported", "📝", "{by} reports on {allocation}:"),
    ("half_released", "✅", "{by} releases the second half of {allocation}: {amount}."),
    (
        "half_returned",
        "⌛",
        "The second half of {allocation}, {amount}, returns to its sponsor's grant: nobody released it in time.",
    ),
    ("revoked", "🚫", "{by} revokes {allocation}, which returns {amount} to its sponsor's grant."),
    ("expired", "⌛", "{allocation} has expired and returns {amount} to its sponsor's grant."),
    ("ended", "🏁", "{allocation} is no longer needed and returns {amount} to its sponsor's grant."),
    ("exhausted", "🪫", f"{{allocation}} is fully spent.{MORE}"),
    ("reopened", "🔋", "{allocation} has {amount} left again."),
    ("returned", "↩️", "{allocation}, which has ended, returns {amount} to its sponsor's grant."),
    (
        "renewed",
        "♻️",
        "{allocation} is renewed: it returns {amount} to its sponsor's grant, and its runs draw on the new allocation.",
    ),
    (
        "change_endorsed",
        "☑️",
        "{by} endorses the change of {allocation}, {amount} more; a change of this size needs a second reviewer.",
    ),
    ("change_declined", "🚫", "{by} declines the change of {allocation}."),
    ("change_withdrawn", "↩️", "{by} withdraws the request to change {allocation}."),
):
    entry(f"allocation.{kind}")(sentence(emoji, template))
