"""A wrong clock: whatever is imported after this module sees a time that is `SECONDS` ahead."""

import datetime
import time
from typing import Any

SECONDS = 0.0
_time = time.time
_datetime = datetime.datetime


class Skewed(type):
    """Takes every moment for one of its own."""

    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, _datetime)


class WrongDatetime(_datetime, metaclass=Skewed):
    """`datetime.datetime` by the wrong clock."""

    __slots__ = ()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=SECONDS)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


setattr(time, "time", lambda: _time() + SECONDS)  # noqa: B010
setattr(datetime, "datetime", WrongDatetime)  # noqa: B010
