"""The trainer's configuration: one schema, its recipes, and the fields a member may override. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

RECIPES = Path(__file__).parent / "recipes"

OVERRIDES: Mapping[str, str] = {
    "steps": "training.steps",
    "learning_rate": "optimizer.learning_rate",
    "warmup": "optimizer.warmup_ratio",
    "seed": "training.seed",
    "batch": "training.batch",
    "micro_batch": "training.micro_batch",
    "sequence_length": "data.sequence_length",
}
"""The short names a member may override, and the key each one sets."""

SourceName = Literal["python-docs", "python-stdlib"]


class ConfigError(ValueError):
    """The configuration is wrong; the text is one sentence that names the key and the fix."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The shape of a GPT-NeoX transformer."""

    layers: int = Field(ge=1, le=512)
    hidden_size: int = Field(ge=8, le=65536)
    heads: int = Field(ge=1, le=1024)
    rotary_pct: float = Field(default=0.25, gt=0, le=1)
    rotary_base: float = Field(default=10_000.0, gt=1)
    parallel_residual: bool = True
    activation: Literal["gelu-tanh", "gelu-erf"] = "gelu-tanh"
    layer_norm_eps: float = Field(default=1e-5, gt=0)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def rotary_size(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_size * self.rotary_pct)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"model.hidden_size ({self.hidden_size}) must be a multiple of model.heads ({self.heads})."
            )
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"model.rotary_pct ({self.rotary_pct}) must rotate an even number of a head's {self.head_size} "
                f"dimensions, not {self.rotary_size}."
            )
        return self


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer, trained on the first `train_bytes` of the sources."""

    vocabulary: int = Field(ge=320, le=262_144)
    train_bytes: int = Field(default=2_000_000, ge=1_000)


class SourceConfig(Section):
    """A source of text. The licence is an SPDX identifier."""

    name: SourceName
    weight: float = Field(gt=0)
    licence: str = Field(min_length=1)
    max_bytes: int = Field(ge=1_000)


class DataConfig(Section):
    """`held_out` is the share of the documents that is kept for evaluation."""

    sequence_length: int = Field(ge=8, le=1_048_576)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    tokenizer: TokenizerConfig
    sources: list[SourceConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _sources_differ(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"data.sources names {name} twice; give it once, with its whole weight.")
        return self


class OptimizerConfig(Section):
    """AdamW under a cosine from `learning_rate` to `min_ratio` of it, after a linear warm-up."""

    learning_rate: float = Field(gt=0, le=1)
    min_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.01, ge=0, lt=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)


class TrainingConfig(Section):
    """`batch` counts the sequences of a step over all ranks, `micro_batch` those that a rank computes at once."""

    steps: int = Field(ge=1, le=10_000_000)
    batch: int = Field(ge=1, le=1_048_576)
    micro_batch: int = Field(ge=1, le=65_536)
    seed: int = Field(default=1234, ge=0, lt=2**63)
    log_every: int = Field(default=1, ge=1)
    evaluate_every: int = Field(default=1_000, ge=1)
    evaluation_tokens: int = Field(default=8_192, ge=8)

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"training.micro_batch ({self.micro_batch}) must divide training.batch ({self.batch}) evenly."
            )
        return self


class CheckpointsConfig(Section):
    """Steps 0, 1, 2, 4, … up to `log_until`, then every `every` steps, and the last."""

    log_until: int = Field(default=512, ge=0)
    every: int = Field(default=1_000, ge=1)


class ParallelConfig(Section):
    zero_stage: Literal[1] = 1


class TrainConfig(Section):
    """Everything that decides a run's weights."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    parallel: ParallelConfig = ParallelConfig()

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: the tokenizer's vocabulary, padded to a multiple of 128."""
        return -(-self.data.tokenizer.vocabulary // 128) * 128

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch * self.data.sequence_length

    def accumulation(self, ranks: int) -> int:
        """Micro-batches that each of `ranks` computes in a step.

        Raises ConfigError if the batch does not split evenly over them.
        """
        together = self.training.micro_batch * ranks
        if self.training.batch % together:
            raise ConfigError(
                f"training.batch ({self.training.batch}) must be a multiple of training.micro_batch × GPUs "
                f"({self.training.micro_batch} × {ranks}); change one of the three."
            )
        return self.training.batch // together

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Self:
        if self.training.evaluation_tokens < self.data.sequence_length * len(self.data.sources):
            raise ValueError(
                f"training.evaluation_tokens ({self.training.evaluation_tokens}) must hold at least one sequence of "
                f"{self.data.sequence_length} tokens for each of the {len(self.data.sources)} sources."
            )
        return self


def load(path: Path) -> TrainConfig:
    """Read a configuration from a YAML file. Raises ConfigError."""
    return _validate(_read(path))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yml"))


def load_recipe(name: str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """A recipe of this package by its name, with some of OVERRIDES set. Raises ConfigError."""
    if name not in recipe_names():
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(recipe_names())}.")
    values = _read(RECIPES / f"{name}.yml")
    for short, value in (overrides or {}).items():
        if short not in OVERRIDES:
            raise ConfigError(f"{short!r} may not be overridden; what may be is {', '.join(OVERRIDES)}.")
        section, key = OVERRIDES[short].split(".")
        values.setdefault(section, {})[key] = value
    return _validate(values, {OVERRIDES[short]: short for short in overrides or {}})


def dump(config: TrainConfig) -> str:
    """The configuration as YAML, every default spelt out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The configuration {path} cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ConfigError(f"The configuration {path} is not valid YAML{where}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration {path} must hold sections such as model and data.")
    return values


def _validate(values: dict[str, Any], names: Mapping[str, str] | None = None) -> TrainConfig:
    """Check against the schema; `names` gives the short name to use for a dotted key in the error."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error.errors()[0], names or {})) from None


def _sentence(error: ErrorDetails, names: Mapping[str, str]) -> str:
    """One of pydantic's errors in one sentence."""
    dotted = ".".join(str(part) for part in error["loc"])
    key = names.get(dotted, dotted)
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            section = _section(error["loc"][:-1])
            return f"{key} is not a key of the configuration; {section}."
        case "missing" | "string_too_short" if error["loc"][-1] == "licence":
            return f"{key} is missing; a source is used only with its licence, an SPDX identifier such as PSF-2.0."
        case "missing":
            return f"{key} is missing; add it."
    must = error["msg"].replace("Input should", "must", 1).replace("must be less", "must be a number less")
    must = must.replace("must be greater", "must be a number greater").split(", unable")[0]
    return f"{key} {must}, not {str(error['input'])[:60]!r}."


def _section(location: Sequence[int | str]) -> str:
    """The keys of the section at `location`, as a clause."""
    model: type[BaseModel] = TrainConfig
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0]
    return f"the keys {'there' if location else 'at the top'} are {', '.join(model.model_fields)}"
