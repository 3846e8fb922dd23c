"""Fine-tuning, beside plain implementations: each example alone, without packing, on the same tiny model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.trainer.conftest import TINY, run_trainer
from trainer.checkpoint import metadata, save_load
from trainer.checkpoint.resume import StartingPoint, find_starting_point
from trainer.config import ConfigError, TrainConfig, dump
from trainer.contract import PROBE_FILE, Status, checkpoint_folder
from trainer.data import tokenizer
from trainer.data.examples import ExampleCorpus, open_corpus
from trainer.data.prepare import prepare
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.tuning import TuningEngine
from trainer.memory import memory_per_gpu
from trainer.model.transformer import Transformer
from trainer.train import train

HERE = ParallelDims(0, 1, torch.device("cpu"))
LORA = {"rank": 4, "alpha": 8.0, "targets": ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]}
WORDS = ("one", "two", "three", "four", "five", "six", "seven")
SHAPES: list[dict[str, Any]] = [
    {},
    {"positions": "learned", "attention": ["global", "local"], "window": 5},
    {"positions": "alibi", "norm": "rmsnorm", "activation": "swiglu", "kv_heads": 1, "parallel_residual": False},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of each kind, and the run `base` of one step on text."""
    folder = tmp_path_factory.mktemp("tuning")

    def write(name: str, lines: list[dict[str, Any]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    counts = [(WORDS[n % 7], " ".join(WORDS[: n % 5 + 1])) for n in range(40)]
    write(
        "text",
        [
            {"text": f"count to {to}: {said} " * 8 + f"{number:b} {number * 7919:x} "}
            for number, (to, said) in enumerate(counts * 6)
        ],
    )
    chats = [
        [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": to},
            {"role": "assistant", "content": said},
        ]
        for to, said in counts[::4]
    ]
    lines = [{"prompt": f"count to {to}: ", "completion": said} for to, said in counts]
    write("instructions", [*lines, *({"messages": chat} for chat in chats), {"prompt": "", "completion": "one"}])
    pairs = [{"prompt": to, "chosen": f" {said}", "rejected": f" {to}"} for to, said in counts]
    write("preferences", pairs)
    config = configured(folder, "text", steps=1)
    assert train(config, folder / "base", StartingPoint(), HERE, lambda: False) == (Status.DONE, 1)
    return folder


def configured(root: Path, kind: str, model: dict[str, Any] | None = None, **changed: Any) -> TrainConfig:
    training = {"batch": 4, "micro_batch": 2, "evaluation_tokens": 96, "steps": 4, "evaluate_every": 2}
    sections = {key: changed.pop(key) for key in ("base", "lora", "dpo") if key in changed}
    data = {"kind": kind, "sequence_length": 48, "tokenizer": {"vocabulary": 400, "train_bytes": 20_000}}
    if kind != "text":
        data["tokenizer"] = {"vocabulary": 400, "file": str(root / "base" / "data" / "tokenizer.json")}
    source = {"name": "counting", "path": str(root / f"{kind}.jsonl"), "weight": 1, "licence": "CC0-1.0"}
    return TrainConfig.model_validate(
        {
            "model": TINY["model"] | (model or {}),
            "data": data | {"held_out": 0.2, "sources": [source]},
            "optimizer": {"learning_rate": 1e-3, "clip": 1e9},
            "training": training | changed,
            "checkpoints": {"log_until": 0, "every": 2},
            **sections,
        }
    )


def corpus_of(config: TrainConfig, out: Path) -> ExampleCorpus:
    prepare(config.data, out, None, lambda stage: None)
    corpus = open_corpus(config, out)
    assert isinstance(corpus, ExampleCorpus)
    return corpus


def first_step(engine: TuningEngine, corpus: ExampleCorpus) -> tuple[float, dict[str, Tensor]]:
    """The loss of the first step, and its gradients by their names: Adam's first moment is a tenth of them."""
    loss, _ = engine.step([torch.from_numpy(corpus.batch(0, 0, 1, micro)) for micro in range(2)], 1e-3)
    return loss, {name: moment / 0.1 for name, moment in engine.gather("exp_avg")}


def plain(config: TrainConfig, read: Any) -> Transformer:
    model = Transformer(config.model, config.vocabulary, config.context)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read("weight", name))
    return model


def log_probabilities(model: Transformer, prompt: list[int], completion: list[int]) -> Tensor:
    """The log-probability of each token of a completion, of one example alone."""
    ids = torch.tensor([prompt + completion])
    x_BLD = model.embed(ids[:, :-1])
    for block in model.blocks:
        x_BLD = block(x_BLD)
    logits = functional.linear(model.head.norm(x_BLD), model.head.weight, model.head.bias)[0]
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[-len(completion) :, 0]


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5) for name in ours)


def encoded(root: Path, kind: str) -> dict[str, list[tuple[list[int], list[int]]]]:
    """The prompts and completions of the lines, in tokens, by the first part of the lines, as a plain reader makes
    them."""
    bpe = tokenizer.load(root / "base" / "data")
    end = tokenizer.end_of_document(bpe)
    found: dict[str, list[tuple[list[int], list[int]]]] = {}
    for line in (root / f"{kind}.jsonl").read_text().splitlines():
        value = json.loads(line)
        if "messages" in value:
            system, user, said = (message["content"] for message in value["messages"])
            prompt = [
                *bpe.encode(f"<|system|>\n{system}\n").ids,
                *bpe.encode(f"<|user|>\n{user}\n").ids,
                *bpe.encode("<|assistant|>\n").ids,
            ]
            answers = [said]
        else:
            prompt = bpe.encode(value["prompt"]).ids or [end]
            answers = [value[key] for key in ("completion", "chosen", "rejected") if key in value]
        found[str(len(found) + 1)] = [(prompt, [*bpe.encode(answer).ids, end]) for answer in answers]
    return found


def lines_of(corpus: ExampleCorpus, examples: dict[str, list[tuple[list[int], list[int]]]]) -> list[Any]:
    """The examples of the first batch: those whose tokens its rows hold."""
    found = []
    for row in corpus.rows(0):
        tokens, marks = corpus.tokens(row)
        number = int(corpus.documents(row)[0].document.rpartition(":")[2])
        if corpus.config.data.kind == "preferences":
            found.append(examples[str(number)])
            continue
        for segment in range(1, int(marks.max()) // 2 + 1):
            ids = tokens[marks // 2 == segment].tolist()
            found.append(next([(p, c)] for ((p, c),) in examples.values() if p + c == ids))
    return found


@pytest.mark.parametrize("model", SHAPES)
def test_packed_completions_have_the_loss_and_gradients_of_each_example_alone(
    root: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    config = configured(root, "instructions", model)
    corpus = corpus_of(config, tmp_path / "data")
    engine = TuningEngine(config, HERE)
    engine.load(save_load.fresh(config), 0)
    loss, gradients = first_step(engine, corpus)

    examples = [pair for line in lines_of(corpus, encoded(root, "instructions")) for pair in line]
    assert len(examples) > len(corpus.rows(0))  # some share a row
    alone = plain(config, save_load.fresh(config))
    wanted = -torch.cat([log_probabilities(alone, *example) for example in examples]).mean()
    wanted.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert close(gradients, {name: p.grad for name, p in alone.named_parameters() if p.grad is not None})


def test_adapters_have_the_loss_and_gradients_of_a_plain_implementation(root: Path, tmp_path: Path) -> None:
    config = configured(root, "instructions", base=f"{root}/base@1", lora=LORA)
    read = save_load.reader(checkpoint_folder(root / "base", 1), config)
    corpus = corpus_of(config, tmp_path / "data")
    engine = TuningEngine(config, HERE)
    engine.keep(read)
    engine.load(read, 0)
    first_step(engine, corpus)  # B is zero until then, and A has no gradient
    adapters = {name: tensor.clone().requires_grad_() for name, tensor in engine.gather("adapter")}
    before = {name: tensor.clone() for name, tensor in engine.gather("exp_avg")}
    loss, _ = first_step(engine, corpus)
    gradients = {name: moment / 0.1 - 9 * before[name] for name, moment in engine.gather("exp_avg")}

    alone = plain(config, read)
    for name, layer in alone.named_modules():
        if f"{name}.lora_a" in adapters:
            a, b = adapters[f"{name}.lora_a"], adapters[f"{name}.lora_b"]
            weight = layer.get_parameter("weight").detach() + 8.0 / 4 * b @ a
            del layer.weight
            layer.weight = weight
    examples = [pair for line in lines_of(corpus, encoded(root, "instructions")) for pair in line]
    wanted = -torch.cat([log_probabilities(alone, *example) for example in examples]).mean()
    wanted.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert close(gradients, {name: tensor.grad for name, tensor in adapters.items() if tensor.grad is not None})


@pytest.mark.parametrize("lora", [None, LORA])
def test_preferences_have_the_loss_and_gradients_of_a_plain_implementation(
    root: Path, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    sections: dict[str, Any] = {"base": f"{root}/base@1", "dpo": {"beta": 0.5}} | ({"lora": lora} if lora else {})
    config = configured(root, "preferences", **sections)
    read = save_load.reader(checkpoint_folder(root / "base", 1), config)
    corpus = corpus_of(config, tmp_path / "data")
    engine = TuningEngine(config, HERE)
    engine.keep(read)
    engine.load(read, 0)
    assert first_step(engine, corpus)[0] == pytest.approx(0.6931472)  # the model is its own reference yet
    before = {name: tensor.clone() for name, tensor in engine.gather("exp_avg")}
    after = {name: tensor.clone() for name, tensor in engine.gather("weight")}
    loss, _ = first_step(engine, corpus)

    reference = plain(config, read)
    alone = plain(config, lambda kind, name: after[name])
    losses = []
    for chosen, rejected in lines_of(corpus, encoded(root, "preferences")):
        margins = [
            log_probabilities(model, *chosen).sum() - log_probabilities(model, *rejected).sum()
            for model in (alone, reference)
        ]
        losses.append(torch.log1p(torch.exp(-0.5 * (margins[0] - margins[1].detach()))))
    wanted = torch.stack(losses).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert loss != pytest.approx(0.6931472, rel=1e-5)
    if lora is None:
        wanted.backward()  # type: ignore[no-untyped-call]
        gradients = {name: moment / 0.1 - 9 * before[name] for name, moment in engine.gather("exp_avg")}
        assert close(gradients, {name: p.grad for name, p in alone.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(("kind", "lora"), [("instructions", None), ("preferences", LORA)])
def test_a_resumed_run_ends_with_the_same_weights(
    root: Path, tmp_path: Path, kind: str, lora: dict[str, Any] | None
) -> None:
    config = configured(root, kind, base=f"{root}/base@1", **({"lora": lora} if lora else {}))
    trained = sum(moment.numel() for _, moment in TuningEngine(config, HERE).gather("exp_avg"))
    assert memory_per_gpu(config, 1).optimizer == 8 * trained  # two moments in fp32
    start = find_starting_point(config, tmp_path / "whole")
    assert train(config, tmp_path / "whole", start, HERE, lambda: False) == (Status.DONE, 4)

    asked = iter([False, False, False, True])
    parts = tmp_path / "parts"
    assert train(config, parts, start, HERE, lambda: next(asked)) == (Status.STOPPED, 2)
    assert train(config, parts, find_starting_point(config, parts), HERE, lambda: False) == (Status.DONE, 4)
    whole, resumed = (load_file(checkpoint_folder(out, 4) / "model.safetensors") for out in (tmp_path / "whole", parts))
    base = load_file(checkpoint_folder(root / "base", 1) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], base[name]) for name in whole)
    made = metadata.read(checkpoint_folder(parts, 4))
    assert (made["base"]["name"], made["base"]["licence"]) == (f"{root}/base@1", None)


def test_peft_opens_the_adapters_of_two_ranks_over_the_base(root: Path, tmp_path: Path) -> None:
    config = configured(root, "instructions", base=f"{root}/base@1", lora=LORA, steps=2)
    alone = tmp_path / "alone"
    assert train(config, alone, find_starting_point(config, alone), HERE, lambda: False) == (Status.DONE, 2)
    hub = tmp_path / "hub"  # as it lies on the Hub: without what only our trainer reads
    shutil.copytree(checkpoint_folder(root / "base", 1), hub, ignore=shutil.ignore_patterns("how.json", "trainer"))
    (hub / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Counting\n")
    (tmp_path / "config.yml").write_text(dump(config.model_copy(update={"base": "lab/counting@v1"})))
    command = ("train", tmp_path / "config.yml", "--out", tmp_path / "out", "--gpus", "2", "--base", hub)
    done = run_trainer(*command)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "base").exists()
    said = metadata.read(checkpoint_folder(tmp_path / "out", 2))["base"]
    assert (said["name"], said["licence"]) == ("lab/counting@v1", "apache-2.0")
    folder = checkpoint_folder(tmp_path / "out", 2)
    ours, theirs = (load_file(step / "model.safetensors") for step in (folder, checkpoint_folder(alone, 2)))
    assert close(ours, theirs)
    base: Any = AutoModelForCausalLM.from_pretrained(checkpoint_folder(root / "base", 1), dtype=torch.float32)
    probe = load_file(folder / PROBE_FILE)
    with torch.no_grad():
        plain_logits = base(probe["ids"]).logits
        logits = PeftModel.from_pretrained(base, folder / "adapter")(probe["ids"]).logits
    assert torch.allclose(logits, probe["logits"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain_logits, probe["logits"], atol=1e-3)


def test_what_does_not_fit_is_refused_in_a_sentence(root: Path, tmp_path: Path) -> None:
    base = f"{root}/base@1"
    with pytest.raises(ValueError, match=r"lora needs a base; add one, such as base: runs/a@100\."):
        configured(root, "instructions", lora=LORA)
    with pytest.raises(ValueError, match=r"dpo needs data of preferences, and data.kind is instructions"):
        configured(root, "instructions", base=base, dpo={})
    with pytest.raises(ValueError, match=r"in bf16 or fp32; set training.precision to one of them"):
        configured(root, "instructions", precision="fp16")
    larger = configured(root, "instructions", {"layers": 3}, base=base)
    with pytest.raises(
        ConfigError, match=r"model.layers is 3 here and 2 in the base; take the base's value, or another base\."
    ):
        find_starting_point(larger, tmp_path)
    with pytest.raises(ConfigError, match=r"base must be RUN@STEP, a run's folder and one of its steps, not 'gpt2'\."):
        find_starting_point(configured(root, "instructions", base="gpt2"), tmp_path)
    (root / "bad.jsonl").write_text('{"prompt": "a"}\n')
    config = configured(root, "instructions")
    bad = config.data.sources[0].model_copy(update={"path": str(root / "bad.jsonl")})
    with pytest.raises(ConfigError, match=r"bad.jsonl line 1 has no text under completion; a line of instructions has"):
        prepare(config.data.model_copy(update={"sources": [bad]}), tmp_path / "data", None, lambda stage: None)
