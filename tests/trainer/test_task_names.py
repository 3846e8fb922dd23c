"""The list of the harness's tasks is what the harness itself finds, and is read instead."""

import pytest

from trainer.evaluation import task_names


@pytest.mark.chaos
def test_the_list_is_what_the_harness_finds() -> None:
    assert sorted(task_names.of_harness()) == list(task_names.read_from_harness())


def test_what_is_suggested_first_exists_and_fits() -> None:
    assert all(map(task_names.is_known, task_names.OFTEN))
    assert task_names.containing("", 3) == ["heldout", "lambada_openai", "piqa"]
    assert task_names.containing("ARC_e", 3) == ["arc_easy", "arc_es", "arc_eu"]
    assert not task_names.is_known("heldout_*")
