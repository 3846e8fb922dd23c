"""`ngrams` on a hand-made bigram model, against divergences summed in plain Python."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trainer.study.world import bigram, config, measured, opened, study_of
from trainer.data.corpus import Corpus
from trainer.study import texts
from trainer.study.ngrams import NGrams

TOKENS = range(27)


def counted(run_folder: Path, rows: int) -> Counter[tuple[int, int]]:
    """How often each pair of tokens stands in the first rows that the run reads."""
    settings = config(run_folder)
    corpus = Corpus(settings, run_folder / "data")
    found: Counter[tuple[int, int]] = Counter()
    for step in range(settings.training.steps):
        for row in corpus.batch(step, 0, 1, 0).tolist()[: max(0, rows - step * 4)]:
            found.update(pairwise(row))
    return found


@pytest.mark.parametrize("rows", [32, 9])  # all of the run, and fewer than that
def test_a_bigram_model_with_known_divergences(run_folder: Path, tmp_path: Path, rows: int) -> None:
    pairs = counted(run_folder, rows)
    before, after = Counter[int](), Counter[int]()
    for (one, other), times in pairs.items():
        before[one] += times
        after[other] += times

    def of_data(token: int, following: int) -> float:
        return pairs[token, following] / before[token] if before[token] else 0.0

    def of_model(token: int) -> dict[int, float]:
        """Half of it the data's own bigrams, half uniform."""
        return {following: of_data(token, following) / 2 + 1 / 54 for following in TOKENS}

    settings = config(run_folder, norm="rmsnorm")
    checkpoint = opened(tmp_path, settings, bigram(settings, of_model))
    study = study_of(run_folder, tmp_path)
    found = measured(NGrams(rows=5, tokens=16 * rows), checkpoint, study)

    total = sum(after.values())
    unigrams, bigrams = [], []
    for row in texts.held_out(checkpoint, study, 5).tolist():
        for token in row[:-1]:
            model = of_model(token)
            shares = [(after[following] / total, model[following]) for following in TOKENS]
            unigrams.append(sum(p * math.log(p / q) for p, q in shares if p))
            if before[token]:
                shares = [(of_data(token, following), model[following]) for following in TOKENS]
                bigrams.append(sum(p * math.log(p / q) for p, q in shares if p))
    assert found["unigram_kl"] == pytest.approx(sum(unigrams) / len(unigrams), abs=1e-4)
    assert found["bigram_kl"] == pytest.approx(sum(bigrams) / len(bigrams), abs=1e-4)
    assert (found["positions"], found["positions_with_bigram"]) == (80, len(bigrams))
    assert min(found["unigram_kl"], found["bigram_kl"]) > 0.1

    # What was counted is kept: a study that goes on does not read the training data again.
    assert study.shelf.names() == ["counts"]
    kept = study.shelf.take("counts")
    assert kept is not None
    study.shelf.put("counts", kept | {"unigram": kept["unigram"].flip(0)})
    assert measured(NGrams(rows=5, tokens=16 * rows), checkpoint, study)["unigram_kl"] != found["unigram_kl"]


def test_the_step_that_is_nearest_to_each() -> None:
    values = [{"unigram_kl": one, "bigram_kl": other} for one, other in ((3.0, 4.0), (1.0, 2.0), (2.0, 1.5))]
    assert NGrams().summary([0, 10, 20], values) == {"unigram_nearest_step": 10, "bigram_nearest_step": 20}
    none = [{"unigram_kl": 3.0, "bigram_kl": None}]
    assert NGrams().summary([0], none) == {"unigram_nearest_step": 0, "bigram_nearest_step": None}
