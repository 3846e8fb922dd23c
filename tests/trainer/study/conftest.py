"""A folder with data of 26 words and the checkpoints of a run, shared by the tests that only read it."""

from pathlib import Path

import pytest

from tests.trainer.study.world import config, drawn, write_checkpoint, write_data

STEPS = (0, 1, 2, 4)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with prepared data and the checkpoints of STEPS, of random weights."""
    folder = tmp_path_factory.mktemp("studied")
    write_data(folder)
    settings = config(folder)
    for step in STEPS:
        write_checkpoint(folder, settings, step, drawn(settings, step))
    return folder
