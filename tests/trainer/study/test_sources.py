"""`sources` against the probabilities that a hand-made bigram model was given, and curves whose middle is plain."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trainer.study.world import bigram, config, measured, opened, study_of, tokenizer
from trainer.data.encode import is_held_out
from trainer.study.sources import Sources, half_way


def test_bits_per_byte_of_a_model_whose_probabilities_are_known(run_folder: Path, tmp_path: Path) -> None:
    def after(token: int) -> dict[int, float]:
        return {following: (1 + (7 * token + following) % 5) / 100 for following in range(27)}

    settings = config(run_folder, norm="rmsnorm")
    checkpoint = opened(tmp_path, settings, bigram(settings, after))
    found = measured(Sources(), checkpoint, study_of(run_folder, tmp_path))
    expected = {}
    for name in ("one", "two"):
        bits, size = 0.0, 0
        for number, line in enumerate((run_folder / f"{name}.jsonl").read_text().splitlines(), 1):
            if is_held_out(f"{name}/{name}.jsonl:{number}", 0.2):
                text = json.loads(line)["text"]
                ids = [0, *tokenizer().encode(text).ids]
                for token, following in pairwise(ids):
                    shares = after(token)
                    bits -= math.log2(shares[following] / sum(shares.values()))
                size += len(text)
        expected[name] = bits / size
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-4)
    assert found["mean"] == pytest.approx(sum(expected.values()) / 2, rel=1e-4)
    fewer = measured(Sources(documents=1), checkpoint, study_of(run_folder, tmp_path))
    assert fewer["bits_per_byte"] != pytest.approx(expected, rel=1e-4)


def test_half_learnt_is_half_of_the_way_to_the_lowest() -> None:
    steps = [0, 1, 2, 4, 8]
    assert half_way(steps, [8, 7, 5, 2, 2]) == 2
    assert half_way(steps, [8, 7, 6, 2, 3]) == 2.5  # 5 lies between 6 and 2
    assert half_way(steps, [8, 4, 8, 2, 9]) == 0.75  # the first time
    assert half_way(steps, [2, 4, 8, 2, 9]) is None
    curves = [{"bits_per_byte": {"one": one, "two": two}} for one, two in ((8.0, 3.0), (6.0, 1.0), (4.0, 2.0))]
    assert Sources().summary([0, 10, 20], curves) == {"half_learnt": {"one": 10.0, "two": 5.0}}
