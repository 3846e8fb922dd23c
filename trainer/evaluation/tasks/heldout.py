"""`heldout`: bits per byte on the documents that a run kept out of its training, one task for each source.

The tasks are ordinary tasks of lm-evaluation-harness, so their numbers compare with the harness's own on other texts.
Bits per byte do not depend on the tokenizer: any checkpoint can be evaluated on any run's data.
"""

from pathlib import Path

from datasets import Dataset, DatasetDict
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask

from trainer.data.held_out_texts import documents
from trainer.data.prepare import manifest_of
from trainer.evaluation.task_names import HELDOUT
from trainer.schema import ConfigError

NAME = HELDOUT
_METRICS = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity"}
"""Metrics, and the harness's aggregation of each: over all bytes, not over documents."""


def heldout(data: Path) -> Group:
    """The group of the tasks `heldout_{source}` of a prepared data folder.

    Raises ConfigError if the folder holds no prepared data, data of another kind than text, a damaged file, or
    no held-out document.
    """
    group = Group(NAME)
    for source in manifest_of(data)["sources"]:
        if "kind" in source:
            raise ConfigError(f"{NAME} is of text, and the data in {data} are {source['kind']}; name other tasks.")
        texts = documents(data, source["name"], are_rows="row" in source)
        if texts:
            group.add(_task(source["name"], texts))
    if not len(group):
        raise ConfigError(f"The data in {data} hold no held-out document; prepare them with a higher data.held_out.")
    return group


def _task(source: str, texts: list[str]) -> ConfigurableTask:
    dataset = DatasetDict({"test": Dataset.from_dict({"text": texts})})
    return ConfigurableTask(
        config={
            "task": f"{NAME}_{source}",
            "custom_dataset": lambda **_: dataset,
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [
                {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
                for metric, aggregation in _METRICS.items()
            ],
            "metadata": {"version": 1.0},
        }
    )
