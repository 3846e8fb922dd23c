"""The forms by which members propose recipes, datasets, programs and pairs."""

from bot import text
from bot.app import Interaction, actor
from bot.commands.form import MOST, Form, long, short
from broker import catalogue


def proposed(name: str, what: str) -> str:
    """The answer to whoever proposes an entry."""
    first = " an operator tries it, and then" if what == "program" else ""
    is_or_are = "are" if what == "pairs" else "is"
    return f"{text.code(name, 60)} {is_or_are} proposed;{first} an admin decides."


class RecipeForm(Form):
    """A configuration of the trainer, as YAML."""

    def __init__(self) -> None:
        self.name = short(placeholder="small-cosine")
        self.body = long(MOST, "YAML, like an existing recipe; its sources are datasets of the catalogue, by name")
        super().__init__("Propose a recipe", {"Name": self.name, "Recipe": self.body})

    async def send(self, interaction: Interaction) -> str:
        """Propose it."""
        name = self.name.value.strip()
        await interaction.client.write(
            catalogue.propose_recipe, actor(interaction), str(interaction.id), name=name, body=self.body.value
        )
        return f"{text.code(name, 60)} is proposed; an admin decides."


class ProgramForm(Form):
    """Somebody's code at a commit, described in YAML."""

    def __init__(self) -> None:
        self.name = short(placeholder="sparse-autoencoder")
        self.body = long(MOST, "YAML: repository, commit, lock, command, parameters, gpus, time_limit, disk_gib")
        super().__init__("Propose a program", {"Name": self.name, "Program": self.body})

    async def send(self, interaction: Interaction) -> str:
        """Propose it."""
        name = self.name.value.strip()
        await interaction.client.write(
            catalogue.propose_program, actor(interaction), str(interaction.id), name=name, body=self.body.value
        )
        return proposed(name, "program")


class PairsForm(Form):
    """Prompts with two continuations each, of which a model should prefer one."""

    def __init__(self) -> None:
        self.name = short(placeholder="subject-verb")
        self.body = long(MOST, 'pairs:\n- {prompt: "The cats", preferred: " are", other: " is", group: plural}')
        super().__init__("Propose pairs", {"Name": self.name, "Pairs": self.body})

    async def send(self, interaction: Interaction) -> str:
        """Propose them."""
        name = self.name.value.strip()
        await interaction.client.write(
            catalogue.propose_pairs, actor(interaction), str(interaction.id), name=name, body=self.body.value
        )
        return proposed(name, "pairs")


class DatasetForm(Form):
    """A dataset of the Hub at a commit, with its licence."""

    def __init__(self) -> None:
        self.name = short(placeholder="wikitext")
        self.dataset = short(placeholder="owner/name, or owner/name@commit")
        self.commit = short(placeholder="40 hexadecimal digits, where the dataset does not say it", required=False)
        self.licence = short(placeholder="An SPDX identifier, such as CC-BY-4.0")
        super().__init__(
            "Propose a dataset",
            {"Name": self.name, "Dataset": self.dataset, "Commit": self.commit, "Licence": self.licence},
        )

    async def send(self, interaction: Interaction) -> str:
        """Propose it."""
        name = self.name.value.strip()
        dataset, _, commit = self.dataset.value.strip().partition("@")
        await interaction.client.write(
            catalogue.propose_dataset,
            actor(interaction),
            str(interaction.id),
            name=name,
            dataset=dataset,
            revision=(self.commit.value or commit).strip(),
            licence=self.licence.value,
        )
        return f"{text.code(name, 60)} is proposed; an admin decides."
