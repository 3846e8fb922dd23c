"""The buttons of a project's card, and of the posts of who joins it and of the offer of its lead."""

from collections.abc import Awaitable, Callable, Mapping

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.buttons import Handler
from bot.commands.project.forms import ProposeForm, ScopeForm
from bot.delivery import follower_roles
from projects import lifecycle, membership, projects

HELPS = "**Next** Say hello in its channel or thread; `/stoa help` there shows what you can do."

Answering = Callable[[Interaction, int], Awaitable[str]]


async def joined(interaction: Interaction, project_id: int) -> str:
    """Make the user a newcomer or a contributor, and return the answer."""
    app = interaction.client
    await app.write(lifecycle.join, actor(interaction), project_id, min_people=app.settings.min_people)
    project = await app.read(projects.view, project_id)
    welcome = f"Welcome! You are in **{text.line(project.title, 160)}**"
    if any(member.newcomer and member.discord_id == str(interaction.user.id) for member in project.members):
        welcome += f" as a newcomer until its lead, {text.line(project.lead.name, 60)}, confirms you"
    return f"{welcome}.\n{HELPS}"


async def followed(interaction: Interaction, project_id: int) -> str:
    """Make the user a follower, and return the answer."""
    await interaction.client.write(membership.follow, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    title = text.line(project.title, 160)
    said = f"You follow **{title}** now; /project leave ends that, /project join lets you contribute."
    return " ".join(filter(None, [said, await follower_roles.remark(interaction.client, project_id)]))


async def confirmed(interaction: Interaction, entry_id: int) -> str:
    """Confirm the newcomer who joined by an entry of the record, and return the answer."""
    name = await interaction.client.write(membership.confirm_joining, actor(interaction), entry_id)
    return now_contributes(name)


def now_contributes(name: str) -> str:
    """The answer to whoever confirms a newcomer."""
    return f"{text.line(name, 60)} is now a contributor."


async def accepted(interaction: Interaction, project_id: int) -> str:
    """Make the user, who is offered the lead, the lead, and return the answer."""
    await interaction.client.write(membership.accept_lead, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    return f"You now lead **{text.line(project.title, 160)}**. Thank you!"


async def declined(interaction: Interaction, project_id: int) -> str:
    """End the offer of the lead, and return the answer."""
    await interaction.client.write(membership.decline_lead, actor(interaction), project_id)
    return "The offer has ended; the lead does not change."


async def propose(interaction: Interaction, _: int) -> None:
    """Open the form of a proposal."""
    await interaction.response.send_modal(ProposeForm())


async def scope(interaction: Interaction, project_id: int) -> None:
    """Open the form of the scope, for checkpoints that are public at once and the usual licence."""
    await interaction.client.read(lifecycle.check_may_scope, actor(interaction), project_id)
    await interaction.response.send_modal(ScopeForm(project_id, projects.ReleasePolicy.OPEN, projects.LICENCES[0]))


def press(act: Answering) -> Handler:
    """A handler that acknowledges the press, acts, and answers."""

    async def pressed(interaction: Interaction, number: int) -> None:
        await acknowledge(interaction)
        await errors.reply(interaction, await act(interaction, number))

    return pressed


HANDLERS: Mapping[str, Handler] = {
    "propose": propose,
    "scope": scope,
    "join": press(joined),
    "follow": press(followed),
    "confirm": press(confirmed),
    "accept_lead": press(accepted),
    "decline_lead": press(declined),
}
