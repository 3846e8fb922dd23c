"""What every section of the configuration is made of, and the error it raises. Imports no torch."""

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration is wrong; the text is one sentence that names the key and the fix."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
