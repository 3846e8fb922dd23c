"""Refused forms: how each was made and what was written in it, kept for a day, so that it opens again after a restart.

How a form was made is kept as JSON: numbers, texts, moments, collections, data classes and
named tuples, members of enumerations, and functions by their names.
"""

import functools
import importlib
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import FunctionType
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session
from sqlmodel import col

from bot.tables import DiscordForm
from broker.publishing import forgetting
from broker.publishing.forgetting import Forgotten
from projects.db.columns import utcnow
from projects.errors import ConflictError, OverError
from projects.people import Actor

OURS = ("bot.", "broker.", "projects.")
"""The packages whose functions and classes a kept form may name."""
DAY = timedelta(days=1)
GONE = "What you wrote was kept for a day, which is over: use the command or the button again."
OUTDATED = "This form is from an earlier version of Stoa: use the command or the button again."


def keep(session: Session, discord_id: int, form: Any) -> int:
    """Keep what `encoded` has made of a form that a person filled in; returns its number."""
    kept = DiscordForm(discord_id=str(discord_id), form={"form": form})
    session.add(kept)
    session.flush()
    return kept.id


def load(session: Session, discord_id: int, number: int) -> Any:
    """What a person's form was encoded from. Raises OverError after a day, and for the form of somebody else;
    ConflictError where a newer version of Stoa has no such form."""
    kept = session.get(DiscordForm, number)
    if kept is None or kept.discord_id != str(discord_id) or kept.at < utcnow() - DAY:
        raise OverError(GONE)
    try:
        return decoded(kept.form["form"])
    except (ImportError, AttributeError, TypeError) as error:
        raise ConflictError(OUTDATED) from error


def sweep(session: Session) -> None:
    """Delete the forms that are older than a day."""
    session.execute(delete(DiscordForm).where(col(DiscordForm.at) < utcnow() - DAY))


def forget(
    session: Session, actor: Actor | None, discord_id: str, reason: str, texts: Collection[str] = ()
) -> Forgotten:
    """Forget a person as `forgetting.forget` does, and delete their forms with it."""
    session.execute(delete(DiscordForm).where(col(DiscordForm.discord_id) == discord_id))
    return forgetting.forget(session, actor, discord_id, reason, texts)


def encoded(value: object) -> Any:
    """A value as JSON; raises TypeError for one that cannot be kept."""
    match value:
        case Enum():
            return {"member": [_name(type(value)), value.value]}
        case None | bool() | int() | float():
            return value
        case str():
            return str(value)
        case tuple() if isinstance(names := getattr(value, "_fields", None), tuple):
            return {"made": [_name(type(value)), encoded(dict(zip(names, value, strict=True)))]}
        case list() | tuple():
            return [encoded(each) for each in value]
        case frozenset():
            return {"set": [encoded(each) for each in value]}
        case dict():
            return {"map": [[encoded(key), encoded(each)] for key, each in value.items()]}
        case datetime():
            return {"moment": value.isoformat()}
        case functools.partial():
            return {"partial": [encoded(value.func), encoded(value.args), encoded(value.keywords)]}
        case type() | FunctionType():
            return {"named": _name(value)}
    if is_dataclass(value):
        made = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"made": [_name(type(value)), encoded(made)]}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def decoded(value: Any) -> Any:
    """What a value was encoded from; tuples have become lists. Raises ImportError, AttributeError or TypeError where a
    name means nothing any more."""
    if isinstance(value, list):
        return [decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, held)] = value.items()
    match kind:
        case "set":
            return frozenset(decoded(held))
        case "map":
            return {decoded(key): decoded(each) for key, each in held}
        case "moment":
            return datetime.fromisoformat(held)
        case "partial":
            function, arguments, keywords = decoded(held)
            return functools.partial(function, *arguments, **keywords)
        case "named":
            return _named(held)
        case "member":
            return _named(held[0])(held[1])
        case "made":
            return _named(held[0])(**decoded(held[1]))
    raise TypeError(f"“{kind}” is unknown")


def _name(value: Any) -> str:
    """The name of a function or class of ours; raises TypeError for others, and for one without a name of its own."""
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        if _named(name) is value:
            return name
    except (ImportError, AttributeError) as error:
        raise TypeError(f"{name} cannot be named") from error
    raise TypeError(f"{name} is another one")


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module.startswith(OURS):
        raise TypeError(f"{name} is not ours")
    return getattr(importlib.import_module(module), attribute)
