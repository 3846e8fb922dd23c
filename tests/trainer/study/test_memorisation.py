"""`memorisation` on a model that says one known sequence, drawn from what the run's own order has read."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.trainer.study.world import config, drawn, measured, opened, study_of, write_checkpoint, zeros
from trainer.config import TrainConfig
from trainer.contract import CHECKPOINT_METADATA_FILE
from trainer.data.corpus import Corpus
from trainer.data.order import Row
from trainer.evaluation.open_checkpoint import open_checkpoint
from trainer.schema import ConfigError
from trainer.study.memorisation import Memorisation

ALL = Memorisation(sequences=10_000, prefix=8, continuation=8)


def readings(settings: TrainConfig, run_folder: Path) -> tuple[Corpus, dict[Row, list[int]]]:
    """The steps that read each row, in the order of the first reading."""
    corpus = Corpus(settings, run_folder / "data")
    found: dict[Row, list[int]] = defaultdict(list)
    for step in range(settings.training.steps):
        for row in corpus.rows(step):
            found[row].append(step + 1)
    return corpus, found


def saying(settings: TrainConfig, tokens: list[int]) -> dict[str, torch.Tensor]:
    """Weights of a model that says these tokens, whatever it reads: each position has its own next one."""
    weights = zeros(settings)
    positions, size = len(tokens) - 1, settings.model.hidden_size
    weights["embed.positions.weight"][:positions] = torch.eye(size)[:positions]
    for position in range(positions):
        weights["head.weight"][tokens[position + 1], position] = 10
    return weights


def test_a_model_that_has_memorised_one_sequence(run_folder: Path, tmp_path: Path) -> None:
    """The run reads source one, with few rows, more than once; the sequence is of a row that step 3 reads first."""
    settings = config(run_folder, positions="learned", norm="rmsnorm")
    weighted = [
        source.model_copy(update={"weight": weight})
        for source, weight in zip(settings.data.sources, (9.0, 1.0), strict=True)
    ]
    training = settings.training.model_copy(update={"steps": 64})
    data = settings.data.model_copy(update={"sources": weighted})
    settings = settings.model_copy(update={"training": training, "data": data})
    corpus, steps = readings(settings, run_folder)
    row = next(row for row, read in steps.items() if read[0] == 3 and len(read) > 1)
    known = corpus.tokens(row).tolist()
    weights = saying(settings, known)
    study = study_of(run_folder, tmp_path)
    for step in (2, 3, steps[row][1]):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, settings, step, weights))
        found = measured(ALL, checkpoint, study)
        assert found["first_steps"] == [read[0] for read in steps.values()]
        times = [sum(at <= step for at in read) for read in steps.values()]
        assert found["times"] == times
        right = [int(corpus.tokens(each).tolist()[8:16] == known[8:16]) for each in steps]
        assert found["is_extractible"] == right
        assert sum(right) == 1
        seen = [(one, greedy) for one, greedy in zip(times, right, strict=True) if one]
        assert (found["seen"], found["unseen"]) == (len(seen), len(times) - len(seen))
        assert found["extractible"] == pytest.approx((step >= 3) / len(seen))
        own = times[list(steps).index(row)]
        assert own == {2: 0, 3: 1}.get(step, 2)
        assert found["extractible_by_times"][str(own)] == 1 / times.count(own)
        assert found["sequences_by_times"] == {str(count): times.count(count) for count in sorted(set(times))}
        assert found["extractible_unseen"] == (pytest.approx(1 / times.count(0)) if step == 2 else 0)


def test_some_are_drawn_and_kept_and_a_fork_has_read_its_own_steps_alone(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder)
    folder = write_checkpoint(tmp_path, settings, 8, drawn(settings))
    path = folder / CHECKPOINT_METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent": {"run": "a", "step": 5, "parent": None}}))
    checkpoint, study = open_checkpoint(folder), study_of(run_folder, tmp_path)
    found = measured(ALL, checkpoint, study)
    assert set(found["first_steps"]) == {6, 7, 8}
    few = Memorisation(sequences=5, prefix=8, continuation=8, seed=1)
    study.shelf.clear()
    first = measured(few, checkpoint, study)
    assert first["seen"] == 5
    assert measured(few, checkpoint, study) == first
    kept = study.shelf.take("sequences")
    assert kept is not None
    assert kept["tokens"].shape == (5, 16)


def test_rows_that_are_too_short(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder)
    with pytest.raises(ConfigError, match=r"The rows have 17 tokens, and .* ask for 64; set lower ones"):
        Memorisation().measure(opened(tmp_path, settings, drawn(settings)), study_of(run_folder, tmp_path))
