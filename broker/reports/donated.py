"""The donated machines, as the lab has admitted them and as it has last heard from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from broker import store
from broker.allocations import machines
from broker.allocations.machines import MachineView
from broker.runners import donated_presence
from broker.runners.donated_presence import Presence
from broker.store import StoreError
from projects.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class Listed:
    """The machines by name, each as it was last heard from, None for never; `trouble` says why where the store does
    not tell."""

    machines: Sequence[tuple[MachineView, Presence | None]]
    trouble: str = ""

    def of_pool(self, pool: str) -> Sequence[tuple[MachineView, Presence | None]]:
        """The machines of a pool whose tokens are good."""
        return [(machine, seen) for machine, seen in self.machines if machine.pool == pool and not machine.revoked_at]


def listed(session: Session, settings: Settings) -> Listed:
    """All donated machines that were ever admitted."""
    known = machines.every(session)
    try:
        there = store.of(settings) if known else None
        seen = {one.machine: one for one in donated_presence.every(there)} if there is not None else {}
    except StoreError as error:
        log.warning("which machines are there could not be read from the store", why=str(error))
        return Listed([(machine, None) for machine in known], str(error))
    return Listed([(machine, seen.get(machine.name)) for machine in known])
