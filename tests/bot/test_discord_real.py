"""The script for the real Discord finds on the loopback one what Stoa takes Discord to be."""

import asyncio
import os
import sys

import pytest

from sandbox.people import Channel
from tests.bot.conftest import ROOT, Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_script_for_the_real_discord(shared_lab: tuple[Lab, Channel]) -> None:
    lab, _ = shared_lab
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.discord_real",
        cwd=ROOT,
        env=os.environ | {name: value for name, value in lab.environment.items() if name.startswith("STOA_")},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    said = out.decode()
    assert "✘" not in said, said
    assert process.returncode == 0
    assert said.count("✔") == 20
    assert "[ ] /stoa setup" in said
