"""Our weights as transformers' own classes read them, and back: one adapter a class."""

from trainer.families.base import Adapter, Family, Get, Own
from trainer.families.gpt_j import GPTJ
from trainer.families.gpt_neo import GPTNeo
from trainer.families.gpt_neox import GPTNeoX
from trainer.families.llama import Llama
from trainer.model.config import ModelConfig

__all__ = ["ADAPTERS", "Family", "Get", "family_of"]

ADAPTERS: tuple[type[Adapter], ...] = (GPTNeoX, GPTJ, GPTNeo, Llama)


def family_of(model: ModelConfig, vocabulary: int, context: int) -> Family:
    """The first class of transformers that computes the same function as the model, by other means if need be.

    Where there is none, weights keep our own names and `refusal` says why.
    """
    adapters = [adapter(model, vocabulary, context) for adapter in ADAPTERS]
    lacks = {adapter: list(adapter.lacks()) for adapter in adapters}
    nearest = min(adapters, key=lambda adapter: len(lacks[adapter]))
    if not lacks[nearest]:
        return nearest
    return Own(
        "No class of transformers computes this model: the nearest, "
        f"{nearest.architecture}, has no {' and no '.join(lacks[nearest])}."
    )
