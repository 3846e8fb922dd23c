"""Label selectors and field selectors, as the query of a list or a watch has them."""

import re
from collections.abc import Callable, Mapping

from sandbox.kubernetes.errors import Json, bad_request

_SET = re.compile(r"(?P<key>[\w./-]+)\s+(?P<how>in|notin)\s+\((?P<values>[^)]*)\)")
_EQUAL = re.compile(r"(?P<key>[\w./-]+)\s*(?P<how>==|=|!=)\s*(?P<values>[\w.-]*)")
_EXISTS = re.compile(r"(?P<how>!?)\s*(?P<key>[\w./-]+)")

Test = Callable[[Json], bool]


def selects(label_selector: str, field_selector: str) -> Test:
    """Whether an object is selected by both; raises ApiError 400 for a selector that cannot be read."""
    labels, fields = _labels(label_selector), _fields(field_selector)
    return lambda one: labels(one["metadata"].get("labels") or {}) and fields(one)


def _labels(selector: str) -> Callable[[Mapping[str, str]], bool]:
    tests = [_requirement(part) for part in re.split(r",(?![^(]*\))", selector) if part.strip()]
    return lambda labels: all(test(labels) for test in tests)


def _requirement(part: str) -> Callable[[Mapping[str, str]], bool]:
    part = part.strip()
    if found := _SET.fullmatch(part) or _EQUAL.fullmatch(part):
        key, how = found["key"], found["how"]
        values = {value.strip() for value in found["values"].split(",")}
        if how in ("notin", "!="):
            return lambda labels: labels.get(key) not in values
        return lambda labels: labels.get(key) in values
    if found := _EXISTS.fullmatch(part):
        key, absent = found["key"], found["how"] == "!"
        return lambda labels: (key in labels) != absent
    raise bad_request(f"unable to parse requirement: found '{part[:60]}'")


def _fields(selector: str) -> Test:
    wanted: list[tuple[list[str], bool, str]] = []
    for part in filter(None, selector.split(",")):
        found = re.fullmatch(r"([\w.]+)(==|=|!=)([\w./-]*)", part)
        if found is None:
            raise bad_request(f"invalid selector: '{part[:60]}'; can't understand '{part[:60]}'")
        wanted.append((found[1].split("."), found[2] != "!=", found[3]))

    def test(one: Json) -> bool:
        return all((_at(one, path) == value) == equal for path, equal, value in wanted)

    return test


def _at(one: Json, path: list[str]) -> str:
    value: object = one
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return str(value if value is not None else "")
