"""Every recipe is whole, and its model is the published one: parameters counted four ways."""

import json
from functools import cache

import pytest
import torch
import transformers

from trainer.config import load_recipe, recipe_names
from trainer.families import family_of
from trainer.metrics import parameters
from trainer.model.transformer import shapes

PYTHIA = {
    "14m": 14_067_712,
    "31m": 30_494_720,
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}
OTHERS = {
    "gpt-neo-125m": (125_198_592, "GPTNeoForCausalLM"),
    "gpt-neo-1.3b": (1_315_575_808, "GPTNeoForCausalLM"),
    "gpt-neo-2.7b": (2_651_307_520, "GPTNeoForCausalLM"),
    "gpt-j-6b": (6_050_882_784, "GPTJForCausalLM"),
    "gpt-neox-20b": (20_554_567_680, "GPTNeoXForCausalLM"),
    "comma-7b": (7_002_656_768, "LlamaForCausalLM"),
}
PUBLISHED = OTHERS | {
    f"pythia-{size}{data}": (count, "GPTNeoXForCausalLM") for size, count in PYTHIA.items() for data in ("", "-deduped")
}


@cache
def theirs(described: str) -> tuple[int, dict[str, torch.Size]]:
    """How many parameters transformers' model of a `config.json` has, and the shapes of its tensors.

    Recipes that differ in their data alone share it.
    """
    values = json.loads(described)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
        )
    return model.num_parameters(), {key: value.shape for key, value in model.state_dict().items()}


def test_all_are_here() -> None:
    assert set(recipe_names()) == {"demo", *PUBLISHED}


@pytest.mark.parametrize("name", recipe_names())
def test_parameters(name: str) -> None:
    config = load_recipe(name)
    family = family_of(config.model, config.vocabulary, config.context)
    count, tensors = theirs(json.dumps(family.config_json(end=0)))
    if name in PUBLISHED:
        assert (parameters(config), family.architecture) == PUBLISHED[name]
    assert count == parameters(config)
    whole = shapes(config.model, config.vocabulary, config.context)
    assert sum(shape.numel() for shape in whole.values()) == parameters(config)
    exported = [family.export(key, torch.empty(shape, device="meta")) for key, shape in whole.items()]
    written = {key: tensor.shape for part in exported for key, tensor in part.items()}
    expected = dict(tensors)
    if config.model.tied_head:
        del expected["lm_head.weight"]
    assert {key.replace("embed_out", "lm_head"): shape for key, shape in written.items()} == expected


@pytest.mark.parametrize("size", PYTHIA)
def test_pythia_is_trained_as_published(size: str) -> None:
    config = load_recipe(f"pythia-{size}")
    assert config.tokens_per_step == 2_097_152
    assert config.training.steps == 143_000
    assert round(config.optimizer.warmup_ratio * config.training.steps) == 1_430
    assert (config.checkpoints.log_until, config.checkpoints.every) == (512, 1_000)
    assert len(config.data.sources) == 22


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_run_on_whole_hosts(name: str) -> None:
    """One host of eight GPUs, or four."""
    config = load_recipe(name)
    for gpus in (8, 32):
        assert config.data_ranks(gpus) * config.parallel.pipeline * config.parallel.tensor == gpus
