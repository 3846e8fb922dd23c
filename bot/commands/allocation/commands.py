"""`/allocation …`: request, change, withdraw, report, show and list."""

from collections.abc import Sequence

from discord import app_commands

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.buttons import Button
from bot.cards.review_card import changed
from bot.commands import autocomplete, context
from bot.commands.allocation.forms import ChangeForm, RequestForm
from bot.commands.reason_form import ReasonForm, ReportForm
from bot.delivery import review_card_updates
from broker.allocations import allocations, pools, requests
from broker.allocations.allocations import AllocationState, AllocationView
from broker.allocations.change_requests import ChangeState
from broker.reviews import changes
from broker.reviews.changes import ChangeView
from projects.errors import NotFoundError
from projects.people import LabRole

WITHDRAWN = "The request is withdrawn; /allocation request asks again."
CHANGE_WITHDRAWN = "The request for a change is withdrawn; /allocation change asks again."

allocation = app_commands.Group(name="allocation", description="Compute for projects: GPUs, or cores of CPUs")


@allocation.command(name="request", description="Ask for compute for your project")
@app_commands.describe(
    pool="The pool of GPUs or cores to use",
    renews="An allocation that it replaces once it is granted",
    project="The project, where this is not its channel or one of its threads",
)
@app_commands.autocomplete(pool=autocomplete.pool_names)
@app_commands.autocomplete(renews=autocomplete.live_allocations, project=autocomplete.open_projects)
async def request(interaction: Interaction, pool: str, renews: int | None = None, project: int | None = None) -> None:
    """Open the form of a request for the lead."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(requests.check_may_request, actor(interaction), project_id)
    most = await interaction.client.read(pools.largest_in, pool)
    await interaction.response.send_modal(RequestForm(project_id, {pool: most}, renews))


@allocation.command(name="change", description="Ask for more hours of an allocation, or for a later end")
@app_commands.describe(allocation="The allocation's number")
@app_commands.autocomplete(allocation=autocomplete.live_allocations)
async def change(interaction: Interaction, allocation: int) -> None:
    """Open the form of the change for the lead."""
    await interaction.client.read(changes.check_may_request, actor(interaction), allocation)
    view = await interaction.client.read(allocations.view, allocation)
    await interaction.response.send_modal(ChangeForm(view.id, view.unit, view.until))


@allocation.command(name="withdraw", description="Take back an open request, or an open change of an allocation")
@app_commands.describe(allocation="The allocation's number")
@app_commands.autocomplete(allocation=autocomplete.open_requests)
async def withdraw(interaction: Interaction, allocation: int) -> None:
    """Open the form of the reason."""
    app, who = interaction.client, actor(interaction)
    change_id = await app.read(changes.open_of, allocation)
    if change_id is None:
        await app.read(requests.check_may_withdraw, who, allocation)
        form = ReasonForm("Withdraw the request", requests.withdraw, allocation, WITHDRAWN)
    else:
        await app.read(changes.check_may_withdraw, who, change_id)
        form = ReasonForm("Withdraw the change", changes.withdraw, change_id, CHANGE_WITHDRAWN)
    await interaction.response.send_modal(form)


@allocation.command(name="report", description="Report publicly what an allocation achieved")
@app_commands.describe(allocation="The allocation's number")
@app_commands.autocomplete(allocation=autocomplete.live_allocations)
async def report(interaction: Interaction, allocation: int) -> None:
    """Open the form of the report for the lead."""
    await interaction.client.read(requests.check_may_ask_more, actor(interaction), allocation)
    view = await interaction.client.read(allocations.view, allocation)
    done = "Your report is posted in the project's channel, and reviewers see it on the allocation's card.\n**Next** "
    done += "A reviewer releases the second half; " if view.account.committed else ""
    done += "`/allocation change` asks for more."
    form = ReportForm(f"Report on allocation {allocation}", requests.report, allocation, done)
    await interaction.response.send_modal(form)


@allocation.command(name="show", description="Show what was granted, reserved, spent and is left")
@app_commands.describe(allocation="Its number; the newest of the project otherwise", project="The project")
@app_commands.autocomplete(allocation=autocomplete.allocation_ids, project=autocomplete.listed_projects)
async def show(interaction: Interaction, allocation: int | None = None, project: int | None = None) -> None:
    """Show the ledger of one allocation."""
    await acknowledge(interaction)
    app = interaction.client
    if allocation is None:
        project_id = await context.project_of(interaction, project)
        views = await app.read(allocations.of_project, project_id)
        if not views:
            raise NotFoundError("The project has no allocation yet: /allocation request asks for one.")
        view = next((view for view in views if view.state == AllocationState.APPROVED), views[0])
    else:
        view = await app.read(allocations.view, allocation)
    asked = await app.read(changes.of_allocation, view.id)
    await errors.reply(interaction, _ledger(view, asked))
    # The reviewers' channel or a card in it may have been deleted, so open requests can be decided here too.
    if LabRole.REVIEWER in actor(interaction).roles:
        for card, _ in (await review_card_updates.cards(app, view.project_id, [view])).values():
            if any(isinstance(item, Button) for item in card.walk_children()):
                await interaction.followup.send(view=card, ephemeral=True)


@allocation.command(name="list", description="List the allocations of a project")
@app_commands.describe(project="The project, where this is not its channel or one of its threads")
@app_commands.autocomplete(project=autocomplete.listed_projects)
async def list_allocations(interaction: Interaction, project: int | None = None) -> None:
    """List the allocations."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, project)
    views = await interaction.client.read(allocations.of_project, project_id)
    lines = [
        f"**{view.id}** {view.unit.hours(view.size)} of {text.code(view.pool, 60)} "
        f"until {text.when(view.until, 'D')} · {view.standing} · {view.unit.hours(view.account.left)} left"
        for view in views[:15]
    ]
    await errors.reply(
        interaction, text.listed(lines, of=len(views)) or "No allocation yet: /allocation request asks for one."
    )


def _ledger(view: AllocationView, asked: Sequence[ChangeView]) -> str:
    account = view.account
    sponsor = f", sponsored by {text.line(view.sponsor, 80)}" if view.sponsor else ""
    lines = [
        f"**Allocation {view.id}** of {text.line(view.project, 160)}: {view.standing}, "
        f"{text.code(view.pool, 60)} until {text.when(view.until, 'D')}{sponsor}"
    ]
    if view.state == AllocationState.REQUESTED:
        lines.append(f"Asked for: {view.unit.hours(view.seconds)}; a reviewer decides.")
    if view.reason:
        by = text.line(view.decided_by or "policy", 60)
        lines.append(f"Decided by {by}:\n{text.quote(view.reason, 1000)}")
    if account.committed and view.half_until:
        half = view.unit.hours(account.committed)
        lines.append(f"A second half of {half} is released on a report until {text.when(view.half_until, 'D')}.")
    if view.account.granted:
        names = ("granted", "reserved", "spent", "left")
        lines += [f"{name.capitalize()}: {view.unit.hours(getattr(account, name))}" for name in names]
    waiting = [change for change in asked if change.state == ChangeState.REQUESTED]
    lines += [f"Asked for: {changed(change, view.unit)}; a reviewer decides." for change in waiting]
    return "\n".join(lines)
