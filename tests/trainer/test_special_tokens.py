"""Special tokens of another's folder, both ways: evaluation, scoring, generation and the export follow them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.trainer.test_evaluation import requests
from tests.trainer.test_import import run
from trainer.config import load
from trainer.data import tokenizer as bpe
from trainer.data.prepare import prepare
from trainer.evaluation.generate import Sampling, continuations
from trainer.evaluation.lm_eval_model import CheckpointLM
from trainer.evaluation.open_checkpoint import open_checkpoint
from trainer.evaluation.score import score

TEXT = "def main(arguments):\n    return arguments\n"
TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with <s> = 1, which its tokenizer puts before every text, and </s> = 2."""
    folder = tmp_path_factory.mktemp("theirs")
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([Path(__file__).read_text()], trainer)
    tokens.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokens.enable_truncation(8)
    tokens.enable_padding(pad_id=2, pad_token="</s>", length=12)
    tokens.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"unk_token": "<unk>", "pad_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    config = LlamaConfig(vocab_size=400, **shape, max_position_embeddings=64, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 7]}))
    return folder


@pytest.fixture(scope="module")
def imported(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    status, said = run(theirs, "--out", out)
    assert status == 0, said
    return out


def test_evaluation_is_the_harness_own(theirs: Path, imported: Path) -> None:
    opened = open_checkpoint(imported / "checkpoints" / "step0")
    ours = CheckpointLM(opened, 2, lambda stage, share: None)
    plain = AutoTokenizer.from_pretrained(theirs)
    plain.backend_tokenizer.no_truncation()
    plain.backend_tokenizer.no_padding()
    harness = HFLM(pretrained=str(theirs), tokenizer=plain, device="cpu", dtype="float32", batch_size=1)
    pairs = requests("loglikelihood", ("def main", "(arguments):"), ("", "return"), ("def ", "x"))
    expected = harness.loglikelihood(pairs, disable_tqdm=True)
    assert [value for value, _ in ours.loglikelihood(pairs)] == pytest.approx(
        [value for value, _ in expected], rel=1e-4
    )
    texts = requests("loglikelihood_rolling", (TEXT,), (TEXT * 9,))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        harness.loglikelihood_rolling(texts, disable_tqdm=True), rel=1e-4
    )


def test_score_and_generation_begin_and_end_as_the_folder_says(imported: Path) -> None:
    opened = open_checkpoint(imported / "checkpoints" / "step0")
    assert (opened.begin, opened.end, opened.ends) == (1, 2, frozenset({2, 7}))
    ids = opened.encode(TEXT)
    assert len(ids) > 12, "neither truncated nor padded"
    with torch.no_grad():
        logits = opened.model(torch.tensor([[1, *ids]]))[0, :-1].log_softmax(-1)
    total = -logits.gather(1, torch.tensor(ids)[:, None]).sum().item()
    assert score(opened, TEXT, None, lambda share: None).nll == pytest.approx(total, rel=1e-5)
    assert opened.encode_prompt("def") == [1, *opened.encode("def")] == opened.encode_prompt("<s>def")
    ending = replace(opened, ends=frozenset(range(400)))
    assert continuations(ending, [opened.encode_prompt("def")], 3, Sampling(), torch.Generator()) == [[]]


def test_the_export_has_the_tokens_and_the_template_of_the_folder(theirs: Path, imported: Path, tmp_path: Path) -> None:
    """Also through data that are prepared with the imported tokenizer, as a run's are."""
    config = load(imported / "config.yml")
    prepare(config.data, tmp_path / "data", imported / "checkpoints" / "step0", lambda message: None)
    before = AutoTokenizer.from_pretrained(theirs)
    for folder in (imported / "checkpoints" / "step0", tmp_path / "data"):
        after = AutoTokenizer.from_pretrained(folder)
        assert after.special_tokens_map == before.special_tokens_map
        assert (after.bos_token_id, after.eos_token_id, after.chat_template) == (1, 2, TEMPLATE)
        assert after("def")["input_ids"] == [1, *bpe.load(folder).encode("def", add_special_tokens=False).ids]
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    exported = json.loads((imported / "checkpoints" / "step0" / "config.json").read_text())
    assert (exported["bos_token_id"], exported["eos_token_id"]) == (1, 2)
