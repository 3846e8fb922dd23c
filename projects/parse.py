"""Days, moments, durations and numbers as people type them: “31 Dec”, “in 3 months”, “2 days”, “1,5”.

A point alone stands before decimals (“1.000” is one), and a weekday means the next one after today. What may still be
read in two ways is refused with both of them. All times are UTC.
"""

import calendar
import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from projects.errors import InvalidError

LAST_YEAR = 9000
MOST_DIGITS = 15
MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if number}
WEEKDAYS = {name.lower(): number for number, name in enumerate(calendar.day_name)}
WORDS = {"yesterday": -1, "today": 0, "tomorrow": 1}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
UNIT = re.compile(
    r"(?P<s>s|secs?|seconds?)|(?P<m>m|mins?|minutes?)|(?P<h>h|hrs?|hours?)|(?P<d>d|days?)|(?P<w>w|weeks?)"
)
PART = re.compile(r"(?:(\d{1,7}(?:[.,]\d{1,4})?)|(an?)\b|(half an?)\b)\s*([a-z]+)", re.ASCII)
HOURS_UNIT = re.compile(r"\s{0,9}(?:gpu[ -]?)?h(?:(?:ou)?rs?)?$", re.IGNORECASE)


def number(value: str) -> Decimal | None:
    """A number with a point or a comma before its decimals, such as 1.5, “1,5” or “12 000”; None where it is none.

    Raises InvalidError for one that can be read in two ways, such as “1,000”.
    """
    said = re.sub(r"(?<=\d)[\s\u00a0\u202f'’_](?=\d{3}(?!\d))", "", value.strip())
    if re.fullmatch(r"[+-]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})(e[+-]?\d{1,2})?", said, re.IGNORECASE | re.ASCII):
        return Decimal(said)
    if not re.fullmatch(r"[+-]?[\d.,]{1,40}", said, re.ASCII):
        return None
    point = max(said.rfind("."), said.rfind(","))
    if point < 0:
        return None
    whole, mark, decimals = said[:point], said[point], said[point + 1 :]
    other = "," if mark == "." else "."
    if said.count(mark) > 1:
        return _grouped(said, mark) if other not in said else None
    if other in whole:
        grouped = _grouped(whole, other)
        return None if grouped is None or not decimals.isdecimal() else Decimal(f"{grouped}.{decimals}")
    if mark == "," and re.fullmatch(r"[+-]?[1-9]\d{0,2}", whole) and len(decimals) == 3:
        raise InvalidError(f"“{said}” may be {whole}{decimals} or {whole}.{decimals}: write the one that you mean.")
    if not whole.lstrip("+-").isdecimal() or not decimals.isdecimal() or len(said) > 2 * MOST_DIGITS:
        return None
    return Decimal(f"{whole}.{decimals}")


def hours(value: str) -> Decimal | None:
    """Hours such as 1.5, “1,5” or “10 GPU-hours”; None where they are no number. Raises InvalidError as `number`."""
    return number(HOURS_UNIT.sub("", value.strip()))


def duration(value: str) -> int | None:
    """The seconds of a duration such as “6h”, “1h30m”, “2 days”, “1.5 hours” or “1:30”; None where it is none.

    Raises InvalidError for a number without a unit.
    """
    said = " ".join(value.lower().split())
    if clock := re.fullmatch(r"(\d{1,4}):([0-5]\d)", said, re.ASCII):
        return int(clock[1]) * 3600 + int(clock[2]) * 60
    if re.fullmatch(r"\d{1,7}([.,]\d{1,4})?", said, re.ASCII):
        raise InvalidError(f"“{said}” has no unit: write {said}h for hours, or {said}m for minutes.")
    rest, seconds = said, Decimal(0)
    while rest:
        part = PART.match(rest)
        unit = UNIT.fullmatch(part[4]) if part else None
        if part is None or unit is None:
            return None
        count = Decimal(part[1].replace(",", ".")) if part[1] else Decimal("0.5" if part[3] else "1")
        seconds += count * UNITS[str(unit.lastgroup)]
        rest = re.sub(r"^[\s,]*(?:and\s+)?", "", rest[part.end() :])
    return int(seconds) if said else None


def day(value: str, today: date | None = None) -> date:
    """A day such as “2030-12-31”, “31.12.2030”, “31 Dec”, “in 3 months”, “Friday” or “tomorrow”.

    A day without a year is the next one from today on, a weekday the next one after today. Raises InvalidError.
    """
    now = today or datetime.now(UTC).date()
    found = _day(value, now, past=False)
    if found is None:
        example = now + timedelta(days=30)
        raise InvalidError(
            f"The day must be written like {example}: year, month, day; or like {example.day} {example:%b} or "
            "in 30 days."
        )
    if found.year > LAST_YEAR:
        raise InvalidError(f"The day must lie nearer than the year {LAST_YEAR + 1}.")
    return found


def day_end(value: str) -> datetime:
    """The last second, in UTC, of a day as typed; raises InvalidError."""
    return datetime.combine(day(value), time(23, 59, 59), UTC)


def moment(value: str, now: datetime | None = None, *, past: bool = False) -> datetime:
    """A moment such as “2030-12-31 09:00”, “31 Dec 9:00” or “in 2 hours”, in UTC where it says no offset.

    With `past`, days without a year and weekdays are the last ones, and “2 hours ago” is a moment instead of “in 2
    hours”. Raises InvalidError.
    """
    at = now or datetime.now(UTC)
    said = " ".join(value.split())
    away = re.fullmatch(r"(.+) ago" if past else r"in (.+)", said, re.IGNORECASE)
    if away and (seconds := duration(away[1])) is not None:
        with suppress(OverflowError):
            return (at + timedelta(seconds=-seconds if past else seconds)).replace(microsecond=0)
    typed = re.fullmatch(
        r"(?P<day>.+?)(?:\s+at)?(?:\s+|T)(?P<time>\d{1,2}:\d\d(?::\d\d(?:\.\d{1,6})?)?)\s*(?P<zone>Z|UTC|[+-]\d\d:?\d\d)?",
        said,
        re.IGNORECASE | re.ASCII,
    )
    if typed:
        zone = (typed["zone"] or "UTC").upper().replace("UTC", "Z")
        try:
            clock = time.fromisoformat(f"{'0' if typed['time'][1] == ':' else ''}{typed['time']}{zone}")
            if found := _day(typed["day"], at.date(), past=past):
                return datetime.combine(found, clock).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    example = (at + timedelta(days=-30 if past else 30)).date()
    raise InvalidError(
        f"The moment must be written like {example} 09:00, {example.day} {example:%b} 9:00 or "
        f"{'2 hours ago' if past else 'in 2 hours'}, in UTC."
    )


def _day(value: str, now: date, *, past: bool) -> date | None:
    """The day, or None where it is none; raises InvalidError for one that may be two."""
    said = " ".join(value.lower().replace(",", " ").split())
    try:
        return _relative(said, now, past=past) or _numeric(said, value.strip()) or _named(said, now, past=past)
    except (ValueError, OverflowError):
        return None


def _grouped(value: str, mark: str) -> Decimal | None:
    """A whole number whose thousands are separated by `mark`."""
    whole = re.fullmatch(rf"[+-]?\d{{1,3}}({re.escape(mark)}\d{{3}}){{1,5}}", value, re.ASCII)
    return Decimal(value.replace(mark, "")) if whole else None


def _relative(said: str, now: date, *, past: bool) -> date | None:
    """“tomorrow”, “in 3 months”, “next Friday”."""
    if said in WORDS:
        return now + timedelta(days=WORDS[said])
    weekday = said.removeprefix("next ").removeprefix("on ")
    for name, number_of_day in WEEKDAYS.items():
        if weekday in (name, name[:3]):
            if past:
                return now - timedelta(days=(now.weekday() - number_of_day) % 7)
            return now + timedelta(days=(number_of_day - now.weekday() - 1) % 7 + 1)
    ahead = re.fullmatch(r"in (\d{1,4}|an?) (day|week|month|year)s?", said, re.ASCII)
    if not ahead:
        return None
    count = int(ahead[1]) if ahead[1].isdecimal() else 1
    if ahead[2] in ("day", "week"):
        return now + timedelta(days=count * (7 if ahead[2] == "week" else 1))
    months = now.year * 12 + now.month - 1 + count * (12 if ahead[2] == "year" else 1)
    year, month = months // 12, months % 12 + 1
    return date(year, month, min(now.day, calendar.monthrange(year, month)[1]))


def _numeric(said: str, typed: str) -> date | None:
    """“2030-12-31”, “31.12.2030”, “31/12/2030”; raises InvalidError where day and month may be either way round."""
    if iso := re.fullmatch(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})", said, re.ASCII):
        return date(int(iso[1]), int(iso[2]), int(iso[3]))
    parts = re.fullmatch(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})", said, re.ASCII)
    if not parts:
        return None
    first, second, year = int(parts[1]), int(parts[3]), int(parts[4])
    if parts[2] == "." or first > 12:
        return date(year, second, first)
    if second > 12:
        return date(year, first, second)
    if first != second:
        one, other = date(year, second, first), date(year, first, second)
        raise InvalidError(f"“{typed}” may be {one.day} {one:%B} or {other.day} {other:%B}: write {one} or {other}.")
    return date(year, first, second)


def _named(said: str, now: date, *, past: bool) -> date | None:
    """“31 Dec”, “31st of December 2030”, “Dec 31 2030”, “31.12.”."""
    month: int | None
    if short := re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.?", said, re.ASCII):
        number_of_day, month, year = int(short[1]), int(short[2]), None
    else:
        words = re.fullmatch(
            r"(?:(?P<d>\d{1,2})(?:st|nd|rd|th|\.)?(?: of)? (?P<m>[a-z]{3,9})"
            r"|(?P<m2>[a-z]{3,9})\.? (?P<d2>\d{1,2})(?:st|nd|rd|th)?)\.?(?: (?P<y>\d{4}))?",
            said,
            re.ASCII,
        )
        if not words:
            return None
        name = words["m"] or words["m2"]
        month = next((n for full, n in MONTHS.items() if full.startswith(name) or name == "sept" == full[:4]), None)
        if month is None:
            return None
        number_of_day, year = int(words["d"] or words["d2"]), int(words["y"]) if words["y"] else None
    if year is not None:
        return date(year, month, number_of_day)
    way = -1 if past else 1
    for each in range(now.year, now.year + 9 * way, way):  # 29 February comes every four to eight years
        if number_of_day <= calendar.monthrange(each, month)[1]:
            found = date(each, month, number_of_day)
            if found <= now if past else found >= now:
                return found
    return None
