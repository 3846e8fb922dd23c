"""The form with a prompt for a run's last checkpoint."""

from bot import text
from bot.app import Interaction, actor
from bot.commands.form import Form, long
from broker.runs import generation


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
            f"project's channel. It will cost {text.gpu_hours(receipt.cost)} at most."
        )
