"""The chaos story; `make chaos` plays it and prints how it came out."""

import pytest
from rich.console import Console

from tests.system.chaos import Size, play


@pytest.mark.chaos
def test_the_story_comes_out_whole_whatever_befalls_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        assert play(Size.given(), Console(width=120))
