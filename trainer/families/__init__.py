"""Conversion of weights and configurations to and from transformers' own classes: one adapter for each class."""

from trainer.families.base import Adapter, Family, GetTensor, OwnNames
from trainer.families.gpt_j import GPTJ
from trainer.families.gpt_neo import GPTNeo
from trainer.families.gpt_neox import GPTNeoX
from trainer.families.llama import Llama
from trainer.model.config import ModelConfig

__all__ = ["ADAPTERS", "Family", "GetTensor", "family_of"]

ADAPTERS: tuple[type[Adapter], ...] = (GPTNeoX, GPTJ, GPTNeo, Llama)


def family_of(model: ModelConfig, vocabulary: int, context: int) -> Family:
    """The first class of transformers that computes the same function as the model.

    Where there is none, weights keep our own names and `refusal` says why.
    """
    adapters = [adapter(model, vocabulary, context) for adapter in ADAPTERS]
    missing = {adapter: list(adapter.missing_features()) for adapter in adapters}
    nearest = min(adapters, key=lambda adapter: len(missing[adapter]))
    if not missing[nearest]:
        return nearest
    return OwnNames(
        "No class of transformers computes this model: the nearest, "
        f"{nearest.architecture}, has no {' and no '.join(missing[nearest])}."
    )
