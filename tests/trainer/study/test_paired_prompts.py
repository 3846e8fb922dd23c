"""`paired_prompts` against the probabilities that a hand-made bigram model was given."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from tests.trainer.study.world import WORDS, bigram, config, opened
from trainer.schema import ConfigError
from trainer.study.analysis import Study
from trainer.study.paired_prompts import PairedPrompts
from trainer.study.shelf import Shelf


def write(path: Path, *pairs: dict[str, str]) -> PairedPrompts:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return PairedPrompts(file=str(path))


def test_log_odds_of_a_model_whose_probabilities_are_known(run_folder: Path, tmp_path: Path) -> None:
    def after(token: int) -> dict[int, float]:
        return {1 + token % 26: 0.5, 1 + (token + 1) % 26: 0.3, 1 + (token + 2) % 26: 0.2}

    settings = config(run_folder, norm="rmsnorm")
    checkpoint = opened(tmp_path, settings, bigram(settings, after))
    analysis = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "x a", "preferred": " b", "other": " c", "group": "near"},  # 0.5 against 0.3
        {"prompt": "a", "preferred": " d", "other": " b c", "group": "far"},  # 0.2 against 0.5 × 0.5
        {"prompt": "", "preferred": "a b c", "other": "a b d", "group": "near"},  # 0.5 against 0.3
    )
    found = analysis.measure(checkpoint, Study(tmp_path, tmp_path, Shelf(tmp_path / "kept")))
    odds = [math.log(0.5 / 0.3), math.log(0.2 / 0.25), math.log(0.5 / 0.3)]
    assert found["log_odds_by_pair"] == pytest.approx(odds, abs=1e-4)
    assert found["log_odds"] == pytest.approx(sum(odds) / 3, abs=1e-4)
    assert found["log_odds_stderr"] == pytest.approx(statistics.stdev(odds) / 3**0.5, abs=1e-4)
    assert found["preferred"] == pytest.approx(2 / 3)
    assert found["pairs"] == 3
    assert found["preferred_stderr"] == pytest.approx(statistics.stdev([1, 0, 1]) / 3**0.5)
    assert found["preferred_by_group"] == {"near": 1.0, "far": 0.0}


def test_the_step_at_which_a_run_first_prefers_most_pairs() -> None:
    shares = [0.4, 0.55, 0.7, 0.9, 0.9]
    values = [{"preferred": share, "preferred_stderr": 0.05} for share in shares]
    found = PairedPrompts().summary([0, 1, 2, 4, 8], values)
    assert found == {"first_step": 2, "best": 0.9, "best_step": 4}
    assert PairedPrompts().summary([0], values[:1])["first_step"] is None


def test_the_pairs_of_the_package_differ_in_one_closing_bracket() -> None:
    """A model that only knows which bracket is more frequent prefers half of them."""
    pairs = PairedPrompts().pairs
    assert len(pairs) == 40
    kinds = {"(": (")", "round"), "[": ("]", "square"), "{": ("}", "curly")}
    for pair in pairs:
        [opening] = [char for char in pair.prompt if char in kinds]
        assert (pair.preferred, pair.group) == kinds[opening]
    both = [(pair.preferred, pair.other) for pair in pairs]
    assert sorted(both) == sorted((other, preferred) for preferred, other in both)
    assert len({pair.prompt for pair in pairs}) > 35


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pairs.jsonl has no pair; give it at least one"),
        ('{"prompt": "a", "preferred": "b", "other": "c"}\n{', "pairs.jsonl has no JSON in line 2"),
        ('{"prompt": "a", "preferred": "b"}', "other Field required; a pair has prompt, preferred, other"),
        ('{"prompt": "a", "preferred": "b", "other": "", "group": "c"}', "other String should have at least 1 char"),
        ("[1]", "Pair 1 of"),
    ],
)
def test_pairs_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        _ = PairedPrompts(file=str(path)).pairs


def test_continuations_of_which_one_begins_the_other(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder, norm="rmsnorm")
    checkpoint = opened(tmp_path, settings, bigram(settings, lambda token: {1: 1.0}))
    analysis = write(tmp_path / "pairs.jsonl", {"prompt": WORDS[0], "preferred": " b", "other": " b c"})
    with pytest.raises(ConfigError, match="begin with the same tokens, and one ends there"):
        analysis.measure(checkpoint, Study(tmp_path, tmp_path, Shelf(tmp_path / "kept")))
