"""The script for the real Discord finds on the loopback one what Stoa takes Discord to be."""

import asyncio
import os
import sys

import pytest

from sandbox.people import Channel
from tests.bot.conftest import ROOT, Lab
from tests.patience import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_script_for_the_real_discord(shared_lab: tuple[Lab, Channel]) -> None:
    lab, _ = shared_lab
    lab.malformed_on_purpose = True
    status, said = await play(lab)
    assert "✘" not in said, said
    assert status == 0
    assert said.count("✔") == 32
    for click in (
        "/stoa setup",
        "/project propose",
        "/run launch",
        "/run show",
        "Compare",
        "Pause",
        "Config",
        "/project complete",
    ):
        assert f"[ ] {click}" in said or f"{click} on" in said, click


async def test_it_says_what_it_cannot_do(shared_lab: tuple[Lab, Channel]) -> None:
    lab, _ = shared_lab
    await lab.guild.fault(r"POST /guilds/\d+/channels$", status=403)
    status, said = await play(lab)
    assert "✘ it can make a channel: " in said
    assert "1 failed." in said
    assert "[ ] /stoa setup" in said
    assert status == 1


@pytest.mark.parametrize(
    ("asked", "status", "seen"),
    [
        (r"POST /channels/\d+/messages$", 502, "✘ the story can go on: POST /channels/"),
        (r"GET /guilds/\d+/members", 403, "✘ the story can go on: GET /guilds/"),
    ],
)
async def test_an_odd_answer_is_a_failure_and_not_the_end(
    shared_lab: tuple[Lab, Channel], asked: str, status: int, seen: str
) -> None:
    lab, _ = shared_lab
    lab.malformed_on_purpose = True
    await lab.guild.fault(asked, status=status)
    ended, said = await play(lab)
    assert seen in said
    assert " failed.\n" in said
    assert "[ ] /stoa setup" in said
    assert ended == 1
    assert not [channel.name for channel in await lab.guild.channels() if "check" in channel.name]


async def play(lab: Lab) -> tuple[int | None, str]:
    """The script's exit status, and what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.discord_real",
        cwd=ROOT,
        env=os.environ | {name: value for name, value in lab.environment.items() if name.startswith("STOA_")},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, out.decode()
