"""A run of stages: each has a mixture and a schedule of its own, and the sources are read on over the boundary."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.trainer.conftest import TINY, run_trainer, write_config
from trainer import stages
from trainer.check import check, what_stages
from trainer.checkpoint.resume import find_starting_point
from trainer.config import ConfigError, TrainConfig, dump, load, load_recipe, parse
from trainer.contract import Status
from trainer.data.corpus import Corpus
from trainer.data.order import BLOCK, Order, StagedOrder
from trainer.distributed.parallel_dims import ParallelDims
from trainer.lr_schedule import learning_rate
from trainer.stages import StageConfig
from trainer.train import train

DOCS = {"python-docs": 1.0}
TWO: list[dict[str, Any]] = [{"steps": 8}, {"steps": 4, "weights": DOCS, "peak_ratio": 0.5, "decay": "linear"}]


def written(**changed: Any) -> TrainConfig:
    """The tiny configuration in two stages, with other top-level keys changed."""
    return parse(yaml.safe_dump(TINY | {"stages": TWO} | changed))


def rate(config: TrainConfig, step: int) -> float:
    return learning_rate(step, config.training.steps, config.optimizer, config.stages)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_stage_has_a_schedule_of_its_own() -> None:
    """Of 8 and 4 steps, at a peak of 0.01: two steps of warm-up and a cosine to a tenth; then one step of warm-up, as
    0.2 of 4 is rounded, and a line from half the peak to a tenth of that."""
    rates = [rate(written(), step) for step in range(12)]
    cosine = [0.001 + 0.009 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx([0.005, 0.01, *cosine, 0.005, 0.005, 0.0035, 0.002])
    own = [{"steps": 8, "warmup_ratio": 0, "min_ratio": 0, "period": 2}, {"steps": 4, "warmup_ratio": 0.5}]
    cut = written(stages=own)
    assert rate(cut, 0) == 0.01
    assert rate(cut, 7) == pytest.approx(0.01 * (1 + math.cos(math.pi * 7 / 16)) / 2)
    assert [rate(cut, step) for step in (8, 9, 10)] == pytest.approx([0.005, 0.01, 0.01])


def test_comma_has_the_published_stages() -> None:
    config = load_recipe("comma-7b")
    assert [stage.steps for stage in config.stages] == [460_000, 18_000]
    assert rate(config, 0) == pytest.approx(1e-3 / 2_000)
    assert rate(config, 1_999) == pytest.approx(1e-3)
    ends_at = 1e-9 + (1e-3 - 1e-9) * (1 + math.cos(math.pi * 458_000 / 498_000)) / 2
    assert rate(config, 459_999) == pytest.approx(ends_at, rel=1e-4)
    assert rate(config, 460_000) == pytest.approx(ends_at, rel=1e-4)
    assert rate(config, 469_000) == pytest.approx(ends_at / 2, rel=1e-4)
    assert rate(config, 477_999) == pytest.approx(ends_at / 18_000, rel=1e-4)
    main, cooldown = check(config).stages
    assert len(main.tokens) == 31
    assert sum(main.tokens.values()) == pytest.approx(460_000 * 512 * 4_096)
    # Table 8 of the paper.
    percent = {name: round(100 * count / sum(cooldown.tokens.values()), 1) for name, count in cooldown.tokens.items()}
    assert len(percent) == 15
    assert (percent["stackv2_edu"], percent["wikimedia"], percent["cccc"]) == (17.2, 16.0, 11.5)
    assert "18,000 steps, learning rate 1.58e-05 → 8.8e-10: 6.5 B of stackv2_edu, 6.0 B of wikimedia" in str(cooldown)
    [rest] = what_stages(config, {}, 469_000)
    assert (rest.number, rest.steps) == (2, 9_000)
    assert rest.highest_rate == pytest.approx(ends_at / 2, rel=1e-4)
    assert rest.tokens == pytest.approx({name: count / 2 for name, count in cooldown.tokens.items()}, abs=1)
    assert config.saves.is_due(460_000, 478_000)
    assert not config.saves.is_due(455_000, 478_000)
    assert written().saves.first_after(5, 12) == 8
    # A member's learning rate is that of all stages, each in its proportion.
    hotter = load_recipe("comma-7b", {"learning_rate": "2e-3"})
    assert rate(hotter, 460_000) == pytest.approx(2 * ends_at, rel=1e-4)


def test_stages_share_the_steps_in_proportion() -> None:
    assert [stage.steps for stage in written().stages] == [8, 4]
    changed = parse(yaml.safe_dump(TINY | {"stages": TWO}), {"steps": "100"})
    assert [stage.steps for stage in changed.stages] == [67, 33]
    assert parse(dump(changed)) == changed
    assert [stage.steps for stage in load_recipe("comma-7b", {"steps": "20"}).stages] == [19, 1]
    three = [StageConfig(steps=steps) for steps in (1, 1_000, 1)]
    assert [stage.steps for stage in stages.scaled(three, 3)] == [1, 1, 1]
    assert [stage.steps for stage in stages.scaled(three, 1_002)] == [1, 1_000, 1]


def test_a_configuration_without_stages_is_dumped_as_before(config: TrainConfig) -> None:
    assert "stages" not in dump(config)
    assert config.saves == config.checkpoints
    assert written(stages=[]) == config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stages": TWO[:1]}, "stages has one stage; give two or more, or leave stages out."),
        ({"stages": [{"steps": 0}, {"steps": 1}]}, "stages.0.steps must be a number greater than or equal to 1"),
        ({"stages": [{"steps": 1}, {"weights": DOCS}]}, "stages.1.steps is missing; add it."),
        ({"stages": [{"steps": 1}, {"steps": 1, "rate": 1}]}, "stages.1.rate is not a key of the configuration"),
        ({"stages": [{"steps": 1}, {"steps": 1, "weights": {}}]}, "stages.1.weights must have at least 1 entry."),
        ({"stages": [{"steps": 1}, {"steps": 1, "weights": {"python-docs": 0}}]}, "stages.1.weights.python-docs must"),
        ({"stages": [{"steps": 1}, {"steps": 1, "weights": {"python-docs": True}}]}, "stages.1.weights must"),
        (
            {"stages": [{"steps": 1}, {"steps": 1, "weights": {"python-doc": 1}}]},
            "stages.1.weights has python-doc, which is no source of data.sources (did you mean python-docs?).",
        ),
        (
            {"stages": [{"steps": 1}, {"steps": 1, "weights": "cooldown"}]},
            "The weights 'cooldown' are a name, which only a data.mixture has; give weights by source.",
        ),
        (
            {"stages": TWO, "training": TINY["training"] | {"steps": 1}},
            "training.steps (1) must be at least the number",
        ),
        (
            {"stages": TWO, "data": TINY["data"] | {"order": "stored", "sources": TINY["data"]["sources"][:1]}},
            "stages.1.weights mixes the sources, and data.order is stored; take out one of the two.",
        ),
        (
            {
                "stages": TWO,
                "data": TINY["data"]
                | {
                    "sources": [{**{k: v for k, v in TINY["data"]["sources"][0].items() if k != "weight"}, "epochs": 1}]
                },
            },
            "stages.1.weights needs data.sources by weight, and they are by epochs.",
        ),
        ({"stages": "two"}, "stages must be a valid list, not 'two'."),
    ],
)
def test_stages_that_do_not_fit_are_one_sentence(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        parse(yaml.safe_dump(TINY | changed))
    assert "\n" not in str(caught.value)


def test_weights_that_a_mixture_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text(yaml.safe_dump({"like": "comma-7b", "stages": [{"steps": 1}, {"steps": 1, "weights": "warmup"}]}))
    with pytest.raises(ConfigError, match="The mixture common-pile has no weights 'warmup'; those that it has by name"):
        load(path)
    path.write_text(yaml.safe_dump({"like": "comma-7b", "stages": []}))
    assert load(path).stages == []


def test_sources_go_on_where_the_stages_before_left_them() -> None:
    sizes, boundary = [700, 40_000, 900], 2 * BLOCK + 100
    weights: list[list[float]] = [[1, 3, 0], [2, 1, 1], [0, 0, 5]]
    order = StagedOrder(weights, [boundary, boundary + 6_000, boundary + 7_000], sizes, 1234)
    rows = order.rows(0, boundary + 8_000)
    assert rows[:boundary] == Order(weights[0], sizes, 1234).rows(0, boundary)
    counts = Counter(row.source for row in rows[boundary : boundary + 6_000])
    assert [counts[source] / 6_000 for source in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert {row.source for row in rows[boundary + 6_000 :]} == {2}
    for source, size in enumerate(sizes):
        read = [row.number for row in rows if row.source == source]
        assert all(len(set(read[start : start + size])) == size for start in range(0, len(read) - size, size))
    for first, count in ((boundary - 3, 7), (boundary, 5), (boundary + 5_990, 20), (boundary + 7_500, 9)):
        assert order.rows(first, count) == rows[first : first + count]
    # A boundary between like weights is none.
    assert StagedOrder([[1, 3]] * 2, [5, 99], [7, 50], 1).rows(0, 99) == Order([1, 3], [7, 50], 1).rows(0, 99)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the two stages, 8 and 4 steps, on two ranks."""
    folder = tmp_path_factory.mktemp("staged")
    result = run_trainer("train", staged_config(folder), "--out", folder / "out", "--gpus", "2")
    assert result.returncode == 0, result.stderr
    return folder / "out"


def staged_config(folder: Path, stages: list[dict[str, Any]] = TWO, **training: Any) -> Path:
    path = write_config(folder / "staged.yml", **training)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stages": stages}))
    return path


def test_a_run_of_two_stages(staged: Path, finished: Path, tmp_path: Path) -> None:
    """Both end with a checkpoint; the first stage reads what a run without stages does, the second its own sources; a
    resume from the boundary or before it is the same to the bit."""
    saved = [event["step"] for event in lines(staged / "events.jsonl") if event["event"] == "checkpoint"]
    assert saved == [0, 1, 2, 4, 5, 8, 10, 12]
    begun = [event["message"] for event in lines(staged / "events.jsonl") if "begins" in event.get("message", "")]
    assert begun == ["stage 1 of 2 begins: 8 steps", "stage 2 of 2 begins: 4 steps, on python-docs"]
    metrics = lines(staged / "metrics.jsonl")
    assert metrics[0]["loss"] == lines(finished / "metrics.jsonl")[0]["loss"]
    assert [line["lr"] for line in metrics] == [rate(load(staged / "config.yml"), step) for step in range(12)]
    whole, plain = (
        Corpus(load(staged / "config.yml"), staged / "data"),
        Corpus(load(finished / "config.yml"), finished / "data"),
    )
    assert [whole.rows(step) for step in range(8)] == [plain.rows(step) for step in range(8)]
    assert {row.source for step in range(8, 12) for row in whole.rows(step)} == {0}
    read = [row.number for step in range(12) for row in whole.rows(step) if row.source == 0]
    assert len(set(read)) == len(read)
    assert whole.readings()[0] == pytest.approx((8 * 8 / 4 + 4 * 8) / whole._rows[0])
    assert (whole.evaluation == plain.evaluation).all()
    shown = run_trainer("data", "show", staged, "--step", "9", "--json")
    assert shown.returncode == 0, shown.stderr
    assert {row["source"] for row in json.loads(shown.stdout)["rows"]} == {"python-docs"}
    for step in (5, 8):
        out = tmp_path / str(step)
        start = staged / "checkpoints" / f"step{step}"
        result = run_trainer("train", staged_config(tmp_path), "--out", out, "--resume", start, "--gpus", "2")
        assert result.returncode == 0, result.stderr
        losses = [line["loss"] for line in lines(out / "metrics.jsonl")]
        assert losses == [line["loss"] for line in metrics[step:]]


def test_a_run_that_is_paused_in_each_stage_and_between_them_is_the_same(staged: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yml", {"data": {"prepared": str(staged / "data")}})
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stages": TWO}))
    config, dims = load(path), ParallelDims(0, 1, torch.device("cpu"), 1, 1)

    def measured(out: Path) -> list[dict[str, Any]]:
        return lines(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []

    def go(out: Path, until: int) -> tuple[Status, int]:
        """Train, with a stop that is asked for while step `until` is done."""
        out.mkdir(exist_ok=True)
        start = find_starting_point(config, out)
        return train(config, out, start, dims, lambda: len(measured(out)) >= until - 1)

    assert go(tmp_path / "whole", 99) == (Status.DONE, 12)
    assert [go(tmp_path / "paused", until) for until in (3, 8, 10)] == [(Status.STOPPED, step) for step in (3, 8, 10)]
    assert go(tmp_path / "paused", 99) == (Status.DONE, 12)
    whole, paused = ([(m["loss"], m["lr"]) for m in measured(tmp_path / out)] for out in ("whole", "paused"))
    assert paused == whole
    told = [event.get("message", "") for event in lines(tmp_path / "paused" / "events.jsonl")]
    assert [message[:18] for message in told if "begins" in message] == ["stage 1 of 2 begin", "stage 2 of 2 begin"]


def test_stages_change_on_wish_and_never_what_was_read(staged: Path, tmp_path: Path) -> None:
    def start(
        stages: list[dict[str, Any]], step: int, change: tuple[str, ...] = (), **training: Any
    ) -> tuple[str, ...]:
        config = load(staged_config(tmp_path, stages, **training))
        return find_starting_point(
            config, tmp_path / "out", staged / "checkpoints" / f"step{step}", change=change
        ).changes

    assert start(TWO, 5) == ()
    hotter = [TWO[0], TWO[1] | {"peak_ratio": 1.0}]
    with pytest.raises(ConfigError, match=r"stages\.1\.peak_ratio is 1\.0 here and 0\.5 in the checkpoint \(step 11"):
        start(hotter, 10)
    [said] = start(hotter, 10, ("stages",))
    assert said.startswith("stages.1.peak_ratio is 1.0 after step 10, and 0.5 before (step 11 has the learning rate")
    other = [TWO[0], TWO[1] | {"weights": {"python-stdlib": 1}}]
    assert len(start(other, 8, ("stages",))) == 2
    with pytest.raises(
        ConfigError, match="stages would change what the steps up to 10 have read; keep those that have"
    ):
        start(other, 10, ("stages",))
    with pytest.raises(ConfigError, match="stages would change what the steps up to 10 have read"):
        start([], 10, ("stages",))
    assert len(start([{"steps": 8}, TWO[1] | {"steps": 12}], 10, ("training.steps", "stages"), steps=20)) == 2


def test_check_tells_the_stages(staged: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yml", {"data": {"prepared": str(staged / "data")}})
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stages": TWO}))
    report = json.loads(run_trainer("check", path, "--json").stdout)
    assert [stage["tokens"] for stage in report["stages"]] == [
        {"python-docs": 512, "python-stdlib": 1536},
        {"python-docs": 1024},
    ]
    assert {reading["corpus"]: reading["epochs"] * reading["tokens"] for reading in report["reads"]} == pytest.approx(
        {"python-docs": 1536, "python-stdlib": 1536}
    )
    said = " ".join(run_trainer("check", path).stdout.split())
    assert "4 steps, learning rate 0.005 → 0.002: 1.0 k of python-docs" in said
