"""The base class of the configuration's sections, and the error that they raise. Imports no torch."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class ConfigError(ValueError):
    """The configuration is wrong; the text is one sentence that names the key and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(as_unicode(message))


class Section(BaseModel):
    """A section: its values cannot change; an unknown key, a number that is not finite, and a boolean in the place of a
    number are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        has_boolean = any(isinstance(part, bool) for part in parts)
        if has_boolean and _takes(cls.model_fields[str(info.field_name)].annotation) & {int, float}:
            raise PydanticCustomError("number", "Input should be a number")
        return value


def _takes(annotation: Any) -> set[Any]:
    """The types that an annotation is made of; of a Literal, those of its values."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}.union(*map(_takes, get_args(annotation)))


def check_readable(folder: Path) -> None:
    """Raise ConfigError where a folder's name is not UTF-8: the library for safetensors cannot open such a file."""
    if as_unicode(str(folder.absolute())) != str(folder.absolute()):
        raise ConfigError(f"The name of the folder {folder} is not UTF-8; rename it.")


def as_unicode(text: str) -> str:
    """A text in which bytes of file names that are not UTF-8, which Python keeps as half surrogate pairs, are
    escapes such as \\xe9."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
