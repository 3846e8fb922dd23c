"""When a checkpoint is due, and that a folder with its final name is whole."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint import folders
from trainer.checkpoint.resume import find_starting_point
from trainer.config import CheckpointsConfig, ConfigError, TrainConfig


def due(schedule: CheckpointsConfig, last: int) -> list[int]:
    return [step for step in range(last + 1) if schedule.is_due(step, last)]


def test_schedule() -> None:
    assert due(CheckpointsConfig(log_until=8, every=10), 33) == [0, 1, 2, 4, 8, 10, 20, 30, 33]
    assert due(CheckpointsConfig(log_until=0, every=5), 7) == [0, 5, 7]
    assert due(CheckpointsConfig(log_until=2, every=5, at=(4, 6, 100)), 7) == [0, 1, 2, 4, 5, 6, 7]


@given(
    schedule=st.builds(
        CheckpointsConfig,
        log_until=st.integers(0, 40),
        every=st.integers(1, 40),
        at=st.lists(st.integers(0, 90), max_size=3).map(tuple),
    ),
    last=st.integers(1, 80),
)
def test_every_schedule_begins_at_step_0_and_tells_what_comes_next(schedule: CheckpointsConfig, last: int) -> None:
    steps = due(schedule, last)
    assert (steps[0], steps[-1]) == (0, last)
    assert [schedule.first_after(step, last) for step in range(last)] == [
        next(other for other in steps if other > step) for step in range(last)
    ]


def test_schedule_of_pythia() -> None:
    steps = due(CheckpointsConfig(log_until=512, every=1000), 143_000)
    assert len(steps) == 154
    assert steps[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    def save() -> None:
        with folders.staged(tmp_path, 4) as folder:
            (folder / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert folders.newest(tmp_path) is None


def test_newest_is_by_number_and_ignores_unfinished_ones(tmp_path: Path) -> None:
    for name in ("step9", "step10", ".step11.writing", "stepx"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert folders.newest(tmp_path) == tmp_path / "checkpoints" / "step10"


def test_a_folder_that_is_no_checkpoint_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a whole checkpoint of this trainer"):
        find_starting_point(config, tmp_path, tmp_path / "nothing")


def test_what_decides_the_schedule_changes_on_wish_alone(config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    start = finished / "checkpoints" / "step4"

    def changed(section: str, **values: Any) -> TrainConfig:
        return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})

    longer = changed("training", steps=200)
    with pytest.raises(
        ConfigError, match=r"training\.steps is 200 here and 12 in the checkpoint \(step 5 has the"
    ) as caught:
        find_starting_point(longer, tmp_path, start)
    assert "add --change training.steps to change it after step 4, or fork the run." in str(caught.value)
    for key, other in {
        "optimizer.learning_rate": changed("optimizer", learning_rate=0.02),
        "optimizer.clip": changed("optimizer", clip=0.5),
        "optimizer.betas.0": changed("optimizer", betas=(0.8, 0.95)),
        "training.precision": changed("training", precision="bf16"),
        "training.evaluation_tokens": changed("training", evaluation_tokens=1024),
    }.items():
        with pytest.raises(ConfigError, match=f"{re.escape(key)} is .* here and .* in the checkpoint"):
            find_starting_point(other, tmp_path, start)
        wished = find_starting_point(other, tmp_path, start, change=[key.removesuffix(".0")])
        assert [change.partition(" is ")[0] for change in wished.changes] == [key]
        assert find_starting_point(other, tmp_path, fork=f"{finished}@4").is_fork
    assert (
        find_starting_point(longer, tmp_path, start, change=["training.steps"])
        .changes[0]
        .startswith("training.steps is 200 after step 4, and 12 before (step 5 has the learning rate")
    )
    with pytest.raises(ConfigError, match="--change 'model' is no key that a resumed run may change; those are"):
        find_starting_point(config, tmp_path, start, change=["model"])
    # Before the first step there is no past.
    assert find_starting_point(longer, tmp_path, finished / "checkpoints" / "step0").step == 0
    # Where a corpus lies is free: the hashes of its tokens say that it is the same.
    lies = [source.model_copy(update={"corpus": "docs", "text_key": "body"}) for source in config.data.sources]
    assert find_starting_point(changed("data", sources=lies), tmp_path, start).changes == ()
    others = [source.model_copy(update={"corpus": "docs", "weight": 9.0}) for source in config.data.sources]
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.weight is 9\.0 here"):
        find_starting_point(changed("data", sources=others), tmp_path, start)
    # What only decides how and when it is done is free.
    free = changed("training", log_every=3, evaluate_every=2, recompute=True, micro_batch=2)
    assert find_starting_point(free, tmp_path, start).changes == ()
