"""What the tests of projects ask of a database in one call each; every act is a transaction of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from projects import lifecycle, membership, moderation, projects, updates
from projects.db.database import Database
from projects.people import Actor, LabRole
from projects.projects import Outcome, ProjectView, Stage
from projects.record import record, verification
from projects.rights import Act

ADA = Actor(1, "Ada")
GRACE = Actor(2, "Grace")
EMMY = Actor(3, "Emmy")
ROSA = Actor(4, "Rosa", frozenset({LabRole.REVIEWER}))
MARIE = Actor(5, "Marie", frozenset({LabRole.MODERATOR}))
STRANGER = Actor(6, "Stranger")
SAID = {"title": "Sinks of attention", "question": "Do they form early?", "why": "Nobody knows.", "needs": "A reader."}
SCOPE = {"goal": "Know.", "plan": "Train.", "compute": "1 GPU-hour.", "release": "All."}

_requests = count()


@dataclass
class School:
    """Projects on one database."""

    db: Database

    def call(self, act: Callable[..., Any], actor: Actor, project: int, *values: Any, **named: Any) -> Any:
        """A function of the domain in a transaction."""
        with self.db.write() as session:
            return act(session, actor, project, *values, **named)

    def propose(self, lead: Actor = ADA) -> int:
        """A proposal of its lead alone."""
        with self.db.write() as session:
            return lifecycle.propose(session, lead, f"request-{next(_requests)}", **SAID)

    def join(self, actor: Actor, project: int, *, confirmed: bool = True) -> None:
        """A contributor more, or an unconfirmed newcomer, of three people that an active project needs."""
        self.call(lifecycle.join, actor, project, min_people=3)
        if confirmed:
            lead = self.view(project).lead
            self.confirm(project, actor, Actor(int(lead.discord_id), lead.name))

    def confirm(self, project: int, who: Actor, lead: Actor = ADA) -> None:
        """The lead's consent to a newcomer."""
        self.call(membership.confirm, lead, project, who=str(who.discord_id))

    def remove(self, project: int, who: Actor, lead: Actor = ADA, reason: str = "Spam.") -> None:
        """The lead sends a person away."""
        self.call(membership.remove, lead, project, who=str(who.discord_id), reason=reason)

    def appoint(self, project: int, to: Actor, admin: Actor | None, reason: str = "Ada is gone.") -> None:
        """An admin's choice of another lead."""
        with self.db.write() as session:
            membership.appoint_lead(session, admin, project, to=str(to.discord_id), reason=reason)

    def scope(self, project: int, actor: Actor = ADA, **how: str) -> None:
        """The scope of a project that needs three people."""
        self.call(lifecycle.scope, actor, project, **SCOPE, **how, min_people=3)

    def release(self, project: int, actor: Actor = ROSA, reason: str = "Safe.") -> None:
        """A reviewer's decision."""
        self.call(updates.release, actor, project, reason)

    def open_channel(self, project: int, actor: Actor = MARIE) -> None:
        """A moderator's click."""
        self.call(moderation.open_channel, actor, project)

    def hide(self, project: int, actor: Actor = MARIE, reason: str = "Spam.") -> None:
        """Out of the lists."""
        self.call(moderation.hide, actor, project, reason=reason)

    def unhide(self, project: int, actor: Actor = MARIE, reason: str = "Not spam.") -> None:
        """Back into the lists."""
        self.call(moderation.unhide, actor, project, reason=reason)

    def offer(self, project: int, to: Actor, actor: Actor = ADA) -> None:
        """The lead, offered."""
        self.call(membership.offer_lead, actor, project, to=str(to.discord_id), reason="I move on.")

    def stop(self, project: int, actor: Actor = ADA, reason: str = "No time.") -> None:
        """An end without an outcome."""
        self.call(lifecycle.stop, actor, project, reason=reason)

    def at(self, stage: Stage) -> int:
        """A project of Ada's, with Grace where it is past its proposal, and with Emmy where it was active."""
        project = self.propose()
        if stage != Stage.PROPOSED:
            self.join(GRACE, project)
        if stage not in {Stage.PROPOSED, Stage.RECRUITING}:
            self.scope(project)
        if stage not in {Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED}:
            self.join(EMMY, project)
        if stage == Stage.PAUSED:
            self.call(lifecycle.pause, ADA, project, reason="Exams.")
        elif stage == Stage.COMPLETED:
            self.call(lifecycle.complete, ADA, project, outcome=Outcome.RESULT, learnt="They do.")
        elif stage == Stage.STOPPED:
            self.stop(project)
        return project

    def view(self, project: int) -> ProjectView:
        """The project as cards show it."""
        with self.db.read() as session:
            return projects.view(session, project)

    def told(self, project: int) -> list[record.EntryView]:
        """The project's chain, which must be whole."""
        with self.db.read() as session:
            assert verification.verify(session, record.project_stream(project)).ok
            return list(record.since(session, record.project_stream(project), 0, limit=1000))

    def kinds(self, project: int) -> list[str]:
        """What the project's record tells, in order."""
        return [entry.kind for entry in self.told(project)]

    def everything(self) -> object:
        """What must be the same after a refusal."""
        tables = ("streams", "projects", "memberships", "people", "lead_offers", "past_memberships")
        with self.db.read() as session:
            connection = session.connection()
            return [connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]


# Each act of the table of rights, as the actor would do it.
ACTS: dict[Act, Callable[[School, Actor, int], Any]] = {
    Act.SCOPE: lambda s, a, p: s.scope(p, a),
    Act.PAUSE: lambda s, a, p: s.call(lifecycle.pause, a, p, reason="Exams."),
    Act.RESUME: lambda s, a, p: s.call(lifecycle.resume, a, p),
    Act.COMPLETE: lambda s, a, p: s.call(lifecycle.complete, a, p, outcome=Outcome.ABANDONED, learnt="Nothing."),
    Act.STOP: lambda s, a, p: s.stop(p, a),
    Act.CHANGE_NEEDS: lambda s, a, p: s.call(updates.change_needs, a, p, "A writer."),
    Act.POST_UPDATE: lambda s, a, p: s.call(updates.post_update, a, p, "It goes well."),
    Act.HAND_OVER: lambda s, a, p: s.offer(p, GRACE, a),
    Act.REMOVE: lambda s, a, p: s.remove(p, GRACE, a),
    Act.RELEASE: lambda s, a, p: s.release(p, a),
    Act.OPEN_CHANNEL: lambda s, a, p: s.open_channel(p, a),
    Act.HIDE: lambda s, a, p: s.hide(p, a),
    Act.UNHIDE: lambda s, a, p: s.unhide(p, a),
}
