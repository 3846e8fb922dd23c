"""Pinned welcomes: for newcomers where projects begin and where people talk, and in each project's channel."""

from projects import updates
from sandbox.discord import permissions
from sandbox.people import Message
from tests.bot.conftest import Lab, has
from tests.patience import until


def of(messages: list[Message], words: str) -> list[bool]:
    """Whether each message with these words is pinned."""
    return [message.pinned for message in messages if words in message.text]


async def test_each_welcome_is_posted_and_pinned_once_and_kept_up_to_date(lab: Lab) -> None:
    pins = r"PUT /channels/\d+/messages/pins/"
    places = {"proposals": "this is where projects begin", "general": "Welcome to the lab"}
    await lab.start_bot()
    omar, grace = lab.person("Omar"), lab.person("Grace")

    # A crash between a post and its pin leaves one message, which the next process pins.
    await lab.guild.fault(pins, count=1000, status=500)
    done = await omar.command("stoa setup", admins="admin")
    assert "- newcomers: <#" in done.text
    await lab.guild.wait_for("proposals", has("this is where projects begin"))
    lab.kill_bot()
    await lab.guild.clear_faults()
    assert of(await lab.guild.messages("proposals"), places["proposals"]) == [False]
    await lab.start_bot()
    for place, words in places.items():
        card = await lab.guild.wait_for(place, lambda m, words=words: words in m.text and m.pinned)  # type: ignore[misc]
        assert card.button_labels == ["Propose a project", "What can I do here?"]
        assert (await grace.press(card, "Propose a project")).title == "Propose a project"
        assert "What you can do here" in (await grace.press(card, "What can I do here?")).text
    assert "nothing was changed" in (await omar.command("stoa setup")).text

    # A project's channel welcomes too, and follows the project.
    channel = await lab.activate()
    welcome = await lab.guild.wait_for(channel.id, lambda m: "Welcome to Do small models dream?" in m.text and m.pinned)
    assert "Does the loss of a small model follow" in welcome.text
    assert "**People** Ada (lead), Grace" in welcome.text
    assert "**How to help**\n> Somebody who can plot." in welcome.text
    assert "**Next** The lead asks for compute" in welcome.text
    assert welcome.button_labels == ["Join", "Follow", "Ask for compute"]
    assert "You are in" in (await omar.press(welcome, "Join")).text
    lab.call(updates.change_needs, lab.actor("Ada"), 1, "A statistician.")
    await lab.guild.wait_for(channel.id, has("Omar", "> A statistician.", message_id=welcome.id))
    await lab.approved(channel)
    last = await lab.guild.wait_for(channel.id, has("launches the first run", message_id=welcome.id))
    assert last.button_labels == ["Join", "Follow", "Launch a run"]

    # Where newcomers talk elsewhere, the welcome goes there; without the right to pin, it is posted all the same.
    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.PIN_MESSAGES)
    moved = await omar.command("stoa setup", general=channel.id)
    assert "The welcomes are pinned once the bot's role has Pin Messages" in moved.text
    there = await lab.guild.wait_for(channel.id, has("Welcome to the lab"))
    await lab.guild.wait_for("general", has(f"Newcomers are welcomed in <#{channel.id}> now."))
    await until(lab.logged("Discord does not let the bot pin a message"))
    assert not there.pinned
    for place, words in ((channel.id, "Welcome to Do small"), ("proposals", places["proposals"])):
        assert of(await lab.guild.messages(place), words) == [True]
    assert of(await lab.guild.messages(channel.id), "Welcome to the lab") == [False]
    assert "Traceback" not in lab.log
