"""Every setting of Stoa, read once from the environment (names prefixed `STOA_`) and from `.env`."""

import hashlib
import os
import re
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

SCHEMES = {
    "database_url": ("postgresql+psycopg", "sqlite"),
    "redis_url": ("redis", "rediss", "redis+socket"),
    "discord_api": ("https", "http"),
    "discord_gateway": ("wss", "ws"),
    "hub_endpoint": ("https", "http"),
    "store_endpoint": ("https", "http"),
}
"""How the addresses among the settings may begin."""
STORES = ("s3", "gs", "hf", "file")
"""The object stores that come with Stoa; others are those that fsspec knows and that are installed."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SECRET = frozenset({"discord_token", "hub_token", "database_url", "redis_url", "store_key", "store_secret"})
"""Settings that are or may hold secrets: no message shows them, and each process is given only those that it needs."""


class SettingsError(ValueError):
    """A setting is wrong; the sentence names it and says what would be right."""


AN_ID = 1042391021733249054
Snowflake = Annotated[int, Field(ge=0, lt=2**63)]
"""An id of Discord's; 0 where it is not set."""


class Settings(BaseSettings):
    """The settings of one installation. An empty string counts as not set."""

    model_config = SettingsConfigDict(env_prefix="STOA_", extra="ignore", env_ignore_empty=True, allow_inf_nan=False)

    home: Path = Field(Path("var"), description="Folder for the embedded database, queue, run folders and logs.")
    database_url: str = Field("", description="postgresql+psycopg://…; SQLite in the home folder when not set.")
    redis_url: str = Field("", description="redis://…; an embedded Valkey when not set.")

    host_name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,60}$",
        description="The name that this host keeps, on which workers run; the machine's own when not set.",
    )

    discord_token: SecretStr = SecretStr("")
    discord_api: str = Field("", description="Another base of Discord's REST API, such as the sandbox's.")
    discord_gateway: str = Field("", description="Another gateway, such as the sandbox's.")
    guild_id: Snowflake = 0
    proposals_channel_id: Snowflake = 0
    review_channel_id: Snowflake = 0
    announcements_channel_id: Snowflake = 0
    record_channel_id: Snowflake = 0
    reviewer_role_id: Snowflake = 0
    admin_role_id: Snowflake = Field(0, description="Who holds this role may redact, ban and manage; 0: nobody.")
    moderator_role_id: Snowflake = 0

    hub_endpoint: str = "https://huggingface.co"
    hub_token: SecretStr = SecretStr("")
    hub_namespace: str = Field("", description="The user or organisation of the Hub that checkpoints go to.")

    publish_retry_seconds: float = Field(
        5, gt=0, le=600, description="Pause after a checkpoint that the Hub did not take; it doubles up to ten minutes."
    )
    keep_checkpoints: int = Field(
        2, ge=1, le=1_000_000, description="Published checkpoints of a run that stay on the disk."
    )
    keep_copies_days: float = Field(
        14, ge=0, le=36_500, description="Days that a copy of a corpus stays on a host that no run needs any more."
    )
    disk_floor_gib: float = Field(
        5, ge=0, le=1_000_000_000_000, description="Free space in the home folder below which runs pause."
    )

    store: str = Field(
        "",
        description="An object store that all hosts reach, for checkpoints, data and logs: s3://bucket/prefix, "
        "gs://bucket/prefix, hf://buckets/owner/bucket or file:///folder.",
    )
    store_endpoint: str = Field("", description="The address of an S3 server that is not Amazon's.")
    store_key: SecretStr = Field(SecretStr(""), description="The store's access key.")
    store_secret: SecretStr = Field(SecretStr(""), description="The store's secret key; of hf:// the token.")

    store_keep: str = Field(
        "needed",
        pattern="^(needed|all)$",
        description="Which checkpoints stay in the store once they are on the Hub: those that are needed, or all.",
    )

    machines_address: str = Field(
        "",
        description="Where the API for donated machines listens, such as 127.0.0.1:8440; unset, there is no API.",
    )
    machines_certificate: str = Field(
        "", description="The API's TLS certificate, a file; without one it is loopback's."
    )
    machines_key: str = Field("", description="The file with the key of that certificate.")

    programs_python: str = Field(
        "", description="The interpreter that other people's programs build on; the worker's own when not set."
    )
    programs_provides: str = Field(
        "",
        description="Packages that this interpreter gives in place of a program's lock: torch nvidia-* triton.",
    )

    min_people: int = Field(2, ge=1, le=1_000, description="People a project needs before it gets its own channel.")
    lease_seconds: float = Field(
        30, gt=0, le=86_400, description="How long a supervisor, publisher or sender owns its work unrenewed."
    )
    stop_grace_seconds: float = Field(
        60, gt=0, le=86_400, description="Time a trainer has between SIGTERM and SIGKILL."
    )
    outage_seconds: float = Field(
        86_400,
        ge=0,
        le=8_640_000,
        description="How long a trainer goes on while its host cannot reach the database; another host waits as long.",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=1_000,
        description="Attempts in a row that a run may fail before it fails for good.",
    )
    tick_seconds: float = Field(
        1, gt=0, le=3_600, description="Pause between two rounds of the scheduler and of the delivery."
    )
    picture_seconds: float = Field(
        15, gt=0, le=86_400, description="Least time between two pictures of one run's card."
    )
    worker_concurrency: int = Field(2, ge=1, le=1_024)

    @field_validator(*SCHEMES)
    @classmethod
    def _is_an_address(cls, value: str, info: ValidationInfo) -> str:
        """Raise ValueError for an address that does not begin as it must, or that cannot be read."""
        schemes = SCHEMES[info.field_name or ""]
        scheme, separator, place = value.partition("://")
        if value and not (separator and scheme in schemes and place):
            wrong = f", not {scheme[:20]}://" if separator and scheme not in schemes else ""
            raise ValueError(f"must begin with {' or '.join(f'{each}://' for each in schemes)}{wrong}")
        if value and info.field_name == "database_url":
            from sqlalchemy import make_url  # what has no database, such as a pod, need not wait for it
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(value)
            except (ArgumentError, ValueError):
                raise ValueError("must be like postgresql+psycopg://user:password@host:5432/stoa") from None
        elif value and not all(map(_is_complete, value.split(";"))):  # Celery takes several servers of Redis
            like = f"{schemes[0]}://user:password@host:6379/0" if scheme.startswith("redis") else f"{scheme}://host:443"
            raise ValueError(f"must be like {like}")
        return value

    @field_validator("store")
    @classmethod
    def _is_a_store(cls, value: str) -> str:
        """Raise ValueError for an address that names no place in an object store, or that holds a password."""
        scheme, separator, place = value.partition("://")
        if not value:
            return value
        if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not place.strip("/"):
            raise ValueError("must be like s3://bucket/prefix, gs://bucket/prefix, hf://buckets/… or file:///folder")
        if "@" in place or "?" in place:
            raise ValueError("must hold no key, name or option; STOA_STORE_KEY and STOA_STORE_SECRET are for these")
        if scheme not in STORES and not _is_known_to_fsspec(scheme):
            raise ValueError(f"must begin with {', '.join(f'{each}://' for each in STORES)} or another of fsspec's")
        if scheme == "file" and not place.startswith("/"):
            raise ValueError("must name a folder by its whole path, as file:///srv/store does")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _machines_are_heard_in_private(self) -> "Settings":
        """Raise ValueError where the API for donated machines would send secrets in the clear, or cannot listen."""
        if not self.machines_address:
            return self
        place = re.fullmatch(r"([\w.:-]+|\[[0-9a-f:]+\]):([0-9]{1,5})", self.machines_address, re.ASCII)
        if place is None or not 0 < int(place[2]) < 65_536:
            raise ValueError("STOA_MACHINES_ADDRESS must be like 127.0.0.1:8440")
        if bool(self.machines_certificate) != bool(self.machines_key):
            raise ValueError("STOA_MACHINES_CERTIFICATE and STOA_MACHINES_KEY go together: set both, or neither")
        if not self.machines_certificate and place[1] not in LOOPBACK:
            raise ValueError("STOA_MACHINES_ADDRESS must be on 127.0.0.1 unless STOA_MACHINES_CERTIFICATE is set")
        return self

    @model_validator(mode="after")
    def _absolute_home(self) -> "Settings":
        self.home = self.home.resolve()
        return self

    @property
    def missing(self) -> list[str]:
        """The environment variables that a server needs and that are not set."""
        return [f"STOA_{name.upper()}" for name in ("discord_token", "guild_id") if not getattr(self, name)]

    @property
    def database(self) -> str:
        """SQLAlchemy's URL of the database: `database_url`, or else SQLite in the home folder."""
        return self.database_url or f"sqlite:///{self.home / 'stoa.db'}"

    @property
    def runs_dir(self) -> Path:
        """The folder of the runs' folders, `{id}/attempt-{token}/`."""
        return self.home / "runs"

    @property
    def data_dir(self) -> Path:
        """The folder of the data that runs prepare, `{recipe}/{run}-{token}/`."""
        return self.home / "data"

    @property
    def programs_dir(self) -> Path:
        """The folder of the environments of other people's programs, `{hash}/`."""
        return self.home / "programs"

    @property
    def corpora_dir(self) -> Path:
        """The folder of the corpora that this host has copied from the store, `{name}-{hash}/`."""
        return self.home / "corpora"

    @cached_property
    def valkey_socket(self) -> Path:
        """The embedded Valkey's socket, in a folder with a short path: a socket's path has at most 107 bytes."""
        name = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"stoa-{os.getuid()}-{name}" / "valkey.sock"

    @property
    def celery_broker_url(self) -> str:
        """The URL of Celery's broker: `redis_url`, or else the embedded Valkey."""
        return self.redis_url or f"redis+socket://{self.valkey_socket}"


def _is_complete(address: str) -> bool:
    """Whether an address can be read: its port is a number that there is, and so is the database of a Redis."""
    try:
        parts = urlsplit(address)
        port_is_known = parts.port != 0
    except ValueError:
        return False
    database = parts.path.strip("/") if parts.scheme in ("redis", "rediss") else ""
    return port_is_known and (not database or (database.isascii() and database.isdigit()))


def _is_known_to_fsspec(scheme: str) -> bool:
    from fsspec import available_protocols  # imports asyncio and more, which no process needs without such a store

    return scheme in available_protocols()


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings, read once. `STOA_ENV_FILE` names a file to read instead of `.env`; empty, no file is read.

    Raises SettingsError.
    """
    file = os.environ.get("STOA_ENV_FILE", ".env")
    if "STOA_ENV_FILE" in os.environ and file and not Path(file).is_file():
        raise SettingsError(f"STOA_ENV_FILE names no file: {file}; correct it, or leave it out.")
    try:
        return Settings(_env_file=file or None)
    except ValidationError as error:
        wrong = "; ".join(_sentence(found, file) for found in error.errors())
        raise SettingsError(f"A setting is wrong, here or in .env: {wrong}.") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"The settings in {file} cannot be read: {error}.") from None


def _sentence(error: ErrorDetails, file: str) -> str:
    """What is wrong with a setting and in which line of the `file`, without the value of one that is a secret."""
    name = str(error["loc"][0]) if error["loc"] else "STOA_"
    must = error["msg"].removeprefix("Value error, ").replace("Input should", "must", 1).partition(", unable")[0]
    if not error["loc"] and must.startswith("STOA_"):
        return must
    if error["type"] == "int_parsing_size":
        must = "must be a valid integer"
    elif name == "host_name":
        must = "must be up to 60 letters, digits, dots, dashes and underscores"
    hidden = name in SECRET or name in SCHEMES or name == "store" or not error["loc"]
    value = "" if hidden else f", not {str(error['input'])[:60]!r}"
    example = f"; an id is written like {AN_ID}" if name.endswith("_id") and error["type"] == "int_parsing" else ""
    return f"STOA_{name.upper()}{_line(name, file)} {must}{value}{example}"


def _line(name: str, file: str) -> str:
    """Where a setting stands in a file, as words after its name; empty where it comes from the environment."""
    variable = f"STOA_{name.upper()}"
    if variable in map(str.upper, os.environ) or not Path(file).is_file():
        return ""
    lines = Path(file).read_text(errors="replace").splitlines()
    named = [number for number, line in enumerate(lines, 1) if line.partition("=")[0].split()[-1:] == [variable]]
    return f" in line {named[-1]} of {file}" if named else ""
