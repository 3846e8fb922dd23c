"""The main job: `make demo`'s story as a new user starts it, and the same story with the bot killed in its middle."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cli.services import Services
from demo import play, story
from demo.play import set_stage
from demo.stage import Stage
from projects.record import record
from tests.absent import absent
from tests.discord_openapi import DESCRIPTION_ENV, DiscordJudge, find_description, loose_mentions, malformed, recorded
from tests.environment import bare
from tests.patience import PATIENCE, until
from tests.system import posts
from tests.system.forked_services import ForkedServices

SOON = {"lease_seconds": 3.0}
"""A bot's settings by which another takes over its delivery soon."""


def assert_told_once(channels: Mapping[str, Sequence[str]], heads: dict[str, int]) -> None:
    """Each entry is posted, and nowhere twice; within a channel the entries of a stream stand in order."""
    found = posts.counted(channels)
    everything = {(stream, number) for stream, head in heads.items() for number in range(1, head + 1)}
    assert set(found) == everything, "an entry is missing, or one was posted that is not in the record"
    assert [(entry, where) for entry, where in found.items() if max(where.values()) > 1] == []
    for channel, texts in channels.items():
        numbers = [entries[0] for text in texts if (entries := posts.told(text))]
        assert numbers == sorted(numbers), f"the entries in {channel} are out of order"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One demo, played to its end by the command that `make demo EXIT=1` runs."""
    home = tmp_path_factory.mktemp("home")
    environment = bare() | {"STOA_HOME": str(home), "STOA_ENV_FILE": ""}
    command = [sys.executable, "-m", "cli.main", "demo", "--no-stay"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=8 * PATIENCE, check=False)
    return home / "demo", done


def test_the_demo_plays_to_its_end(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, done = played
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((home / "report.json").read_text())
    assert report["ok"]
    assert [step["name"] for step in report["steps"][1:]] == [name for name, _ in story.STORY]
    assert report["loss"]["last"] < report["loss"]["unigram_entropy"] - story.CLEARLY < report["loss"]["first"]
    assert str(round(report["loss"]["unigram_entropy"], 2)) in done.stdout
    for task, values in report["evaluation"].items():
        assert task.startswith("heldout_")
        assert values["40"] < values["0"]
    assert len([task for task in report["evaluation"] if task.startswith("heldout_")]) == 2
    study = report["study"]
    assert study["steps"] == [int(branch.removeprefix("step")) for branch in report["hub"]["branches"]]
    assert all(0 <= share <= 1 for share in study["accuracy"])
    assert f"{study['accuracy'][-1]:.0%} of the pairs" in report["channels"]["announcements"][0]["content"]
    assert Path(study["figure"]).read_bytes().startswith(b"\x89PNG")
    ledger = report["ledger"]
    assert ledger["granted"] == ledger["reserved"] + ledger["spent"] + ledger["left"]
    assert ledger["spent"] > 0
    assert report["record"]["chain_ok"]
    assert report["hub"]["branches"][:4] == ["step0", "step1", "step2", "step4"]
    assert Path(report["hub"]["folder"]).is_dir()
    assert Path(report["curve"]).read_bytes().startswith(b"\x89PNG")


def test_the_demo_leaves_no_process_behind(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = played
    left = [
        process.cmdline() for process in psutil.process_iter() if any(str(home) in word for word in cmdline(process))
    ]
    assert left == []


async def test_a_part_that_dies_after_the_story_is_no_failure_of_the_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "Services", ForkedServices)
    monkeypatch.setattr(play, "STORY", ())  # it is told as soon as its parts stand
    said = io.StringIO()
    status = asyncio.create_task(play._play(Console(file=said), tmp_path, stay=True))
    await until(lambda: status.done() or "Everything is still up" in said.getvalue(), "the end of the story")
    sandbox = json.loads((tmp_path / "sandbox" / "sandbox.json").read_text())
    os.kill(sandbox["pid"], signal.SIGKILL)
    assert await status == 1
    rest = said.getvalue().partition("Everything is still up")[2]
    assert "A part ended after the story: The sandbox ended with status -9" in rest
    assert "The demo failed" not in rest


def test_every_entry_of_the_record_is_posted_once(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = played
    report = json.loads((home / "report.json").read_text())
    channels = {name: [message["content"] for message in told] for name, told in report["channels"].items()}
    heads: dict[str, int] = {}
    for stream, number in posts.counted(channels):
        heads[stream] = max(number, heads.get(stream, 0))
    assert sum(heads.values()) == report["record"]["entries"]
    announcements = channels.pop("announcements")
    assert_told_once(channels, heads)
    assert len(announcements) == 1


def test_all_that_was_said_on_the_wire_is_discords_own_api(
    played: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    if find_description() is None:
        absent("the judgement of the story's exchanges", f"Discord's description is not at {DESCRIPTION_ENV}")
    home, _ = played
    assert len(recorded(home / "sandbox", "exchanges.jsonl")) > 50
    assert loose_mentions(home / "sandbox") == []
    assert DiscordJudge().judge_recorded(home / "sandbox") + malformed(home / "sandbox") == []


@pytest.mark.chaos
async def test_the_bot_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """`kill -9` of the bot after the proposal, after the scope and in mid-run: nothing missing, nothing twice."""
    parts = ForkedServices(tmp_path / "logs")
    console = Console(quiet=True)
    try:
        stage = await set_stage(tmp_path, parts, bot=SOON)
        stage.override = "steps=24, batch=4, micro_batch=2, sequence_length=32"
        for act in (story.propose, story.join, story.confirm, story.scope, story.request, story.approve):
            await act(stage, console)
            if act in (story.propose, story.scope):
                await kill_and_restart(stage, parts)
        await story.launch(stage, console)
        training = asyncio.create_task(until_trained(stage))
        await until(lambda: stage.run().step > 0, "the first steps")
        await kill_and_restart(stage, parts)
        await training
        for act in (story.card, story.checkpoints, story.sample, story.complete):
            await act(stage, console)
        with stage.database.read() as session:
            heads = dict(record.streams(session))
        last = f" record {heads[f'project:{stage.project_id}']} "
        await stage.guild.wait_for(stage.channel, lambda m: last in m.text)
        channels = {
            channel.name: [message.text for message in await stage.guild.messages(channel.id)]
            for channel in await stage.guild.channels()
            if channel.name != "announcements"
        }
        assert_told_once(channels, heads)
        assert (
            sum("Join" in m.button_labels or m.thread_id == m.id for m in await stage.guild.messages("proposals")) == 1
        )
        assert len(await stage.guild.messages("announcements")) == 1
        assert_no_secret(tmp_path, [stage.guild.info["bot_token"], stage.guild.info["hub_token"]], channels)
        await stage.guild.close()
        stage.database.close()
    finally:
        await asyncio.to_thread(parts.stop)


def assert_no_secret(home: Path, secrets: Sequence[str], channels: Mapping[str, Sequence[str]]) -> None:
    """No token stands in a log or in a channel."""
    logs = [path.read_text() for path in [*(home / "logs").iterdir(), *(home / "runs").rglob("*.log")]]
    said = [text for texts in channels.values() for text in texts]
    assert len(logs) > 6
    assert not any(secret in text for secret in secrets for text in logs + said)


async def kill_and_restart(stage: Stage, parts: Services) -> None:
    """End the bot with SIGKILL, start another, and wait until it answers."""
    parts.kill("bot")
    await asyncio.to_thread(parts.start_stoa, stage.settings.model_copy(update=SOON), "bot")
    await stage.guild.wait_for_bot("project")


async def until_trained(stage: Stage) -> None:
    """Wait for the run's end; how low its loss comes is not the matter here."""
    await until(lambda: stage.run().ended_at is not None, "the end of the run", every=0.5)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
