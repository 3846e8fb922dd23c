"""The description of a program: where its code is, how it is started, and what it may take. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from trainer.schema import ConfigError, Section
from trainer.yaml_text import read_yaml

CHECKPOINT = "checkpoint"
"""The place in a command of the folder with the checkpoint, as transformers reads it."""
CHECKPOINTS = "checkpoints"
"""The word of a command that stands for the folders of several checkpoints, in the order of steps."""
LONGEST_TEXT = 400
Word = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Parameter(Section):
    """A parameter that a member may set: a number between bounds, one of some choices, or a text.

    A text is a word of its own in the command, and never begins with a dash.
    """

    type: Literal["integer", "number", "choice", "text"]
    default: int | float | str
    least: float | None = None
    most: float | None = None
    choices: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_whole(self) -> "Parameter":
        if self.type in ("integer", "number") and (self.least is None or self.most is None):
            raise ValueError("a number has bounds: give least and most")
        if self.type == "choice" and not self.choices:
            raise ValueError("a choice has choices")
        self.value(str(self.default))
        return self

    def value(self, typed: str) -> str:
        """The value as it stands in the command. Raises ValueError, whose text goes on from the parameter's name."""
        if self.type == "choice":
            if typed not in self.choices:
                raise ValueError(f"is one of {', '.join(self.choices)}, not {typed[:60]!r}")
            return typed
        if self.type == "text":
            if len(typed) > LONGEST_TEXT or not typed.isprintable() or typed.startswith("-"):
                raise ValueError(f"is a line of at most {LONGEST_TEXT} characters that does not begin with a dash")
            return typed
        least, most = self.least or 0, self.most or 0
        pattern = r"-?[0-9]{1,18}" if self.type == "integer" else r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?"
        if not re.fullmatch(pattern, typed) or not least <= float(typed) <= most:
            kind = "a whole number" if self.type == "integer" else "a number"
            raise ValueError(f"is {kind} from {least:g} to {most:g}, not {typed[:60]!r}")
        return typed


class Program(Section):
    """A program: a commit of a git repository, the lock file of its environment, and the command that starts it there.

    In the words of the `command`, `{checkpoint}` stands for the folder of a checkpoint, and `{name}` for the value of
    a parameter; the word `{checkpoints}` becomes a word for each of several checkpoints. `python` as the first word is
    that of the environment. It has `gpus` GPUs or cores, `disk_gib` GiB for what it writes, and at most `time_limit`
    unless a member says less or more.
    """

    repository: Annotated[str, StringConstraints(pattern=r"^(https|file)://[^\s@?#]{1,300}$")]
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    lock: Annotated[str, StringConstraints(pattern=r"^[\w./-]{1,200}$")] = "uv.lock"
    command: Annotated[list[Word], Field(min_length=1, max_length=100)]
    parameters: dict[Name, Parameter] = Field(default_factory=dict)
    gpus: Annotated[int, Field(ge=1, le=1024)] = 1
    time_limit: Annotated[str, StringConstraints(max_length=20)] = "1h"
    disk_gib: Annotated[float, Field(gt=0, le=10_000)] = 10

    @field_validator("lock")
    @classmethod
    def _is_inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/") or not value.endswith((".lock", ".txt")):
            raise ValueError("lock is uv.lock, or a file of requirements with hashes (.txt), in the repository")
        return value

    @model_validator(mode="after")
    def _places_are_known(self) -> "Program":
        for word in self.command:
            if f"{{{CHECKPOINTS}}}" in word and word != f"{{{CHECKPOINTS}}}":
                raise ValueError(f"{{{CHECKPOINTS}}} is a word of its own in the command, not a part of {word[:60]!r}")
        for place in self.places:
            if place not in (CHECKPOINT, CHECKPOINTS) and place not in self.parameters:
                raise ValueError(f"the command has {{{place}}}, and there is no parameter {place}")
        for name in self.parameters:
            if name in (CHECKPOINT, CHECKPOINTS) or name not in self.places:
                raise ValueError(f"the command has no {{{name}}}, which is a parameter")
        return self

    @property
    def reads_several(self) -> bool:
        """Whether it may be given more than one checkpoint."""
        return CHECKPOINTS in self.places and CHECKPOINT not in self.places

    @property
    def places(self) -> list[str]:
        """The names in braces in the command, in order."""
        return [name for word in self.command for name in re.findall(r"\{([^{}]*)\}", word)]

    def values(self, typed: Mapping[str, str]) -> dict[str, str]:
        """The value of each parameter, by what was typed. Raises ConfigError."""
        for name in typed:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise ConfigError(f"There is no parameter {name[:60]!r}; the parameters are: {known}.")
        found = {}
        for name, parameter in self.parameters.items():
            try:
                found[name] = parameter.value(typed.get(name, str(parameter.default)))
            except ValueError as error:
                raise ConfigError(f"{name} {error}.") from error
        return found

    def words(self, values: Mapping[str, str], checkpoints: Sequence[str] = ()) -> list[str]:
        """The command with the values, and the folders of checkpoints, in their places. Raises ConfigError where it
        reads a checkpoint and has none, or several where it reads one."""
        if {CHECKPOINT, CHECKPOINTS}.intersection(self.places) and not checkpoints:
            raise ConfigError("The program reads a checkpoint; give --checkpoint its folder.")
        if len(checkpoints) > 1 and not self.reads_several:
            raise ConfigError("The program reads one checkpoint; give --checkpoint once.")
        known = dict(values) | ({CHECKPOINT: checkpoints[0]} if checkpoints else {})
        words: list[str] = []
        for word in self.command:
            if word == f"{{{CHECKPOINTS}}}":
                words += checkpoints
            else:
                words.append(re.sub(r"\{([^{}]*)\}", lambda found: known[found[1]], word))
        return words


class Order(Section):
    """A program as one run has it: with the values of its parameters."""

    name: str
    program: Program
    parameters: dict[str, str] = Field(default_factory=dict)
    steps: list[int] = Field(default_factory=list)


def read(text: str) -> Program:
    """The description in a YAML text; raises ConfigError."""
    return parse(read_yaml(text, "The program"))


def parse(values: Any) -> Program:
    """The description with these values; raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError("A program is described by keys such as repository, commit and command.")
    try:
        return Program.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
        if first["type"] == "string_pattern_mismatch" and place in HOW:
            said = HOW[place]
        sentence = f"{place}: {said}" if place else said
        raise ConfigError(f"The program is not right: {sentence}.") from None


def dump(program: Program) -> str:
    """The description as YAML, with every default spelt out."""
    return yaml.safe_dump(program.model_dump(), sort_keys=False, allow_unicode=True)


HOW = {
    "repository": "a repository is an address like https://github.com/owner/name, without a user, a token or options",
    "commit": "a program is taken at a commit: give its 40 hexadecimal digits, not a branch or a tag",
}
"""What would be right for a key whose pattern says little to people."""
