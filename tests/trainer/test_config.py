"""A wrong configuration gets one sentence that names the key and the fix."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from annotated_types import Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tests.trainer.conftest import TINY
from trainer.check import check
from trainer.config import OVERRIDES, RECIPES, ConfigError, TrainConfig, dump, load, load_recipe, parse, recipe_names


def sections(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a section and of those in it, each with its name."""
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def is_number(field: FieldInfo) -> bool:
    return bool({int, float} & {field.annotation, *get_args(field.annotation)})


def test_every_number_has_a_greatest_value() -> None:
    endless = [
        name
        for name, field in sections(TrainConfig)
        if is_number(field) and not any(isinstance(bound, Le | Lt) for bound in field.metadata)
    ]
    assert endless == []


@pytest.mark.parametrize("largest", [True, False])
def test_the_greatest_and_least_overrides_can_be_computed_with(largest: bool) -> None:
    most = {"steps": "10000000", "learning_rate": "1", "warmup": "0.999999", "seed": str(2**63 - 1)}
    most |= {"batch": "1048576", "micro_batch": "65536", "sequence_length": "1048576"}
    least = dict.fromkeys(OVERRIDES, "1") | {"learning_rate": "1e-300", "warmup": "0", "seed": "0"}
    least |= {"sequence_length": "8", "precision": "fp16"}
    values = yaml.safe_load(yaml.safe_dump(TINY)) | {}
    values["training"]["evaluation_tokens"] = 2**40
    report = check(parse(yaml.safe_dump(values), most if largest else least), gpus=16 if largest else 1)
    assert report.tokens == (2**40 * 10_000_000 if largest else 8)
    assert math.isfinite(report.flops)
    assert report.model_dump_json()


def changed(dotted: str, value: Any) -> dict[str, Any]:
    """The tiny configuration with one key set, or removed with None."""
    config: dict[str, Any] = yaml.safe_load(yaml.safe_dump(TINY))
    *path, last = dotted.split(".")
    section: Any = config
    for part in path:
        section = section[int(part) if part.isdecimal() else part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "model.layer",
            3,
            "model.layer is not a key of the configuration (did you mean layers?); the keys there are layers",
        ),
        ("modle", {}, "the keys at the top are version, model, data"),
        ("data.sources.0.license", "MIT", "the keys there are name, weight, epochs, licence"),
        ("training.steps", 0, "training.steps must be a number greater than or equal to 1, not '0'."),
        ("training.steps", "many", "training.steps must be a valid integer, not 'many'."),
        ("training.steps", None, "training.steps is missing; add it."),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate must be a finite number"),
        ("data.sources.1.licence", None, "data.sources.1.licence is missing; a source is used only with its licence"),
        ("data.sources.1.licence", "", "data.sources.1.licence is missing; a source is used only with its licence"),
        ("data.sources.1.name", "/etc", "The source name '/etc' must be lower-case letters"),
        ("data.sources.1.name", "python-docs", "data.sources names python-docs twice"),
        ("model.heads", 5, "model.hidden_size (32) must be a multiple of model.heads (5)"),
        ("training.micro_batch", 3, "training.micro_batch (3) must divide training.batch (8) evenly"),
        ("parallel", {"zero_stage": 4}, "parallel.zero_stage must be 0, 1, 2 or 3"),
        ("parallel", {"zero_stage": 2, "pipeline": 2}, "parallel.zero_stage (2) splits what a pipeline needs whole"),
        ("parallel", {"tensor": 4}, "parallel.tensor (4) must divide model.heads (2); change one of the two."),
        ("parallel", {"pipeline": 3}, "parallel.pipeline (3) must be at most model.layers (2)."),
        ("model.kv_heads", 3, "model.heads (2) must be a multiple of model.kv_heads (3)."),
        ("model.vocabulary", 100, "model.vocabulary (100) must be at least data.tokenizer.vocabulary (500)."),
        ("model.context", 16, "model.context (16) must be at least data.sequence_length (32)."),
        (
            "model.rotary_pct",
            0.2,
            "model.rotary_pct (0.2) must rotate an even number of a head's 16 dimensions, not 3.",
        ),
        ("version", 99, "version is 99, and this trainer reads configurations up to 1; use a newer trainer."),
        ("training.evaluation_tokens", 40, "training.evaluation_tokens (40) must hold at least one sequence"),
    ],
)
def test_wrong_key_is_named_in_one_sentence(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("text", ["[1, 2]", "model: [", "", "\x00"])
def test_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^The configuration .* (must hold sections|is not valid YAML)[^\n]*\.$"):
        load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!bool x", "at line 1."),
        ("a: !!timestamp x", "at line 1."),
        ("a: 1\nb: 0x_", "at line 2."),
        ("a: " + "9" * 5000, "a number has 5,000 characters"),
        ("a: 1\na: 2", "the key 'a' is given twice at line 2"),
        ("1: 2", "the key '1' is no word"),
        ("a: " + "[" * 3000, "nested more than 30 deep"),
        ("k0: &a0 [1]\n" + "".join(f"k{n}: &a{n} [{f'*a{n - 1},' * 8}]\n" for n in range(1, 12)), "more than 100,000"),
        ("a: &a {b: *a}", "holds itself"),
        ("x" * 1_000_001, "at most 1,000,000 are read"),
    ],
)
def test_yaml_that_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^The configuration \S+ is not valid YAML[^\n]*\.$") as caught:
        load(path)
    assert said in str(caught.value)


def test_an_alias_that_stands_for_little_is_taken() -> None:
    text = (RECIPES / "demo.yml").read_text()
    config = parse(text.replace("warmup_ratio: 0.1", "warmup_ratio: &tenth 0.1\n  min_ratio: *tenth"))
    assert (config.optimizer.warmup_ratio, config.optimizer.min_ratio) == (0.1, 0.1)


def test_a_number_that_is_too_long_is_one_sentence() -> None:
    for key in ("steps", "seed"):
        with pytest.raises(ConfigError, match=rf"^{key} must be a number, and '9999.* is too long to be meant\.$"):
            load_recipe("demo", {key: "9" * 5000})


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(Path("nowhere.yml"))


def test_dump_loads_back(tmp_path: Path) -> None:
    config = load_recipe("demo")
    path = tmp_path / "config.yml"
    path.write_text(dump(config))
    assert load(path) == config


def test_every_recipe_is_valid_and_takes_every_override() -> None:
    assert "demo" in recipe_names()
    for name in recipe_names():
        assert all(source.licence for source in load_recipe(name).data.sources)
    values = dict.fromkeys(OVERRIDES, "8") | {"learning_rate": "2e-3", "warmup": "0.5", "precision": "fp16"}
    config = load_recipe("demo", values)
    assert (config.training.steps, config.optimizer.learning_rate, config.optimizer.warmup_ratio) == (8, 2e-3, 0.5)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("unknown", {}, "There is no recipe 'unknown'; the recipes are comma-7b, demo"),
        ("../recipes/demo", {}, "There is no recipe"),
        ("demo", {"hidden_size": "4096"}, "'hidden_size' may not be overridden; what may be is steps, learning_rate"),
        ("demo", {"training.steps": "10"}, "'training.steps' may not be overridden"),
        ("demo", {"steps": "0"}, "steps must be a number greater than or equal to 1, not '0'."),
        ("demo", {"steps": "1e9"}, "steps must be"),
        ("demo", {"learning_rate": "nan"}, "learning_rate must be a finite number, not 'nan'."),
        ("demo", {"seed": "; rm -rf"}, "seed must be a valid integer"),
    ],
)
def test_refused_recipes_and_overrides(name: str, overrides: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, overrides)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optimizer", "learning_rate", True),
        ("optimizer", "betas", [0.9, False]),
        ("training", "steps", True),
        ("parallel", "zero_stage", True),
        ("checkpoints", "at", [True]),
        ("model", "kv_heads", True),
    ],
)
def test_a_boolean_is_no_number(tmp_path: Path, section: str, key: str, value: object) -> None:
    values = {**TINY, section: TINY.get(section, {}) | {key: value}}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=rf"{section}\.{key} must be a number, not "):
        load(tmp_path / "tiny.yml")
