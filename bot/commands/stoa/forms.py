"""The forms in which admins add and change pools, grants, shares and limits."""

from collections.abc import Iterable, Sequence

import discord

from bot import text
from bot.app import App, Interaction, actor
from bot.buttons import Button
from bot.commands import context
from bot.commands.form import Form, choice, long, short
from broker.allocations import pools, shares, sponsor_shares
from broker.allocations.pools import GrantView
from broker.allocations.units import heading
from broker.reviews import inventory
from projects import policies, quotas
from projects.errors import InvalidError
from projects.policies import Policies
from projects.text import USUAL

MEMORY = "141 / 2048"
NODES = "64 / 8"


class AddPoolForm(Form):
    """A new pool on the worker's own host; a pool of another runner, which needs more, is added by an operator."""

    def __init__(self) -> None:
        self.name, self.gpu_type = short(placeholder="hall-h200"), short(placeholder="H200")
        self.gpus = short(placeholder="On this host; a pool elsewhere is added by `stoa pool add`")
        self.weight = short("1")
        self.memory = short(placeholder=MEMORY, required=False)
        super().__init__(
            "Add a pool",
            {
                "Name": self.name,
                "Type of GPU or CPU": self.gpu_type,
                "GPUs or cores": self.gpus,
                "Price weight": self.weight,
                "GiB of a GPU or core / of a host": self.memory,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Add the pool."""
        app = interaction.client
        await app.write(
            inventory.add_pool,
            actor(interaction),
            name=self.name.value,
            gpu_type=self.gpu_type.value,
            gpus=self.gpus.value,
            price_weight=self.weight.value,
            memory=self.memory.value,
        )
        self.then = [Button("grant_add", 0, label="Add a grant", style=discord.ButtonStyle.primary)]
        comes = "**Next** A grant gives its time to the community, with this button or `/stoa grants`."
        return f"The pool {text.code(self.name.value, 60)} is added.\n{comes}"


class ChangePoolForm(Form):
    """Another number of GPUs or cores, price weight or memory for a pool."""

    def __init__(self, names: Sequence[str]) -> None:
        self.pool = choice([(name, name) for name in names])
        self.gpus = short(placeholder=f"As it is, or {NODES}", required=False)
        self.weight = short(placeholder="As it is", required=False)
        self.memory = short(placeholder=f"As it is, or {MEMORY}", required=False)
        self.why = long(USUAL, "Everyone can read it")
        super().__init__(
            "Change a pool",
            {
                "Pool": self.pool,
                "GPUs or cores": self.gpus,
                "Price weight": self.weight,
                "GiB of a GPU or core / of a host": self.memory,
                "Reason": self.why,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Change the pool."""
        app, name = interaction.client, next(iter(self.pool.values), "")
        memory, host = inventory.parse_memory(self.memory.value)
        gpus, each = inventory.parse_gpus(self.gpus.value)
        await app.write(
            inventory.change_pool,
            actor(interaction),
            name,
            gpus=gpus,
            gpus_a_node=each,
            price_weight=self.weight.value,
            memory_gib=memory,
            host_memory_gib=host,
            reason=self.why.value,
        )
        return f"The pool {text.code(name, 60)} is changed; the record says so."


class AddGrantForm(Form):
    """A grant: hours of a pool that a sponsor gives."""

    def __init__(self, pools: Sequence[str]) -> None:
        self.pool = choice([(name, name) for name in pools])
        self.sponsor, self.hours, self.until = (
            short(),
            short(),
            short(placeholder="such as 2030-12-31, 31 Dec or in 3 months"),
        )
        super().__init__(
            "Add a grant",
            {"Pool": self.pool, "Sponsor": self.sponsor, "GPU-hours or core-hours": self.hours, "Until": self.until},
        )

    async def send(self, interaction: Interaction) -> str:
        """Add the grant and answer with its number."""
        app = interaction.client
        number = await app.write(
            inventory.add_grant,
            actor(interaction),
            pool=next(iter(self.pool.values), ""),
            sponsor=self.sponsor.value,
            hours=self.hours.value,
            until=self.until.value,
        )
        thanks = f"Grant {number} is added: {await _given(app, number)}; the record thanks the sponsor."
        return f"{thanks}\n**Next** The leads of projects ask for their part with `/allocation request`."


class ChangeGrantForm(Form):
    """More hours or another end for a grant."""

    def __init__(self, grants: Sequence[GrantView]) -> None:
        self.grant = choice([(f"{g.id} · {g.sponsor}, {g.pool}, until {g.until:%Y-%m-%d}", str(g.id)) for g in grants])
        self.hours = short(placeholder="None more", required=False)
        self.until = short(placeholder="As it is", required=False)
        self.why = long(USUAL, "Everyone can read it")
        super().__init__(
            "Change a grant",
            {
                "Grant": self.grant,
                f"{heading({grant.unit for grant in grants})} more": self.hours,
                "Until": self.until,
                "Reason": self.why,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Change the grant."""
        app, number = interaction.client, int(next(iter(self.grant.values), "0"))
        await app.write(
            inventory.change_grant,
            actor(interaction),
            number,
            more_hours=self.hours.value,
            until=self.until.value,
            reason=self.why.value,
        )
        return f"Grant {number} is changed: {await _given(app, number)}; the record says so."


async def _given(app: App, number: int) -> str:
    """What a grant gives in all, and until when."""
    [grant] = [grant for grant in await app.read(pools.grants) if grant.id == number]
    hours = grant.unit.hours(grant.seconds)
    return f"{hours} of {text.code(grant.pool, 60)} in all, until {text.when(grant.until, 'D')}"


class SetShareForm(Form):
    """Another share for a project, which may be given."""

    def __init__(self, project: int | None = None) -> None:
        self.project = short("" if project is None else str(project), "Its number, such as 3")
        self.share, self.why = short(placeholder="1 is usual"), long(USUAL, "Everyone can read it")
        super().__init__("Set a share", {"Project": self.project, "Share": self.share, "Reason": self.why})

    async def send(self, interaction: Interaction) -> str:
        """Set the project's share."""
        app, project = interaction.client, context.whole_number(self.project.value.removeprefix("P"))
        if project is None:
            raise InvalidError("The project is its number, such as 3.")
        share = await app.write(shares.set_share, actor(interaction), project, self.share.value, self.why.value)
        return f"The share of P{project} is {share:g} from now on; its record says so."


class SetAsideForm(Form):
    """What a sponsor sets aside for its own projects."""

    def __init__(self, sponsors: Sequence[str]) -> None:
        self.sponsor = choice([(name, name) for name in sponsors])
        self.share = short(placeholder="A fraction such as 0.25; 0 ends it")
        self.projects = short(placeholder="Their numbers, such as 3, 5", required=False)
        self.why = long(USUAL, "Everyone can read it")
        super().__init__(
            "Set a sponsor's own share",
            {"Sponsor": self.sponsor, "Share": self.share, "Own projects": self.projects, "Reason": self.why},
        )

    async def send(self, interaction: Interaction) -> str:
        """Set the sponsor's own share."""
        sponsor, typed = next(iter(self.sponsor.values), ""), self.projects.value.replace(",", " ").split()
        own = [context.whole_number(number.removeprefix("P")) for number in typed]
        known = [number for number in own if number is not None]
        if len(known) < len(own):
            raise InvalidError("The sponsor's own projects are their numbers, such as 3, 5.")
        share = await interaction.client.write(
            sponsor_shares.set_aside, actor(interaction), sponsor, self.share.value, known, self.why.value
        )
        return f"{share:.4g} of what {text.line(sponsor, 80)} gives is set aside; the record says so."


class ChangeLimitForm(Form):
    """Another value for one policy."""

    def __init__(self, names: Iterable[str] = Policies.model_fields) -> None:
        self.name = choice([(policies.label(name), name) for name in names])
        self.value, self.why = short(), long(USUAL, "Everyone can read it")
        super().__init__("Change a limit", {"Limit": self.name, "Value": self.value, "Reason": self.why})

    async def send(self, interaction: Interaction) -> str:
        """Change the limit."""
        app, name = interaction.client, next(iter(self.name.values), "")
        after = await app.write(
            quotas.change_policy,
            actor(interaction),
            name,
            self.value.value,
            self.why.value,
        )
        return f"{text.code(name, 60)} is {policies.said_as(getattr(after, name))} from now on."
