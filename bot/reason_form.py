"""The form of every act that needs nothing but its reason, which everyone can read."""

from collections.abc import Callable

from bot.app import Interaction, actor
from bot.form import Form, long


class ReasonForm(Form):
    """Does `act` with what the number names; `done` is the answer, `roles` are ids that the domain asks for."""

    def __init__(self, title: str, act: Callable[..., object], number: int, done: str, **roles: int) -> None:
        self.act, self.number, self.done, self.roles = act, number, done, roles
        self.reason = long("Everyone can read it.")
        super().__init__(title, {"Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Do it."""
        said = self.reason.value
        await interaction.client.write(self.act, actor(interaction), self.number, reason=said, **self.roles)
        return self.done
