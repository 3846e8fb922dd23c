"""Checks of a request's fields, gathered into the error tree of Discord's `50035 Invalid Form Body`."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sandbox.discord.errors import ApiError, Json

Key = str | int


@dataclass
class Form:
    """A place in a request's body. `at` steps deeper; all places of one request share one list of faults."""

    path: tuple[Key, ...] = ()
    faults: list[tuple[tuple[Key, ...], str, str]] = field(default_factory=list)

    def at(self, *keys: Key) -> "Form":
        return Form(self.path + keys, self.faults)

    def fault(self, code: str, message: str) -> None:
        self.faults.append((self.path, code, message))

    def close(self) -> None:
        """Raises ApiError 50035 if any fault was found."""
        if not self.faults:
            return
        tree: Json = {}
        for path, code, message in self.faults:
            place = tree
            for key in path:
                place = place.setdefault(str(key), {})
            place.setdefault("_errors", []).append({"code": code, "message": message})
        raise ApiError(50035, tree)

    def _get(self, data: Any, key: str) -> Any:
        if isinstance(data, dict):
            return data.get(key)
        self.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
        return None

    def _given(self, data: Any, key: str, required: bool) -> Any:
        """The value at `key`, or None where it is absent or null: a fault if it is required."""
        value = self._get(data, key)
        if value is None and required:
            self.at(key).fault("BASE_TYPE_REQUIRED", "This field is required")
        return value

    def text(self, data: Any, key: str, low: int, high: int, *, required: bool = False) -> str | None:
        """The string at `key`, or None where it is absent, null or of the wrong kind or length (in characters)."""
        value, here = self._given(data, key, required), self.at(key)
        if value is None:
            return None
        if not isinstance(value, str):
            here.fault("STRING_TYPE_CONVERT", "Could not interpret value as string.")
            return None
        if not low <= len(value) <= high:
            if low == 0:
                here.fault("BASE_TYPE_MAX_LENGTH", f"Must be {high} or fewer in length.")
            else:
                here.fault("BASE_TYPE_BAD_LENGTH", f"Must be between {low} and {high} in length.")
            return None
        return value

    def integer(self, data: Any, key: str, low: int, high: int, *, required: bool = False) -> int | None:
        value, here = self._given(data, key, required), self.at(key)
        if value is None:
            return None
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            here.fault("NUMBER_TYPE_COERCE", f'Value "{value}" is not int.')
            return None
        if value < low:
            here.fault("NUMBER_TYPE_MIN", f"int value should be greater than or equal to {low}.")
            return None
        if value > high:
            here.fault("NUMBER_TYPE_MAX", f"int value should be less than or equal to {high}.")
            return None
        return value

    def choice(self, data: Any, key: str, allowed: Collection[Any], *, required: bool = False) -> Any:
        value = self._given(data, key, required)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str) or value not in allowed:
            listed = ", ".join(str(item) for item in sorted(allowed))
            self.at(key).fault("BASE_TYPE_CHOICES", f"Value must be one of ({listed}).")
            return None
        return value

    def items(self, data: Any, key: str, low: int, high: int, *, required: bool = False) -> list[Any]:
        """The list at `key`, empty where it is absent, null, no list or of the wrong length."""
        value, here = self._given(data, key, required), self.at(key)
        if value is None:
            return []
        if not isinstance(value, list):
            here.fault("LIST_TYPE_CONVERT", "Only iterables may be used in a ListType")
            return []
        if not low <= len(value) <= high:
            here.fault("BASE_TYPE_BAD_LENGTH", f"Must be between {low} and {high} in length.")
            return []
        return value
