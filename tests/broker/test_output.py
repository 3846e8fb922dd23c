"""What a trainer leaves in its folder, as the supervisor reads it while it is being written."""

import json
from pathlib import Path

import pytest

from broker.runners import output
from broker.runs.progress import Checkpoint, Ending, Spike
from broker.runs.series import Measured


def write(path: Path, *lines: object, end: str = "") -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write(end)


def metrics(step: int, **values: float | None) -> dict[str, object]:
    return {"step": step, "tokens": 10 * step, **values}


def test_nothing_is_read_from_nothing(tmp_path: Path) -> None:
    progress = output.read(tmp_path, 0, 0)
    assert (progress.metrics_read, progress.events_read, progress.step, list(progress.points)) == (0, 0, None, [])


def test_a_half_written_line_waits_for_the_next_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(metrics(3, loss=5.0))
    write(path, metrics(1, loss=7.0), metrics(2, loss=6.0), end=whole[:9])
    first = output.read(tmp_path, 0, 0)
    assert (first.step, first.tokens) == (2, 20)
    assert list(first.points) == [Measured("loss", 1, 10, 7.0), Measured("loss", 2, 20, 6.0)]
    assert first.metrics_read == path.stat().st_size - 9
    assert list(output.read(tmp_path, first.metrics_read, 0).points) == []
    with path.open("a") as file:
        file.write(whole[9:] + "\n")
    second = output.read(tmp_path, first.metrics_read, 0)
    assert list(second.points) == [Measured("loss", 3, 30, 5.0)]
    assert second.metrics_read == path.stat().st_size


def test_a_line_may_hold_letters_of_more_than_one_byte(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes('{"event": "warning", "text": "zu groß 🎉"}\n{"event": "wa'.encode())
    assert output.read(tmp_path, 0, 0).events_read == path.read_bytes().index(b"\n") + 1


def test_what_is_no_number_is_left_out_and_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "tokens": 10, "loss": NaN, "lr": 0.1, "grad_norm": Infinity, "tokens_per_second": null}\n'
    )
    (tmp_path / "events.jsonl").write_text(
        '{"event": "evaluation", "step": 1, "tokens": 10, "loss": NaN, "unigram_entropy": 6.0}\n'
    )
    progress = output.read(tmp_path, 0, 0)
    assert list(progress.points) == [Measured("lr", 1, 10, 0.1)]
    assert (progress.step, progress.unigram_entropy) == (1, 6.0)


def test_a_jump_of_the_loss_is_read_where_its_numbers_are_whole(tmp_path: Path) -> None:
    jump: dict[str, object] = {"event": "spike", "step": 60, "loss": 4.5, "usual": 3.0}
    write(tmp_path / "events.jsonl", jump, jump | {"step": 70}, jump | {"loss": None}, jump | {"usual": "3"})
    progress = output.read(tmp_path, 0, 0)
    assert list(progress.spikes) == [Spike(60, 4.5, 3.0), Spike(70, 4.5, 3.0)]
    assert list(output.until(progress, 60).spikes) == [Spike(60, 4.5, 3.0)]


def test_what_a_full_disk_has_cut_short_is_left_out(tmp_path: Path) -> None:
    """The half line stays, and the next one is written on to it."""
    path = tmp_path / "metrics.jsonl"
    write(path, metrics(1, loss=7.0), end=json.dumps(metrics(2, loss=6.0))[:17])
    write(path, metrics(3, loss=5.0), metrics(4, loss=4.0), 5, {"step": 6}, end="\n\0\n")
    write(tmp_path / "events.jsonl", {"step": 4}, {"event": "checkpoint", "step": 4, "path": "checkpoints/step4"})
    progress = output.read(tmp_path, 0, 0)
    assert list(progress.points) == [Measured("loss", 1, 10, 7.0), Measured("loss", 4, 40, 4.0)]
    assert (progress.step, progress.metrics_read) == (4, path.stat().st_size)
    assert [checkpoint.step for checkpoint in progress.checkpoints] == [4]
    for name in ("outcome.json", "sample.json"):
        (tmp_path / name).write_text('{"status": 7')
    assert output.ending(tmp_path, 0, timed_out=False) == Ending(0, transient=True)


def test_what_is_refused_before_it_could_leave_an_outcome_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_text("Reading …\nThe source “web” has no column text.\n\n")
    said = output.ending(tmp_path, 78, timed_out=False)
    assert said == Ending(78, "The source “web” has no column text.", transient=False)
    (tmp_path / "trainer.log").unlink()
    silent = output.ending(tmp_path, 78, timed_out=False)
    assert silent.reason == "the trainer ended with status 78 and gave no reason; its log may say more"


def test_evaluations_and_checkpoints_come_from_the_events(tmp_path: Path) -> None:
    write(
        tmp_path / "events.jsonl",
        {"event": "started", "step": 0},
        {"event": "progress", "message": "reading the data"},
        {"event": "progress", "message": "building the model"},
        {"event": "progress", "message": 5},
        {"event": "evaluation", "step": 4, "tokens": 40, "loss": 6.25, "unigram_entropy": 6.5},
        {"event": "checkpoint", "step": 4, "path": "checkpoints/step4"},
        {"event": "something later versions tell"},
    )
    progress = output.read(tmp_path, 0, 0)
    assert progress.phase == "building the model"
    assert list(progress.points) == [Measured("held_out", 4, 40, 6.25)]
    assert progress.unigram_entropy == 6.5
    assert list(progress.checkpoints) == [Checkpoint(4, str(tmp_path / "checkpoints/step4"))]


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (0, {"status": 0, "step": 9}, Ending(0, "", sample="Once.", sample_step=9)),
        (75, {"status": 75}, Ending(75, "it was asked to stop")),
        (70, {"status": 70, "reason": "Rank 1 was killed.", "transient": True}, Ending(70, "Rank 1 was killed.", True)),
        (70, {"status": 70, "reason": "The loss is not finite."}, Ending(70, "The loss is not finite.")),
        (-15, None, Ending(-15, "the trainer was ended by SIGTERM", True)),
    ],
)
def test_how_it_ended(tmp_path: Path, status: int, said: dict[str, object] | None, expected: Ending) -> None:
    if said is not None:
        write(tmp_path / "outcome.json", {"transient": False} | said)
    write(tmp_path / "sample.json", {"text": "Once.\x00\x1b", "checkpoint_step": 9})
    assert output.ending(tmp_path, status, timed_out=False) == expected


def test_only_whole_checkpoints_are_gone_on_from(tmp_path: Path) -> None:
    for name in ("attempt-1/checkpoints/step8", "attempt-1/checkpoints/step16.tmp", "attempt-2/checkpoints/step12"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "attempt-2" / "checkpoints" / ".step99").mkdir()
    found = output.checkpoints([tmp_path / f"attempt-{token}" for token in (1, 2, 3)])
    assert [(checkpoint.step, Path(checkpoint.folder).parts[-3]) for checkpoint in found] == [
        (8, "attempt-1"),
        (12, "attempt-2"),
    ]


ODD = [
    b'{"step": "9", "tokens": 90, "loss": 1.0}',
    b'{"step": true, "tokens": 90, "loss": 1.0}',
    b'{"step": -1, "tokens": 90}',
    b'{"step": 1' + b"0" * 400 + b', "tokens": 90}',
    b'{"step": 1' + b"0" * 5000 + b', "tokens": 90}',
    b'{"step": 9.5, "tokens": 90}',
    b'{"step": null, "tokens": [90]}',
    b'{"step": 9, "tokens": 90, "loss": "\xfc"}',
    b"\xff\xfe\x00{",
    b"[" * 100_000,
    b'{"step": 9}',
    b"",
    b"null",
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_a_line_of_another_type_harms_no_other(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "tokens": 10, "loss": 7.0}\n' + odd + b'\n{"step": 2, "tokens": 20, "loss": 6.0}\n')
    progress = output.read(tmp_path, 0, 0)
    assert [point.step for point in progress.points] == [1, 2]
    assert (progress.step, progress.metrics_read) == (2, path.stat().st_size)


@pytest.mark.parametrize("value", ["true", '"7"', "[7]", "{}", "1e400", "1" + "0" * 400, "-Infinity"])
def test_a_value_of_another_type_harms_no_other(tmp_path: Path, value: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "tokens": 10, "loss": {value}, "lr": 0.5, "grad_norm": 2}}\n')
    assert list(output.read(tmp_path, 0, 0).points) == [Measured("lr", 1, 10, 0.5), Measured("grad_norm", 1, 10, 2.0)]


@pytest.mark.parametrize(
    "odd",
    [
        '{"event": "checkpoint", "step": "4", "path": "checkpoints/step4"}',
        '{"event": "checkpoint", "step": 4}',
        '{"event": "checkpoint", "step": 4, "path": 4}',
        '{"event": "checkpoint", "step": 4, "path": "../../elsewhere"}',
        '{"event": "checkpoint", "step": 4, "path": "/etc"}',
        '{"event": "evaluation", "step": 4, "loss": 1.0}',
        '{"event": "evaluation", "step": 4, "tokens": 40, "loss": null, "unigram_entropy": "high"}',
        '{"event": ["checkpoint"], "step": 4}',
        '{"event": 7}',
    ],
)
def test_an_event_that_lacks_what_its_kind_needs_is_left_out(tmp_path: Path, odd: str) -> None:
    good = '{"event": "checkpoint", "step": 8, "path": "checkpoints/step8"}'
    (tmp_path / "events.jsonl").write_text(f"{odd}\n{good}\n")
    progress = output.read(tmp_path, 0, 0)
    assert [found.step for found in progress.checkpoints] == [8]
    assert (list(progress.points), progress.unigram_entropy) == ([], None)


def test_a_long_file_is_read_in_pieces_and_a_huge_line_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MOST_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    write(path, *(metrics(step, loss=1.0) for step in range(1, 51)), end="{" * 2500 + "\n")
    write(path, metrics(51, loss=1.0))
    steps, at, more = [], 0, True
    while more or at < path.stat().st_size:
        progress = output.read(tmp_path, at, 0)
        assert at < progress.metrics_read <= at + 1000
        steps += [point.step for point in progress.points]
        at, more = progress.metrics_read, progress.more
    assert steps == list(range(1, 52))


@pytest.mark.parametrize("said", [b"", b"\xfc", b'{"a": 1}', b"[1]", b"[" * 100_000])
def test_a_list_of_checkpoints_that_a_power_cut_has_spoilt_is_made_again(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "attempt-1" / "checkpoints" / "step8").mkdir(parents=True)
    (tmp_path / "attempt-1" / "closed.json").write_bytes(said)
    assert [found.step for found in output.checkpoints([tmp_path / "attempt-1"])] == [8]


@pytest.mark.parametrize("said", [b"\xfc", b'{"reason": ["no"], "transient": "yes"}', b"[" * 100_000])
def test_an_outcome_of_another_type_is_an_outcome_all_the_same(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "outcome.json").write_bytes(said)
    assert output.ending(tmp_path, 70, timed_out=False).transient is True
