"""The forms of a run to launch, and of a prompt for a run's last checkpoint."""

from collections.abc import Sequence

from bot import text
from bot.app import Interaction, actor
from bot.commands import context
from bot.commands.form import Form, choice, long, short
from bot.commands.run import answers
from broker.allocations.units import Unit
from broker.reports import run_plan
from broker.runs import generation, launching
from broker.runs.launching import Order
from projects.errors import InvalidError


class LaunchForm(Form):
    """A run of a recipe that draws on an allocation; the command takes what else can be chosen."""

    def __init__(self, project_id: int, allocation_id: int, unit: Unit, recipes: Sequence[str]) -> None:
        self.project_id, self.allocation_id, self.unit = project_id, allocation_id, unit
        self.recipe = choice([(name, name) for name in recipes])
        self.time_limit = short(placeholder="such as 45m, 2h or 1h30m")
        self.gpus = short("1")
        self.overrides = short(placeholder="such as steps=400, learning_rate=0.001; empty for none", required=False)
        self.name = short(placeholder="what to call it, such as Wide, no warm-up; empty for none", required=False)
        super().__init__(
            "Launch a run",
            {
                "Recipe": self.recipe,
                "Time limit": self.time_limit,
                text.begun(unit.plural): self.gpus,
                "Changes to the recipe": self.overrides,
                "Name": self.name,
            },
        )

    async def answer(self, interaction: Interaction) -> None:
        """Offer the run with its cost; the button launches it."""
        gpus = context.whole_number(self.gpus.value)
        if gpus is None:
            pool = await interaction.client.read(launching.pool_of, self.project_id, self.allocation_id)
            raise InvalidError(f"The number of {self.unit.plural} is a whole number from 1 to {pool.gpus:,}.")
        order = Order(
            self.project_id,
            self.recipe.values[0],
            self.time_limit.value,
            gpus,
            self.overrides.value,
            self.allocation_id,
            name=self.name.value,
        )
        preview = await interaction.client.write(run_plan.plan_run, actor(interaction), str(interaction.id), order)
        await answers.show(interaction, answers.offer(preview))


class SampleForm(Form):
    """A prompt that the last checkpoint of a run continues."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self.prompt = long(generation.LONGEST_PROMPT, "def fibonacci(n):")
        super().__init__(f"Sample from run {run_id}", {"Prompt": self.prompt})

    async def send(self, interaction: Interaction) -> str:
        """Queue the sample."""
        receipt = await interaction.client.write(
            generation.generate, actor(interaction), str(interaction.id), self.run_id, self.prompt.value
        )
        return (
            f"The last checkpoint of run {self.run_id} will continue your prompt; what it writes is posted in the "
            f"project's channel. It will cost {receipt.unit.hours(receipt.cost)} at most."
        )
