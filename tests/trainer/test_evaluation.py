"""What a checkpoint says of a text, against transformers' own class and lm-evaluation-harness's own model of it."""

import json
import math
import random
import shutil
import string
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, TaskIndex
from lm_eval.utils import get_rolling_token_windows
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from trainer.checkpoint import save_load
from trainer.config import TrainConfig
from trainer.data import readers, tokenizer
from trainer.data.encode import is_held_out
from trainer.data.prepare import prepare
from trainer.evaluation.commands import app
from trainer.evaluation.evaluate import rows
from trainer.evaluation.lm_eval_model import CheckpointLM
from trainer.evaluation.open_checkpoint import OpenCheckpoint, open_checkpoint
from trainer.evaluation.score import log_likelihoods, score, windows
from trainer.model.transformer import shapes
from trainer.schema import ConfigError

HARNESS = Path(lm_eval.tasks.__file__).parent
WINDOW = 32
TEXT = "def main(arguments):\n    return [argument.strip() for argument in arguments if argument]\n"


def write_checkpoint(config: TrainConfig, data: Path, folder: Path, step: int = 3, scale: float = 3) -> None:
    """A checkpoint with weights large enough to tell one token from another."""
    folder.mkdir(parents=True)
    family, read = save_load.family(config), save_load.fresh(config)
    weights = ((name, read("weight", name) * scale) for name in shapes(config.model, config.vocabulary, WINDOW))
    exported = (pair for name, weight in weights for pair in family.export(name, weight).items())
    save_load.write_tensors(folder, save_load.WEIGHTS, exported)
    save_load.write_description(config, folder, step, {}, data)


@pytest.fixture(scope="module")
def checkpoint(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step folder in a run's folder, the prepared data beside it."""
    run = tmp_path_factory.mktemp("run")
    prepare(config.data, run / "data", None, lambda message: None)
    write_checkpoint(config, run / "data", run / "checkpoints" / "step3")
    return run / "checkpoints" / "step3"


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> OpenCheckpoint:
    return open_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> HFLM:
    return HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(autouse=True, scope="module")
def harness_read_once() -> Iterator[None]:
    """The harness's 14,000 tasks, which take it many seconds to read, are read once for all tests here."""
    build = TaskIndex.build

    @cache
    def read(folder: Path) -> dict[str, Entry]:
        entries: dict[str, Entry] = build([folder])
        return entries

    def merged(folders: Iterable[Path]) -> dict[str, Entry]:
        """As the harness merges: a later folder's task stands for an earlier one's of its name."""
        index: dict[str, Entry] = {}
        for folder in folders:
            index |= read(folder) if folder == HARNESS else build([folder])
        return index

    with mock.patch.object(TaskIndex, "build", staticmethod(merged)):
        yield


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # The two libraries read these once, when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def ours(opened: OpenCheckpoint, rows: int | None = None) -> CheckpointLM:
    return CheckpointLM(opened, rows, lambda name, share: None)


def long_text(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 9))) for _ in range(words))


def test_windows_are_the_harness_rolling_ones_at_a_stride_of_the_window() -> None:
    for length in (1, 5, 8, 9, 16, 17, 31):
        tokens = list(range(100, 100 + length))
        expected = [(tuple(inputs), tuple(targets)) for inputs, targets in get_rolling_token_windows(tokens, 7, 8, 1)]
        assert list(windows([7], tokens, 8)) == expected


def test_windows_that_slide_score_each_token_once_after_as_many_as_fit() -> None:
    tokens = list(range(100, 121))
    pairs = list(windows([7], tokens, 8, 3))
    assert [target for _, targets in pairs for target in targets] == tokens
    assert {len(inputs) for inputs, _ in pairs} == {8}
    assert [len(targets) for _, targets in pairs] == [8, 3, 3, 3, 3, 1]
    for inputs, targets in pairs:
        assert [*inputs[1:], targets[-1]] == [*inputs[1 : len(inputs) - len(targets) + 1], *targets]


@pytest.mark.parametrize("rows", [None, 1, 5])
def test_log_likelihoods_are_those_of_the_harness_own_model(
    opened: OpenCheckpoint, theirs: HFLM, rows: int | None
) -> None:
    pairs = requests(
        "loglikelihood",
        ("def main", "():"),
        ("", "import os"),
        ("class A:\n    ", "pass"),
        (long_text(60), " return"),
        (long_text(60), " import"),
        (long_text(3), " x" * 10),
        ("import", " os"),
        *((f"{TEXT}{letter}", " =") for letter in "abcdef"),
    )
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    found = ours(opened, rows).loglikelihood(pairs)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_whole_texts_are_as_likely_as_the_harness_own_model_finds_them(opened: OpenCheckpoint, theirs: HFLM) -> None:
    texts = requests("loglikelihood_rolling", *((text,) for text in ("a", TEXT, long_text(40), long_text(100, 1))))
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours(opened).loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_answers_are_those_of_the_harness_own_model(opened: OpenCheckpoint, theirs: HFLM) -> None:
    greedy = {"until": ["\n"], "do_sample": False, "max_gen_toks": 12}
    other = greedy | {"until": ["e"], "max_gen_toks": 5}
    questions = requests(
        "generate_until",
        *((text, greedy) for text in ("def main", "import os", TEXT, long_text(50), "x")),
        *((text, other) for text in ("class", "for x in")),
    )
    expected = theirs.generate_until(questions, disable_tqdm=True)
    assert ours(opened, 2).generate_until(questions) == expected
    assert len(set(expected)) > 3


def test_answer_longer_than_the_window(opened: OpenCheckpoint) -> None:
    [answer] = ours(opened).generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 2 * WINDOW})))
    assert len(opened.encode(answer)) > WINDOW


def test_score_is_that_of_transformers(checkpoint: Path, opened: OpenCheckpoint, tmp_path: Path) -> None:
    """Token by token, each after the 31 before it or as many as the windows of stride 16 leave."""
    text = TEXT + long_text(30) + " ünïcödé 漢字 🦉\r\n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    result = run("score", checkpoint, "--text", tmp_path / "text.txt")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["tokens", "bytes", "nll", "bits_per_byte"]

    bpe, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = [bpe.eos_token_id, *bpe(text)["input_ids"]]
    total = 0.0
    for place in range(1, len(ids)):
        scored_before = place - 1
        end = WINDOW if scored_before < WINDOW else WINDOW + 16 * math.ceil((place - WINDOW) / 16)
        end = min(end, len(ids) - 1)
        context = torch.tensor([ids[max(0, end - WINDOW) : place]])
        with torch.no_grad():
            total -= float(functional.log_softmax(model(context).logits[0, -1].double(), dim=-1)[ids[place]])
    assert found["tokens"] == len(ids) - 1
    assert found["bytes"] == len(text.encode())
    assert found["nll"] == pytest.approx(total, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-5)


def test_score_reads_the_standard_input_and_takes_a_stride(checkpoint: Path, opened: OpenCheckpoint) -> None:
    text = long_text(60)
    result = run("score", checkpoint, "--text", "-", "--stride", str(WINDOW), stdin=text)
    [rolling] = ours(opened).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert json.loads(result.stdout)["nll"] == pytest.approx(-rolling)
    assert json.loads(result.stdout)["nll"] != pytest.approx(score(opened, text, 8, lambda share: None).nll)


def test_text_that_quotes_the_end_of_a_document_is_text(opened: OpenCheckpoint) -> None:
    assert opened.end not in opened.encode("a <|endoftext|> b")
    assert opened.encode("<|endoftext|>", special=True) == [opened.end]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"ab\xff", "is not UTF-8 at byte 2"), (None, "cannot be read (No such file or directory)")],
)
def test_text_that_cannot_be_scored(checkpoint: Path, tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = run("score", checkpoint, "--text", path)
    assert result.exit_code == 78
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_continuation_longer_than_the_window_is_scored_whole(opened: OpenCheckpoint) -> None:
    tokens = opened.encode(long_text(40))
    [(whole, _)] = log_likelihoods(opened, [([opened.end], tokens)])
    [(first, _), (second, _)] = log_likelihoods(
        opened, [([opened.end], tokens[:WINDOW]), ([opened.end, *tokens[:WINDOW]], tokens[WINDOW:])]
    )
    assert whole == pytest.approx(first + second)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of each kind, as a user writes them."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {
            "text": f"{word} = {long_text(20, seed)}",
            "question": f"import {word}",
            "choices": [" as", " from"],
            "gold": 0,
        }
        for seed, word in enumerate(("os", "sys", "json", "math", "re"))
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    kinds: dict[str, dict[str, Any]] = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
        },
        "local_text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
        "local_answer": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}],
        },
    }
    for name, kind in kinds.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **kind}))
    (folder / "away.yaml").write_text(
        json.dumps({"task": "local_away", "dataset_path": "nobody/no-such-data", **kinds["local_text"]})
    )
    return folder


def test_eval_of_every_kind_of_task_is_that_of_the_harness_own_model(
    checkpoint: Path, theirs: HFLM, tasks: Path, tmp_path: Path
) -> None:
    names = ["local_choice", "local_text", "local_answer"]
    result = run(
        "eval", checkpoint, "--tasks", ",".join(names), "--include-path", tasks, "--json", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.stderr
    manager = TaskManager(include_path=tasks, include_defaults=False)
    expected = lm_eval.simple_evaluate(model=theirs, tasks=names, task_manager=manager)["results"]
    found = json.loads(result.stdout)
    for name in names:
        numbers = {key: value for key, value in expected[name].items() if isinstance(value, float)}
        assert numbers
        assert {key: found["results"][name][key] for key in numbers} == pytest.approx(numbers, abs=1e-4, rel=1e-4)
    assert found["checkpoint"] == {"path": str(checkpoint), "step": 3}
    assert json.loads((tmp_path / "out" / "results" / "step3.json").read_text()) == found


def test_several_checkpoints_are_evaluated_each_as_by_itself(
    checkpoint: Path, config: TrainConfig, tasks: Path, tmp_path: Path
) -> None:
    second, out = tmp_path / "run" / "checkpoints" / "step7", tmp_path / "out"
    write_checkpoint(config, checkpoint.parents[1] / "data", second, step=7, scale=2)
    common = ("--tasks", "local_choice,local_text", "--include-path", tasks)
    of_others = tmp_path / "hub" / "base-step11"  # the same model as anybody publishes one
    of_others.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(second / name, of_others)
    of_seed = of_others.with_name("base-seed2-step11")  # no step, though it ends like one
    shutil.copytree(of_others, of_seed)
    apart = [json.loads(run("eval", folder, *common, "--json").stdout) for folder in (checkpoint, second)]
    together = run("eval", checkpoint, second, of_others, of_seed, *common, "--out", out)
    assert together.exit_code == 0, together.stderr
    for found in apart:
        kept = json.loads((out / "results" / f"step{found['checkpoint']['step']}.json").read_text())
        assert kept["results"] == found["results"]
        assert kept["versions"] == found["versions"]
    imported = json.loads((out / "results" / "step11.json").read_text())
    assert (imported["checkpoint"], imported["results"]) == ({"path": str(of_others), "step": 11}, apart[1]["results"])
    assert json.loads((out / "results" / "step0.json").read_text())["checkpoint"] == {"path": str(of_seed), "step": 0}
    assert {path.name for path in of_others.parent.iterdir()} == {"base-step11", "base-seed2-step11"}
    *events, of_imported, of_no_step, last = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    assert [(event["event"], event["step"]) for event in events] == [("result", 3), ("result", 7)]
    assert (of_imported["step"], of_no_step["step"]) == (11, 0)
    for event, found in zip(events, apart, strict=True):
        [accuracy] = [row for row in event["results"] if (row["task"], row["metric"]) == ("local_choice", "acc")]
        assert accuracy["value"] == found["results"]["local_choice"]["acc,none"]
        assert accuracy["stderr"] == found["results"]["local_choice"]["acc_stderr,none"]
        assert accuracy["documents"] == found["n-samples"]["local_choice"]["effective"]
    assert (last["event"], json.loads((out / "outcome.json").read_text())["status"]) == ("finished", 0)
    assert apart[0]["results"] != apart[1]["results"]

    refused = run("eval", checkpoint, tmp_path / "run", *common, "--out", out)
    assert refused.exit_code == 78
    assert json.loads((out / "outcome.json").read_text())["status"] == 78


def test_a_checkpoint_opens_without_what_only_training_needs(checkpoint: Path, tmp_path: Path) -> None:
    published = tmp_path / "step3"
    shutil.copytree(checkpoint, published)
    how = json.loads((published / "how.json").read_text())
    how["files"]["trainer/optimizer.safetensors"] = "not published"
    (published / "how.json").write_text(json.dumps(how))
    assert open_checkpoint(published).step == 3
    weights = bytearray((published / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (published / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError, match=r"model\.safetensors is not what was written"):
        open_checkpoint(published)


def test_heldout_is_bits_per_byte_of_each_source_and_changes_nothing(checkpoint: Path, config: TrainConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.parents[1].rglob("*")}
    result = run("eval", checkpoint, "--tasks", "heldout", "--limit", "3", "--json")
    assert result.exit_code == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in checkpoint.parents[1].rglob("*")} == before
    found = json.loads(result.stdout)["results"]
    assert [row.metric for row in rows(json.loads(result.stdout))] == ["bits_per_byte", "byte_perplexity"] * 2
    opened = open_checkpoint(checkpoint)
    for source in config.data.sources:
        texts = [document.text for document in readers.read(source, config.data) if is_held_out(document.name, 0.2)]
        scores = [score(opened, text, WINDOW, lambda share: None) for text in texts[:3]]
        expected = sum(each.nll for each in scores) / math.log(2) / sum(each.bytes for each in scores)
        assert found[f"heldout_{source.name}"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


def test_heldout_is_of_text_alone(checkpoint: Path, config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"prompt": "la", "completion": "la"}\n' * 9)
    source = {"name": "chats", "path": str(tmp_path / "chats.jsonl"), "weight": 1, "licence": "MIT"}
    values = config.data.model_dump() | {"kind": "instructions", "sources": [source]}
    prepare(type(config.data).model_validate(values), tmp_path / "data", checkpoint, lambda stage: None)
    result = run("eval", checkpoint, "--tasks", "heldout", "--data", tmp_path / "data")
    assert (result.exit_code, "are instructions; name other tasks" in result.stderr) == (78, True)


def test_eval_prints_a_table_of_the_tasks_that_match(checkpoint: Path, tmp_path: Path) -> None:
    data = checkpoint.parents[1] / "data"
    result = run("eval", checkpoint, "--tasks", "heldout_*docs", "--data", data, "--limit", "1")
    assert result.exit_code == 0, result.stderr
    assert "heldout_python-docs" in result.stdout
    assert "bits_per_byte" in result.stdout
    assert "heldout_python-stdlib" not in result.stdout
    assert "metadata" not in result.stderr


@pytest.mark.parametrize(
    ("task", "status", "said"),
    [
        ("local_txet", 78, "There is no task 'local_txet'; do you mean local_text"),
        ("heldout_none", 78, "do you mean heldout"),
        ("local_away", 70, "The task local_away needs a data set that is not on this machine"),
        (",", 78, "--tasks names no task"),
    ],
)
def test_task_that_cannot_be_run(
    checkpoint: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, task: str, status: int, said: str
) -> None:
    result = run("eval", checkpoint, "--tasks", task, "--include-path", tasks)
    assert result.exit_code == status
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


TASK = """dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ''
"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: mine\ndescription: [1, 2\n", "it is not valid YAML, did not find expected ',' or ']' in line 3"),
        ("task: mine\n\ttag: x\n", "it is not valid YAML"),
        (b"task: mine\ndescription: caf\xe9\n", "it is not UTF-8 text"),
        ("task: mine\nx: 2024-99-99\n", "cannot be read (month must be in 1..12)"),
        ("task: mine\nx: !python/object:os.system 1\n", "could not determine a constructor for the tag"),
        (f"task: mine\nx: {'[' * 5000}\n", "cannot be read ("),
        ("- mine\n", "got list"),
        ("", "got NoneType"),
        ("dataset_path: json\n", "holds no task; a task file ends in .yaml and has the keys task and dataset_path."),
        ("task: mine\ndoc_to_target: x\ntask: yours\n" + TASK, "gives the key 'task' twice"),
        ("task: 5\n", "has 5 as its task, which must be a name"),
        ("task: [mine]\n", "has ['mine'] as its task, which must be a name"),
        ("task: ''\n", "has '' as its task, which must be a name"),
        ("group: 5\ntask: [mine]\n", "has 5 as its group, which must be a name"),
        ("group: mine\n", "has None as the task of a group, which must be a list of tasks"),
        ("task: mine\ntag: [5]\n", "has [5] as its tag, which must be a name or a list of names"),
        ("group: mine\ntask: [mine]\n", "Mend the task mine in --include-path: RecursionError"),
        ("group: mine\ntask: [xyzzy]\n", "names 'xyzzy', and there is no such task; add that task, or take it out of"),
        ("group: mine\ntask: [{task: mnie, num_fewshot: 1}]\n", "The group 'mine' in --include-path names 'mnie', and"),
        ("task: mine\ninclude: mine.yaml\n", "Include cycle at"),
        ("task: mine\ninclude: away.yaml\n", "away.yaml)"),
        ("task: mine\ninclude: 5\n", "cannot be read ("),
        ("task: mine\ndoc_to_target: !function helpers.away\n" + TASK, "Cannot import module 'helpers'"),
        ("task: mine\ndoc_to_target: x\nnonsense: 1\n" + TASK, "Mend the task mine in --include-path: TypeError"),
        ("task: mine\ndoc_to_target: x\nmetric_list: 5\n" + TASK, "Mend the task mine in --include-path: TypeError"),
        ("task: mine\ndoc_to_target: '{{a.b}}'\n" + TASK, "UndefinedError: 'a' is undefined"),
        ("task: mine\ndoc_to_target: number\n" + TASK, "Mend the tasks in --include-path: TypeError"),
    ],
)
def test_a_broken_task_file_is_one_sentence(checkpoint: Path, tmp_path: Path, content: str | bytes, said: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "import os", "number": 3}\n')
    file = tmp_path / "tasks" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.replace("DATA", str(data)).encode())
    result = run("eval", checkpoint, "--tasks", "mine", "--include-path", file.parent)
    assert (result.exit_code, result.stdout) == (78, ""), result.stderr
    # The bars of libraries, which were imported before the command, begin with a carriage return.
    [sentence] = [line for line in result.stderr.split("\n") if line and not line.startswith("\r")]
    assert said in sentence


def test_a_broken_task_file_is_not_passed_over(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    """The harness would leave it out, and take its own task of that name."""
    shutil.copytree(tasks, tmp_path / "tasks")
    (tmp_path / "tasks" / "deeper").mkdir()
    broken = tmp_path / "tasks" / "deeper" / "wikitext.yaml"
    broken.write_text("task: wikitext: 2\n")
    result = run("eval", checkpoint, "--tasks", "local_text", "--include-path", tmp_path / "tasks")
    assert result.exit_code == 78
    assert result.stderr == (
        f"The task file {broken} cannot be read (it is not valid YAML, mapping values are not allowed in this context "
        "in line 1); mend it or take it out of --include-path.\n"
    )


def test_heldout_without_prepared_data(checkpoint: Path, tmp_path: Path) -> None:
    result = run("eval", checkpoint, "--tasks", "heldout", "--data", tmp_path)
    assert result.exit_code == 78
    assert "holds no prepared data" in result.stderr


@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_eval_of_a_model_that_transformers_has_not(
    checkpoint: Path, config: TrainConfig, tmp_path: Path, positions: str
) -> None:
    switches = config.model.model_copy(update={"positions": positions})
    data = checkpoint.parents[1] / "data"
    write_checkpoint(config.model_copy(update={"model": switches}), data, tmp_path / "step3")
    assert not (tmp_path / "step3" / "config.json").exists()
    result = run("eval", tmp_path / "step3", "--tasks", "heldout", "--data", data, "--limit", "1", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["results"]["heldout_python-docs"]["bits_per_byte,none"] > 0
    assert tokenizer.load(data)
