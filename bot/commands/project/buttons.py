"""The buttons of a project's card, and of the posts of who joins it and of the offer of its lead."""

from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy.orm import Session

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.buttons import Handler
from bot.cards import next_step
from bot.commands import ending_text
from bot.commands.last_question import LastQuestion, Told
from bot.commands.project.forms import CompleteForm, ProposeForm, ScopeForm
from bot.commands.reason_form import ReasonForm
from bot.delivery import card_updates, follower_roles
from broker.reports import endings
from projects import lifecycle, membership, projects, updates
from projects.people import Actor
from projects.rights import Act

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
    await interaction.client.write(follower_roles.give_again, interaction.user.id)
    await interaction.client.write(membership.follow, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    title = text.line(project.title, 160)
    said = f"You now follow **{title}**; /project leave ends that, /project join lets you contribute."
    return " ".join(filter(None, [said, await follower_roles.remark(interaction.client, project_id)]))


async def confirmed(interaction: Interaction, entry_id: int) -> str:
    """Confirm the newcomer who joined by an entry of the record, and return the answer."""
    project_id, name = await interaction.client.write(membership.confirm_joining, actor(interaction), entry_id)
    return await now_contributes(interaction, project_id, name)


async def now_contributes(interaction: Interaction, project_id: int, name: str) -> str:
    """The answer to whoever confirms a newcomer."""
    return f"{text.line(name, 60)} is now a contributor.\n{await comes(interaction, project_id)}"


async def comes(interaction: Interaction, project_id: int) -> str:
    """The line that says what comes next for the project."""
    app = interaction.client
    view, requests, newest, _ = await app.read(card_updates.card_contents, project_id)
    return next_step.of_project(view, requests, newest, min_people=app.settings.min_people)


async def accepted(interaction: Interaction, project_id: int) -> str:
    """Make the user, who is offered the lead, the lead, and return the answer."""
    await interaction.client.write(membership.accept_lead, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    return f"You now lead **{text.line(project.title, 160)}**. Thank you!\n{HELPS}"


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


async def _complete(interaction: Interaction, project_id: int) -> None:
    await interaction.response.send_modal(CompleteForm(project_id))


async def _stop(interaction: Interaction, project_id: int) -> None:
    done = "The project is stopped; its record stays."
    await interaction.response.send_modal(ReasonForm("Stop the project for good", lifecycle.stop, project_id, done))


async def _release(interaction: Interaction, project_id: int) -> None:
    done = "Released: the checkpoints become public, those to come as they are written."
    await interaction.response.send_modal(ReasonForm("Release the checkpoints", updates.release, project_id, done))


def _told_of_complete(session: Session, who: Actor, project_id: int) -> Told:
    return _ends(session, who, project_id, Act.COMPLETE, projects.Stage.COMPLETED)


def _told_of_stop(session: Session, who: Actor, project_id: int) -> Told:
    return _ends(session, who, project_id, Act.STOP, projects.Stage.STOPPED)


def _ends(session: Session, who: Actor, project_id: int, act: Act, to: projects.Stage) -> Told:
    ending = endings.of_project(session, who, project_id, act, to)
    said = ending_text.of_project(projects.load(session, project_id).title, ending)
    return Told(said, ending_text.about(ending))


def _told_of_release(session: Session, who: Actor, project_id: int) -> Told:
    updates.check_may_release(session, who, project_id)
    project = projects.load(session, project_id)
    said = (
        f"All checkpoints that **{text.line(project.title, 160)}** holds back become public under {project.licence}, "
        "and those to come as they are written. Anybody can load them and keep them."
    )
    return Told(said, said)


COMPLETE = LastQuestion("complete_project", "Complete the project", _told_of_complete, _complete)
STOP = LastQuestion("stop_project", "Stop the project", _told_of_stop, _stop)
RELEASE = LastQuestion("release_project", "Release the checkpoints", _told_of_release, _release)


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
