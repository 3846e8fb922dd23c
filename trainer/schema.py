"""The base class of the configuration's sections, and the error that they raise. Imports no torch."""

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration is wrong; the text is one sentence that names the key and the fix."""


class Section(BaseModel):
    """A section: its values cannot change, an unknown key or a number that is not finite is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
