"""The trainer's configuration: one schema, its recipes, and the keys that a member may override. Imports no torch."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from trainer import stages as stages_of
from trainer.data.config import DataConfig, mixture_weights
from trainer.model.config import ModelConfig
from trainer.schema import ConfigError as ConfigError
from trainer.schema import Section
from trainer.stages import MOST_STEPS, StageConfig
from trainer.tuning_config import DpoConfig, LoraConfig
from trainer.yaml_text import read_yaml as read_yaml

RECIPES = Path(__file__).parent / "recipes"
VERSION = 1
"""The version of this schema."""

OVERRIDES: Mapping[str, str] = {
    "steps": "training.steps",
    "learning_rate": "optimizer.learning_rate",
    "warmup": "optimizer.warmup_ratio",
    "seed": "training.seed",
    "batch": "training.batch",
    "micro_batch": "training.micro_batch",
    "sequence_length": "data.sequence_length",
    "precision": "training.precision",
}
"""Short names of the keys that a member may override, and the keys."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019). The learning rate rises linearly to `learning_rate` over `warmup_ratio` of the
    steps, then falls along a cosine to `min_ratio` of it; `trainer.lr_schedule` has the formula.

    `clip` is the norm that the whole gradient is clipped to; `weight_decay` is not applied to biases and norms.
    """

    learning_rate: float = Field(gt=0, le=1)
    min_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.01, ge=0, lt=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=1e6)
    clip: float = Field(default=1.0, gt=0, le=1e9)


Precision = Literal["fp32", "bf16", "fp16"]


class LossScaleConfig(Section):
    """Of the dynamic loss scaling in fp16 (`trainer.engine.loss_scale`): the `initial` scale, a power of two, which
    doubles after `growth_interval` steps without an overflow. The defaults are those of torch.amp.GradScaler."""

    initial: float = Field(default=65_536.0, ge=1, le=2.0**127)
    growth_interval: int = Field(default=2_000, ge=1, le=MOST_STEPS)

    @model_validator(mode="after")
    def _is_a_power_of_two(self) -> Self:
        if math.frexp(self.initial)[0] != 0.5:
            raise ValueError(f"training.loss_scale.initial ({self.initial:g}) must be a power of two, such as 65536.")
        return self


class TrainingConfig(Section):
    """`batch` counts the sequences of a step over all ranks, `micro_batch` those that a rank computes at once.

    `precision` is that of the matrix products; master weights, moments and sums are always fp32. fp16 is for GPUs
    without bf16, such as the V100; the loss is then scaled by `loss_scale`, and steps that overflow are skipped.
    `recompute` computes the activations of a block again in the backward pass, which saves memory and costs a third
    more compute. `compile` pays in runs of more than a few minutes. A loss more than `spike` standard deviations above
    its running mean becomes an event. `peak_tflops` is the peak of one device, for MFU; common GPUs' are known, and
    others' are measured.
    """

    steps: int = Field(ge=1, le=MOST_STEPS)
    batch: int = Field(ge=1, le=1_048_576)
    micro_batch: int = Field(ge=1, le=65_536)
    seed: int = Field(default=1234, ge=0, lt=2**63)
    precision: Precision = "fp32"
    loss_scale: LossScaleConfig = LossScaleConfig()
    recompute: bool = False
    compile: bool = False
    log_every: int = Field(default=1, ge=1, le=MOST_STEPS)
    evaluate_every: int = Field(default=1_000, ge=1, le=MOST_STEPS)
    evaluation_tokens: int = Field(default=8_192, ge=8, le=2**40)
    spike: float = Field(default=6.0, gt=0, le=1e9)
    peak_tflops: float | None = Field(default=None, ge=1e-6, le=1e6)

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"training.micro_batch ({self.micro_batch}) must divide training.batch ({self.batch}) evenly."
            )
        return self


class CheckpointsConfig(Section):
    """Checkpoints at steps 0, 1, 2, 4, … up to `log_until`, then every `every` steps, at the steps in `at`, and at the
    last step.

    A lab publishes the optimizer's state too of the steps in `keep_state`, and of each multiple of `keep_state_every`
    that is saved, unless that is 0.
    """

    log_until: int = Field(default=512, ge=0, le=MOST_STEPS)
    every: int = Field(default=1_000, ge=1, le=MOST_STEPS)
    at: tuple[Annotated[int, Field(ge=0, le=MOST_STEPS)], ...] = ()
    keep_state: tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...] = ()
    keep_state_every: int = Field(default=0, ge=0, le=MOST_STEPS)

    def keeps_state(self, step: int) -> bool:
        """Whether the optimizer's state of a saved step is published; step 0 has none."""
        every = self.keep_state_every
        return step in self.keep_state or (step > 0 and every > 0 and step % every == 0)

    def is_due(self, step: int, last: int) -> bool:
        """Whether a run of `last` steps saves at `step`; at step 0, before the first step, every run does."""
        if step in (0, last, *self.at, *self.keep_state):
            return True
        if step <= self.log_until:
            return step & (step - 1) == 0
        return step % self.every == 0

    def first_after(self, step: int, last: int) -> int:
        """The first step after `step` at which a run of `last` steps saves."""
        power = 1 << step.bit_length()
        multiple = (max(step, self.log_until) // self.every + 1) * self.every
        named = [at for at in (*self.at, *self.keep_state) if at > step]
        return min([last, multiple, *named, *([power] if power <= self.log_until else [])])


class ParallelConfig(Section):
    """`pipeline` counts the stages of the pipeline, `tensor` the ranks that share each matrix; the number of ranks
    divided by both is that of the data-parallel ranks.

    `zero_stage` is what data-parallel ranks split among them: at 1 the optimizer's state, at 2 gradients too, at 3
    weights too (Rajbhandari et al. 2020, ZeRO).
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    pipeline: int = Field(default=1, ge=1, le=512)
    tensor: int = Field(default=1, ge=1, le=1024)

    @model_validator(mode="after")
    def _stage_fits_pipeline(self) -> Self:
        if self.pipeline > 1 and self.zero_stage > 1:
            raise ValueError(
                f"parallel.zero_stage ({self.zero_stage}) splits what a pipeline needs whole; use 1, or "
                "parallel.pipeline 1."
            )
        return self


class TrainConfig(Section):
    """Everything that decides a run's weights. A run of `stages` is described at StageConfig; most runs have none.

    A run that has a `base`, RUN@STEP, starts at step 0 from the weights of that step, with its tokenizer.
    """

    version: int = Field(default=VERSION, ge=1, le=VERSION, strict=True)
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    parallel: ParallelConfig = ParallelConfig()
    # Left out where there are none, so that the dump of such a run is what it was before there were stages.
    stages: list[StageConfig] = Field(default=[], exclude_if=lambda stages: not stages)

    base: str | None = Field(default=None, min_length=1, exclude_if=lambda base: base is None)
    lora: LoraConfig | None = Field(default=None, exclude_if=lambda lora: lora is None)
    dpo: DpoConfig | None = Field(default=None, exclude_if=lambda dpo: dpo is None)

    @property
    def tunes(self) -> bool:
        """Whether the run is one of `trainer.engine.tuning`: on examples, or with adapters."""
        return self.data.kind != "text" or self.lora is not None

    @property
    def keeps_base(self) -> bool:
        """Whether the run needs the weights of its base for as long as it lasts."""
        return self.data.kind == "preferences" or self.lora is not None

    @property
    def stage_ends(self) -> list[int]:
        """The last step of each stage."""
        return stages_of.ends(self.stages)

    @property
    def saves(self) -> CheckpointsConfig:
        """When the run saves: at its `checkpoints`, and at the end of each stage."""
        at = (*self.checkpoints.at, *self.stage_ends)
        return self.checkpoints.model_copy(update={"at": at}) if self.stages else self.checkpoints

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: `model.vocabulary`, or the tokenizer's vocabulary padded to a multiple of 128."""
        return self.model.vocabulary or -(-self.data.tokenizer.vocabulary // 128) * 128

    @property
    def context(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return self.model.context or self.data.sequence_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all ranks."""
        return self.training.batch * self.data.sequence_length * (2 if self.data.kind == "preferences" else 1)

    def data_ranks(self, ranks: int, nodes: int = 1) -> int:
        """The number of data-parallel ranks among `ranks`, of which each of the nodes has the same number.

        Raises ConfigError if the layout or the batch does not fit. Ranks that share matrices are on one node, as each
        layer waits several times for what they send one another.
        """
        if ranks % nodes:
            raise ConfigError(f"The number of ranks ({ranks}) must be a multiple of the nodes ({nodes}).")
        if nodes > 1 and ranks // nodes % self.parallel.tensor:
            raise ConfigError(
                f"parallel.tensor ({self.parallel.tensor}) must divide the ranks of a node ({ranks // nodes}), as "
                "ranks that share matrices are on one node; change one of the two."
            )
        together = self.parallel.pipeline * self.parallel.tensor
        if ranks % together:
            raise ConfigError(
                f"parallel.pipeline × parallel.tensor ({self.parallel.pipeline} × {self.parallel.tensor}) must divide "
                f"the number of ranks ({ranks}); change one of the three."
            )
        self.accumulation(ranks // together)
        return ranks // together

    def accumulation(self, data_ranks: int) -> int:
        """Micro-batches of each data-parallel rank in a step. Raises ConfigError if the batch does not split evenly."""
        together = self.training.micro_batch * data_ranks
        if self.training.batch % together:
            raise ConfigError(
                f"training.batch ({self.training.batch}) must be a multiple of training.micro_batch × data-parallel "
                f"ranks ({self.training.micro_batch} × {data_ranks}); change one of the three."
            )
        return self.training.batch // together

    @model_validator(mode="before")
    @classmethod
    def _version_is_known(cls, values: Any) -> Any:
        """Runs before all other checks, as a newer version may have keys that are unknown here."""
        version = str(values.get("version")) if isinstance(values, Mapping) else ""
        if version.isdecimal() and int(version) > VERSION:
            raise ValueError(
                f"version is {version[:20]}, and this trainer reads configurations up to {VERSION}; use a newer "
                "trainer."
            )
        return values

    @model_validator(mode="before")
    @classmethod
    def _named_weights_are_spelt_out(cls, values: Any) -> Any:
        """Replace a stage's name of weights by those that the mixture of the data has under it."""
        stages = values.get("stages") if isinstance(values, Mapping) else None
        if not isinstance(stages, list):
            return values
        data = values.get("data")
        name = data.get("mixture") if isinstance(data, Mapping) else None
        spelt_out = [
            stage | {"weights": mixture_weights(name, stage["weights"])}
            if isinstance(stage, dict) and isinstance(stage.get("weights"), str)
            else stage
            for stage in stages
        ]
        return {**values, "stages": spelt_out}

    @field_validator("stages", mode="after")
    @classmethod
    def _stages_fit(cls, stages: list[StageConfig], info: ValidationInfo) -> list[StageConfig]:
        """The stages with the steps that training.steps gives them."""
        data, training = info.data.get("data"), info.data.get("training")
        if not stages or data is None or training is None:  # what is wrong with these is said first
            return stages
        if len(stages) == 1:
            raise ValueError("stages has one stage; give two or more, or leave stages out.")
        if training.steps < len(stages):
            raise ValueError(
                f"training.steps ({training.steps}) must be at least the number of stages ({len(stages)}): each has a "
                "step."
            )
        names = [source.name for source in data.sources]
        for number, stage in enumerate(stages):
            if stage.weights is None:
                continue
            for name in stage.weights:
                if name not in names:
                    near = _near(name, names)
                    raise ValueError(f"stages.{number}.weights has {name}, which is no source of data.sources{near}.")
            if data.sources[0].epochs is not None:
                raise ValueError(f"stages.{number}.weights needs data.sources by weight, and they are by epochs.")
            if data.order == "stored":
                raise ValueError(
                    f"stages.{number}.weights mixes the sources, and data.order is stored; take out one of the two."
                )
        return stages_of.scaled(stages, training.steps)

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Self:
        if self.training.evaluation_tokens < self.data.sequence_length * len(self.data.sources):
            raise ValueError(
                f"training.evaluation_tokens ({self.training.evaluation_tokens}) must hold at least one sequence of "
                f"{self.data.sequence_length} tokens for each of the {len(self.data.sources)} sources."
            )
        return self

    @model_validator(mode="after")
    def _model_holds_the_data(self) -> Self:
        if self.vocabulary < self.data.tokenizer.vocabulary:
            raise ValueError(
                f"model.vocabulary ({self.vocabulary}) must be at least data.tokenizer.vocabulary "
                f"({self.data.tokenizer.vocabulary})."
            )
        if self.context < self.data.sequence_length:
            raise ValueError(
                f"model.context ({self.context}) must be at least data.sequence_length ({self.data.sequence_length})."
            )
        return self

    @model_validator(mode="after")
    def _tuning_fits(self) -> Self:
        if self.dpo is not None and self.data.kind != "preferences":
            raise ValueError(f"dpo needs data of preferences, and data.kind is {self.data.kind}; take out dpo.")
        if self.keeps_base and self.base is None:
            what = "data of preferences need" if self.lora is None else "lora needs"
            raise ValueError(f"{what} a base; add one, such as base: runs/a@100.")
        if self.lora is not None and "mlp.gate" in self.lora.targets and self.model.activation != "swiglu":
            raise ValueError(
                f"lora.targets has mlp.gate, which a model of {self.model.activation} has not; take it out."
            )
        if not self.tunes:
            return self
        what = "lora trains" if self.data.kind == "text" else f"data of {self.data.kind} are trained on"
        for key, has, limit in (
            ("parallel.pipeline", self.parallel.pipeline, 1),
            ("parallel.tensor", self.parallel.tensor, 1),
            ("parallel.zero_stage", self.parallel.zero_stage, 1),
        ):
            if has > limit:
                raise ValueError(f"{what} with the whole model on each GPU; set {key} ({has}) to {limit}.")
        if self.training.precision == "fp16":
            raise ValueError(f"{what} in bf16 or fp32; set training.precision to one of them.")
        if self.training.compile:
            raise ValueError(f"{what} without a compiler; set training.compile to false.")
        return self

    @model_validator(mode="after")
    def _layout_splits_the_model(self) -> Self:
        size = self.parallel.tensor
        split = {
            "model.heads": self.model.heads,
            "model.kv_heads": self.model.groups,
            "model.mlp_size": self.model.inner_size,
            "model.vocabulary": self.vocabulary,
        }
        for key, value in split.items():
            if value % size:
                raise ValueError(f"parallel.tensor ({size}) must divide {key} ({value}); change one of the two.")
        if self.parallel.pipeline > self.model.layers:
            raise ValueError(
                f"parallel.pipeline ({self.parallel.pipeline}) must be at most model.layers ({self.model.layers})."
            )
        return self


def load(path: Path) -> TrainConfig:
    """Read a configuration from a YAML file, which may be `like` a recipe. Raises ConfigError."""
    return _validate(expand_like(_read(path)))


def recipe_names() -> list[str]:
    """The names of the recipes of this package, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yml"))


def load_recipe(name: str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """A recipe of this package by its name, with values for some of OVERRIDES. Raises ConfigError."""
    if name not in recipe_names():
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(recipe_names())}.")
    return _overridden(expand_like(_read(RECIPES / f"{name}.yml")), overrides)


def recipe_text(name: str) -> str:
    """The YAML text of a recipe of this package, whole where it is `like` another one."""
    text = (RECIPES / f"{name}.yml").read_text(encoding="utf-8")
    return yaml.safe_dump(expand_like(_read(RECIPES / f"{name}.yml")), sort_keys=False) if "\nlike: " in text else text


def expand_like(values: dict[str, Any]) -> dict[str, Any]:
    """The sections of a configuration; one that is `like` a recipe has the recipe's keys beside its own. Raises
    ConfigError."""
    if "like" not in values:
        return values
    own = {section: keys for section, keys in values.items() if section != "like"}
    # These replace those of the recipe: they are no sections, with keys to put beside others.
    whole = {key: own.pop(key) for key in ("stages", "base") if key in own}
    if values["like"] not in recipe_names():
        raise ConfigError(f"like is {str(values['like'])[:60]!r}; the recipes are {', '.join(recipe_names())}.")
    base = expand_like(_read(RECIPES / f"{values['like']}.yml"))
    if not all(isinstance(keys, dict) for keys in own.values()):
        raise ConfigError("The configuration must hold sections such as model and data.")
    return base | {section: base.get(section, {}) | keys for section, keys in own.items()} | whole


def parse(text: str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """A configuration from YAML text, with values for some of OVERRIDES. Raises ConfigError."""
    return _overridden(_sections(text, "The configuration"), overrides)


def _overridden(values: dict[str, Any], overrides: Mapping[str, str] | None) -> TrainConfig:
    for short, value in (overrides or {}).items():
        if short not in OVERRIDES:
            near = _near(short, OVERRIDES)
            raise ConfigError(f"{short!r} may not be overridden{near}; what may be is {', '.join(OVERRIDES)}.")
        section, key = OVERRIDES[short].split(".")
        if isinstance(values.setdefault(section, {}), dict):  # anything else is refused below
            values[section][key] = value
    return _validate(values, {OVERRIDES[short]: short for short in overrides or {}})


def dump(config: TrainConfig) -> str:
    """The configuration as YAML, every default spelt out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The configuration {path} cannot be read: {reason}.") from error
    return _sections(text, f"The configuration {path}")


def _sections(text: str, what: str) -> dict[str, Any]:
    values = read_yaml(text, what)
    if not isinstance(values, dict):
        raise ConfigError(f"{what} must hold sections such as model and data.")
    return values


def _validate(values: dict[str, Any], names: Mapping[str, str] | None = None) -> TrainConfig:
    """Check values against the schema. `names` has the short names to use for dotted keys in an error."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error.errors()[0], names or {})) from None


def _sentence(error: ErrorDetails, names: Mapping[str, str]) -> str:
    """An error of pydantic as one sentence that says what is wrong and what would be right."""
    dotted = ".".join(str(part) for part in error["loc"])
    key = names.get(dotted, dotted)[:80]
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            known, where = _keys(error["loc"][:-1]), "there" if len(error["loc"]) > 1 else "at the top"
            near = _near(str(error["loc"][-1]), known)
            return f"{key} is not a key of the configuration{near}; the keys {where} are {', '.join(known)}."
        case "missing" | "string_too_short" if error["loc"][-1] == "licence":
            return f"{key} is missing; a source is used only with its licence, an SPDX identifier such as PSF-2.0."
        case "missing":
            return f"{key} is missing; add it."
    if error["type"] == "too_short":
        return f"{key} must have at least {error['ctx']['min_length']} entry."
    if error["type"] in ("int_parsing_size", "int_from_float", "float_parsing") and len(str(error["input"])) > 60:
        return f"{key} must be a number, and {str(error['input'])[:20]!r}… is too long to be meant."
    must = error["msg"].replace("Input should", "must", 1).replace("must be less", "must be a number less")
    must = must.replace("must be greater", "must be a number greater").split(", unable")[0]
    return f"{key} {must}, not {str(error['input'])[:60]!r}."


def _near(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known name nearest to one that is not known; empty where none is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _keys(location: Sequence[int | str]) -> Sequence[str]:
    """The keys of the section at `location`."""
    model: type[BaseModel] = TrainConfig
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0]
    return list(model.model_fields)
