"""What people type: days, moments, numbers and durations, as they write them."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from projects import parse
from projects.errors import InvalidError

TODAY = date(2026, 11, 29)  # a Sunday
NOW = datetime(2026, 11, 29, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("2026-12-31", date(2026, 12, 31)),
        (" 2026/12/31 ", date(2026, 12, 31)),
        ("31.12.2026", date(2026, 12, 31)),
        ("3.4.2027", date(2027, 4, 3)),
        ("31/12/2026", date(2026, 12, 31)),
        ("12/31/2026", date(2026, 12, 31)),
        ("5/5/2027", date(2027, 5, 5)),
        ("31 Dec", date(2026, 12, 31)),
        ("31. december", date(2026, 12, 31)),
        ("1 Nov", date(2027, 11, 1)),
        ("29 November", TODAY),
        ("Dec 31, 2026", date(2026, 12, 31)),
        ("31st of December 2026", date(2026, 12, 31)),
        ("Sept 3", date(2027, 9, 3)),
        ("29 Feb", date(2028, 2, 29)),
        ("31.12.", date(2026, 12, 31)),
        ("today", TODAY),
        ("Tomorrow", date(2026, 11, 30)),
        ("in 3 months", date(2027, 2, 28)),
        ("in a week", date(2026, 12, 6)),
        ("in 10 days", date(2026, 12, 9)),
        ("in 1 year", date(2027, 11, 29)),
        ("Friday", date(2026, 12, 4)),
        ("next sun", date(2026, 12, 6)),
    ],
)
def test_days(said: str, day: date) -> None:
    assert parse.day(said, TODAY) == day


@pytest.mark.parametrize(
    "said", ["", "soon", "31", "30 Feb", "2026-13-01", "in many days", "🧪", "31 x", "9" * 400, "1.1.1"]
)
def test_what_is_no_day_is_refused_with_what_would_be(said: str) -> None:
    with pytest.raises(
        InvalidError, match=r"The day must be written like 2026-12-29: year, month, day; or like 29 Dec"
    ):
        parse.day(said, TODAY)


def test_a_day_that_may_be_two_is_refused_with_both() -> None:
    with pytest.raises(InvalidError, match="“3/4/2027” may be 3 April or 4 March: write 2027-04-03 or 2027-03-04"):
        parse.day("3/4/2027", TODAY)
    with pytest.raises(InvalidError, match="nearer than the year 9001"):
        parse.day("9999-12-31", TODAY)


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("2026-12-31 09:00", datetime(2026, 12, 31, 9, tzinfo=UTC)),
        ("2026-12-31T09:00:05", datetime(2026, 12, 31, 9, 0, 5, tzinfo=UTC)),
        ("2026-12-31 09:00 +02:00", datetime(2026, 12, 31, 7, tzinfo=UTC)),
        ("31 Dec 9:00", datetime(2026, 12, 31, 9, tzinfo=UTC)),
        ("tomorrow at 9:05 UTC", datetime(2026, 11, 30, 9, 5, tzinfo=UTC)),
        ("yesterday 18:00", datetime(2026, 11, 28, 18, tzinfo=UTC)),
        ("in 2 hours", datetime(2026, 11, 29, 17, 30, tzinfo=UTC)),
    ],
)
def test_moments(said: str, at: datetime) -> None:
    assert parse.moment(said, NOW) == at


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("5 Nov 9:00", datetime(2026, 11, 5, 9, tzinfo=UTC)),
        ("5 Dec 9:00", datetime(2025, 12, 5, 9, tzinfo=UTC)),
        ("Fri 18:00", datetime(2026, 11, 27, 18, tzinfo=UTC)),
        ("2 hours ago", datetime(2026, 11, 29, 13, 30, tzinfo=UTC)),
    ],
)
def test_moments_of_the_past(said: str, at: datetime) -> None:
    assert parse.moment(said, NOW, past=True) == at
    with pytest.raises(InvalidError, match="or 2 hours ago, in UTC"):
        parse.moment("in 2 hours", NOW, past=True)


@pytest.mark.parametrize(
    "said", ["", "tomorrow", "9:00", "31 Dec 25:00", "0001-01-01 00:00+14:00", "in many hours", "in 9999999 weeks"]
)
def test_what_is_no_moment_is_refused(said: str) -> None:
    with pytest.raises(InvalidError, match=r"must be written like|may be"):
        parse.moment(said, NOW)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("1.5", "1.5"),
        ("1,5", "1.5"),
        (" 12 000 ", "12000"),
        ("12,000.5", "12000.5"),
        ("12.000,5", "12000.5"),
        ("1.000.000", "1000000"),
        ("0,125", "0.125"),
        ("1.000", "1"),
        ("2e3", "2000"),
        ("-3", "-3"),
        ("10 GPU-hours", "10"),
        ("2,5h", "2.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("10 hrs", "10"),
    ],
)
def test_numbers(said: str, number: str) -> None:
    assert parse.hours(said) == Decimal(number)


@pytest.mark.parametrize(
    "said", ["", "NaN", "inf", "many", "1,2,3", "1..2", "1.2.3", ".", "1_0", "٣", "9" * 400, "9" * 16, "1,5,0.2"]
)
def test_what_is_no_number(said: str) -> None:
    assert parse.number(said) is None


def test_a_number_that_may_be_two_is_refused_with_both() -> None:
    with pytest.raises(InvalidError, match=r"“1,000” may be 1000 or 1.000: write the one that you mean"):
        parse.number("1,000")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("45m", 2700),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30 min", 5400),
        ("1:30", 5400),
        ("6 hours", 21_600),
        ("2 days", 172_800),
        ("1 day and 2 hours", 93_600),
        ("1.5h", 5400),
        ("1,5 hours", 5400),
        ("a week", 604_800),
        ("half an hour", 1800),
        ("90 s", 90),
    ],
)
def test_durations(said: str, seconds: int) -> None:
    assert parse.duration(said) == seconds


@pytest.mark.parametrize("said", ["", "soon", "-2h", "2 parsecs", "h", "🧪", "9" * 400 + "h", "2h x"])
def test_what_is_no_duration(said: str) -> None:
    assert parse.duration(said) is None


def test_a_duration_without_a_unit_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(InvalidError, match="“45” has no unit: write 45h for hours, or 45m for minutes"):
        parse.duration("45")
