"""Folders that transformers wrote become ours: their random weights and switches, older configs, every kind of file."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.trainer.drawn import CONTEXT, VOCABULARY, assert_same_logits, ids
from trainer.contract import ARCHITECTURES
from trainer.families import ADAPTERS, family_of
from trainer.families.hf_config import read_config, read_folder
from trainer.families.hf_weights import HFWeights
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.schema import ConfigError

DRAWS = 12
Values = dict[str, Any]

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _yarn(rng: Random) -> Values:
    return {"rope_type": "yarn", "factor": rng.choice([2.0, 4.0]), "original_max_position_embeddings": 16}


def _neox(rng: Random) -> Values:
    return {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": rng.choice([2, 4]),
        "intermediate_size": rng.choice([96, 256]),
        "hidden_act": rng.choice(["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"]),
        "max_position_embeddings": CONTEXT,
        "layer_norm_eps": rng.choice([1e-5, 1e-2]),
        "use_parallel_residual": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.5,
        "tie_word_embeddings": rng.random() < 0.3,
        # As transformers 4 writes them.
        "rotary_pct": rng.choice([0.25, 1.0]),
        "rotary_emb_base": rng.choice([10_000, 500]),
        "rope_scaling": rng.choice([None, _yarn(rng)]),
    }


def _gptj(rng: Random) -> Values:
    return {
        "model_type": "gptj",
        "n_embd": 96,
        "n_layer": 2,
        "n_head": rng.choice([1, 2, 4]),
        "n_positions": CONTEXT,
        "n_inner": rng.choice([None, 80]),
        "rotary_dim": rng.choice([4, 6, 14, 22, 24]),
        "activation_function": rng.choice(["gelu_new", "gelu"]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-2]),
    }


def _neo(rng: Random) -> Values:
    layers = rng.choice([2, 4])
    return {
        "model_type": "gpt_neo",
        "hidden_size": 64,
        "num_layers": layers,
        "num_heads": rng.choice([2, 4]),
        "max_position_embeddings": CONTEXT,
        "intermediate_size": rng.choice([None, 80]),
        "attention_types": rng.choice(
            [[[["global", "local"], layers // 2]], [[["local"], layers - 1], [["global"], 1]]]
        ),
        "window_size": rng.choice([1, 7, 300]),
        "activation_function": rng.choice(["gelu_new", "gelu"]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-2]),
        "tie_word_embeddings": rng.random() < 0.7,
    }


def _llama(rng: Random) -> Values:
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": rng.choice([None, 1, 2, 4]),
        "intermediate_size": 96,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": rng.choice([1e-5, 1e-2]),
        "attention_bias": rng.random() < 0.5,
        "mlp_bias": rng.random() < 0.5,
        "tie_word_embeddings": rng.random() < 0.3,
        # As transformers 4 writes them.
        "rope_theta": rng.choice([10_000.0, 500_000.0]),
        "rope_scaling": rng.choice([None, _yarn(rng)]),
    }


DRAW: dict[str, Callable[[Random], Values]] = {
    "GPTNeoXForCausalLM": _neox,
    "GPTJForCausalLM": _gptj,
    "GPTNeoForCausalLM": _neo,
    "LlamaForCausalLM": _llama,
}


def theirs_of(architecture: str, values: Values, seed: int) -> PreTrainedModel:
    """Theirs with random weights, biases and norms among them."""
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict({**values, "vocab_size": VOCABULARY})
    torch.manual_seed(seed)
    theirs: PreTrainedModel = getattr(transformers, architecture)(config).eval()
    for name, parameter in theirs.named_parameters():
        scale = 1.5 * parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.25
        norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = scale * torch.randn(parameter.shape) + norm
    return theirs


def ours_of(folder: Path) -> tuple[Transformer, ModelConfig]:
    model = read_folder(folder).model
    assert model.vocabulary is not None
    assert model.context is not None
    weights = HFWeights(folder)
    family = family_of(model, model.vocabulary, model.context)
    ours = Transformer(model, model.vocabulary, model.context)
    for name, parameter in ours.named_parameters():
        parameter.data = family.fetch(name, weights.get)
    return ours, model


def logits(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    found: Tensor = model(inputs).logits
    return found


@pytest.mark.parametrize("architecture", DRAW)
@torch.no_grad()
def test_their_logits_are_ours(architecture: str, tmp_path: Path) -> None:
    rng = Random(architecture)
    for seed in range(DRAWS):
        values = DRAW[architecture](rng)
        theirs = theirs_of(architecture, values, seed)
        folder = tmp_path / str(seed)
        theirs.save_pretrained(folder)
        ours, _ = ours_of(folder)
        assert_same_logits(ours(ids(seed)), logits(theirs, ids(seed)), values)


@pytest.mark.parametrize("architecture", DRAW)
def test_a_config_of_transformers_4_reads_as_one_of_5(architecture: str, tmp_path: Path) -> None:
    rng = Random(architecture)
    for seed in range(DRAWS):
        values = DRAW[architecture](rng) | {"vocab_size": VOCABULARY, "torch_dtype": "float16", "architectures": None}
        theirs_of(architecture, values, seed).config.save_pretrained(tmp_path)
        assert read_config(values).model == read_folder(tmp_path).model


@pytest.mark.parametrize(("size", "rotated"), [(44, 30), (98, 2), (94, 62), (256, 64)])
def test_a_share_of_the_head_is_rotated_to_the_dimension(size: int, rotated: int) -> None:
    """Some of these shares, as floats, fall short of the dimension when multiplied."""
    values = _gptj(Random(0)) | {"n_embd": 2 * size, "n_head": 2, "rotary_dim": rotated}
    assert read_config(values).model.rotary_size == rotated


@torch.no_grad()
def test_every_kind_of_file(tmp_path: Path) -> None:
    values = _llama(Random(0)) | {"tie_word_embeddings": False}
    theirs = theirs_of("LlamaForCausalLM", values, 0)
    theirs.save_pretrained(tmp_path / "single")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for kind in ("single", "sharded", "bin"):
        assert torch.equal(ours_of(tmp_path / kind)[0](ids(0)), ours_of(tmp_path / "single")[0](ids(0)))
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        theirs.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]  # its wrapper hides the method
        opened = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ours, _ = ours_of(folder)
        assert_same_logits(ours(ids(0)), logits(opened, ids(0)), dtype)


NEOX = _neox(Random(0)) | {"vocab_size": VOCABULARY, "rope_scaling": None}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is none of ours, which are GPTNeoXForCausalLM, GPTJ"),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "none of ours"),
        ({"model_type": "mamba"}, "mamba is none of ours"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope type linear is none of ours"),
        ({"rope_scaling": _yarn(Random(0)) | {"attention_factor": 2.0}}, "YaRN"),
        ({"hidden_act": "relu"}, "activation relu is none of ours; the model must have one of gelu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 3}, "number of attention heads"),
        ({"rotary_pct": 0.01}, "model.rotary_pct"),
        ({"hidden_size": "large"}, "config.json is no gpt_neox configuration"),
    ],
)
def test_what_ours_cannot_express_is_refused(values: Values, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        read_config(NEOX | values)
    assert "\n" not in str(error.value)


def test_the_contract_names_what_is_read() -> None:
    assert tuple(adapter.architecture for adapter in ADAPTERS) == ARCHITECTURES


def test_what_is_not_taken_over_is_said() -> None:
    notes = read_config(NEOX | {"hidden_dropout": 0.1, "hidden_act": "gelu"}).notes
    assert notes[0] == "hidden_dropout is 0.1 there; this trainer has no dropout."
    assert "trained with the tanh one" in notes[1]


def _damaged(folder: Path, damage: str) -> None:
    match damage:
        case "no config":
            (folder / "config.json").unlink()
        case "no json":
            (folder / "config.json").write_text("{")
        case "no weights":
            for path in folder.glob("model*"):
                path.unlink()
        case "cut":
            path = next(iter(folder.glob("model-*.safetensors")))
            path.write_bytes(path.read_bytes()[:-100])
        case "no shard":
            next(iter(folder.glob("model-*.safetensors"))).unlink()
        case "index":
            path = folder / "model.safetensors.index.json"
            index = json.loads(path.read_text())
            del index["weight_map"]["model.norm.weight"]
            path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("no config", "has no config.json; give a folder"),
        ("no json", "is not JSON"),
        ("no weights", "has no weights; it must have model.safetensors"),
        ("cut", "is truncated or no file of weights; fetch it again"),
        ("no shard", "which its index names; fetch it"),
        ("index", "lack model.norm.weight"),
    ],
)
def test_a_damaged_folder_is_refused(damage: str, said: str, tmp_path: Path) -> None:
    values = _llama(Random(0)) | {"tie_word_embeddings": False}
    theirs_of("LlamaForCausalLM", values, 0).save_pretrained(tmp_path, max_shard_size="50KB")
    ours_of(tmp_path)
    _damaged(tmp_path, damage)
    with pytest.raises(ConfigError, match=said):
        ours_of(tmp_path)
