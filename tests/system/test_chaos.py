"""The chaos stories; `make chaos` plays them and prints how they came out."""

import pytest
from rich.console import Console

from tests.system import chaos_hosts
from tests.system.chaos import Size, play


@pytest.mark.chaos
def test_the_story_comes_out_whole_whatever_befalls_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        assert play(Size.given(), Console(width=120))


@pytest.mark.chaos
def test_the_story_comes_out_whole_whatever_befalls_its_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        assert chaos_hosts.play(Console(width=120))
