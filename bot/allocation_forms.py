"""The forms about GPU time: a request, and what a reviewer says to it."""

from bot import text
from bot.app import Interaction, actor
from bot.form import Form, long, short
from broker import allocations, reviews
from broker.allocations import AllocationState


class RequestForm(Form):
    """A request for GPU time."""

    def __init__(self, project_id: int, pool: str) -> None:
        self.project_id, self.pool = project_id, pool
        self.hours, self.until = short(placeholder="1.5"), short(placeholder="YYYY-MM-DD")
        self.justification = long()
        super().__init__(
            "Ask for GPU time", {"GPU-hours": self.hours, "Until": self.until, "Justification": self.justification}
        )

    async def send(self, interaction: Interaction) -> str:
        """Ask for it."""
        allocation_id = await interaction.client.write(
            allocations.request,
            actor(interaction),
            str(interaction.id),
            project_id=self.project_id,
            pool=self.pool,
            hours=self.hours.value,
            until=self.until.value,
            justification=self.justification.value,
        )
        return f"Allocation {allocation_id} is asked for; the reviewers' decision is posted in the project's channel."


class ApproveForm(Form):
    """A reviewer's approval, in full or in part."""

    def __init__(self, allocation_id: int, seconds: int) -> None:
        self.allocation_id = allocation_id
        self.hours, self.reason = short(default=text.exact_hours(seconds)), long()
        super().__init__("Approve GPU time", {"GPU-hours": self.hours, "Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Grant it."""
        app = interaction.client
        state = await app.write(
            reviews.approve,
            actor(interaction),
            self.allocation_id,
            hours=self.hours.value,
            reason=self.reason.value,
            reviewer_role_id=app.server.reviewer_role,
        )
        if state == AllocationState.REQUESTED:
            return "Endorsed; a grant of this size needs a second reviewer, who decides now."
        return "Approved; the decision and its reason are posted in the project's channel."


class DeclineForm(Form):
    """A reviewer's refusal."""

    def __init__(self, allocation_id: int) -> None:
        self.allocation_id = allocation_id
        self.reason = long()
        super().__init__("Decline GPU time", {"Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Refuse it."""
        app = interaction.client
        await app.write(
            reviews.decline,
            actor(interaction),
            self.allocation_id,
            reason=self.reason.value,
            reviewer_role_id=app.server.reviewer_role,
        )
        return "Declined; the decision and its reason are posted in the project's channel."
