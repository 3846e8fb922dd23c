"""What the story plays on: the running parts, the people, and what has come to be so far."""

from dataclasses import dataclass, field
from pathlib import Path

from broker.runs import runs
from broker.runs.runs import RunView
from projects.db.database import Database
from projects.settings import Settings
from sandbox.people import Guild, Person


@dataclass
class Stage:
    """The stage of one demo. Ids are set as the story makes what they name."""

    home: Path
    settings: Settings
    database: Database
    guild: Guild
    override: str = "steps=40"
    project_id: int = 0
    channel: str = ""
    allocation_id: int = 0
    run_id: int = 0
    repo: str = ""
    branches: list[str] = field(default_factory=list)
    study: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By step, the share of pairs whose right bracket the checkpoint prefers, with its standard error."""
    figure: str = ""

    def person(self, name: str) -> Person:
        """Somebody of the sandbox's guild."""
        return self.guild.person(name)

    def run(self) -> RunView:
        """The story's run as it stands now."""
        with self.database.read() as session:
            return runs.view(session, self.run_id)
