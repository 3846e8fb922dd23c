"""Foreign weights become a run: `import`, then `train --fork`."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.trainer.conftest import run_trainer
from trainer import import_command
from trainer.config import load
from trainer.data import tokenizer as bpe

SIZE = 500
END = "<|stop|>"


def foreign(folder: Path, vocabulary: int = 512) -> Path:
    """A Llama of another's making, with a tokenizer that ends documents in its own way."""
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    tokens = bpe.train(texts, SIZE)
    folder.mkdir(parents=True)
    bpe.save(tokens, folder, 64)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", END))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": END}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.2,
        attention_dropout=0.1,
    )
    model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]  # its wrapper hides the method
    return folder


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(import_command.app, list(map(str, arguments)))
    return result.exit_code, result.output


def test_a_run_starts_from_foreign_weights(tmp_path: Path) -> None:
    source, out = foreign(tmp_path / "theirs"), tmp_path / "out"
    status, said = run(source, "--out", out)
    assert status == 0, said
    assert "Note: attention_dropout is 0.1 there; this trainer has no dropout." in said
    assert "its logits are those of transformers" in said

    config = load(out / "config.yml")
    assert (config.vocabulary, config.context, config.data.sequence_length) == (512, 64, 64)
    assert config.data.tokenizer.end_of_document == END
    folder = out / "checkpoints" / "step0"
    inputs = torch.arange(64)[None]
    both = [transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (source, folder)]
    with torch.no_grad():
        assert torch.equal(*(model(inputs).logits for model in both))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokens.eos_token, both[1].config.eos_token_id) == (END, tokens.eos_token_id)
    assert json.loads((folder / "how.json").read_text())["imported"] == "theirs"

    values = yaml.safe_load((out / "config.yml").read_text())
    values["training"] |= {"steps": 2, "batch": 4, "micro_batch": 4, "evaluate_every": 2, "evaluation_tokens": 128}
    values["data"]["sources"] = [values["data"]["sources"][1] | {"max_bytes": 50_000}]
    (out / "config.yml").write_text(yaml.safe_dump(values))
    result = run_trainer("train", out / "config.yml", "--out", tmp_path / "run", "--fork", f"{out}@0")
    assert result.returncode == 0, result.stderr
    first, last = (
        load_file(tmp_path / "run" / "checkpoints" / step / "model.safetensors") for step in ("step0", "step2")
    )
    original = load_file(source / "model.safetensors")
    assert all(torch.equal(first[name], original[name].float()) for name in original)
    assert not torch.equal(first["lm_head.weight"], last["lm_head.weight"])
    made = json.loads((tmp_path / "run" / "checkpoints" / "step2" / "how.json").read_text())
    assert (made["parent"]["run"], made["parent"]["step"]) == ("out", 0)


def _spoil(source: Path, how: str) -> None:
    weights = load_file(source / "model.safetensors")
    match how:
        case "no tokenizer":
            (source / "tokenizer.json").unlink()
        case "no end":
            (source / "tokenizer_config.json").write_text("{}")
            (source / "config.json").write_text(
                json.dumps(json.loads((source / "config.json").read_text()) | {"eos_token_id": None})
            )
        case "shape":
            weights["model.norm.weight"] = torch.ones(63)
        case "extra":
            weights["model.norm.bias"] = torch.ones(64)
        case "missing":
            del weights["model.layers.1.mlp.up_proj.weight"]
        case "not a number":
            weights["model.norm.weight"][0] = torch.nan
        case "infinite":
            weights = {name: tensor.half() for name, tensor in weights.items()}
            weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
        case "no heads" | "no architecture":
            changed = {"num_attention_heads": 0} if how == "no heads" else {"architectures": [["a"]]}
            content = json.loads((source / "config.json").read_text()) | changed
            (source / "config.json").write_text(json.dumps(content))
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no tokenizer", "has no tokenizer.json; transformers' AutoTokenizer"),
        ("no end", "names no token that ends a document; set eos_token"),
        ("shape", "model.norm.weight is [63] in"),
        ("extra", "holds model.norm.bias, which LlamaForCausalLM has not"),
        ("missing", "lack model.layers.1.mlp.up_proj.weight"),
        ("not a number", "model.norm.weight in {source} holds NaN, so the model computes nothing"),
        ("infinite", "model.layers.0.mlp.up_proj.weight in {source} holds infinity"),
        ("no heads", "config.json is no llama configuration"),
        ("no architecture", "The architecture ['a'] is none of ours"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_stays(how: str, said: str, tmp_path: Path) -> None:
    source, out = foreign(tmp_path / "theirs"), tmp_path / "out"
    _spoil(source, how)
    status, output = run(source, "--out", out)
    assert (status, said.format(source=source) in output, output.count("\n")) == (78, True, 1), output
    assert not [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    status, said = run(foreign(tmp_path / "theirs", vocabulary=400), "--out", tmp_path / "out")
    assert status == 78
    assert "The tokenizer has 500 tokens and the model's vocabulary 400" in said


def test_a_folder_with_checkpoints_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoints" / "step3").mkdir(parents=True)
    status, said = run(foreign(tmp_path / "theirs"), "--out", tmp_path / "out")
    assert status == 78
    assert "holds checkpoints already" in said


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    status, said = run(foreign(tmp_path / "theirs"), "--out", tmp_path / "out", "--recipe", "nonesuch")
    assert status == 78
    assert "There is no recipe 'nonesuch'" in said


@pytest.mark.parametrize("context", [8, 12])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_model_of_a_short_context_is_imported(tmp_path: Path, context: int, positions: str) -> None:
    source = foreign(tmp_path / "theirs")
    shape: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "max_position_embeddings": context}
    if positions == "rotary":
        shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        model: Any = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape))
    else:
        config = transformers.GPTNeoConfig(**shape, num_layers=1, num_heads=4, attention_types=[[["global"], 1]])
        model = transformers.GPTNeoForCausalLM(config)
    model.save_pretrained(source)
    status, said = run(source, "--out", tmp_path / "out")
    assert status == 0, said
    assert load(tmp_path / "out" / "config.yml").context == context


def test_a_full_disk_ends_an_import_in_one_sentence(tmp_path: Path) -> None:
    """A file may have 50,000 bytes, fewer than the weights."""
    source = foreign(tmp_path / "theirs")
    limits = {resource.RLIMIT_FSIZE: 50_000}
    result = run_trainer("import", source, "--out", tmp_path / "out", limits=limits)
    assert (result.returncode, result.stderr.count("\n")) == (70, 1), result.stderr
    assert "cannot be used" in result.stderr
