"""Reading `config.json` of a model folder that transformers wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError

from trainer.families import ADAPTERS
from trainer.model.config import ModelConfig
from trainer.schema import ConfigError

_DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_dropout", "embed_dropout", "resid_pdrop", "embd_pdrop")


class HFModel(NamedTuple):
    """A model of transformers as our configuration. `end` is the id of the end-of-document token; each of `notes` is a
    sentence about something that is not taken over."""

    model: ModelConfig
    end: int | None
    notes: list[str]


def read_folder(folder: Path) -> HFModel:
    """The model in a folder. Raises ConfigError if our configuration cannot express it."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no config.json; give a folder that transformers' save_pretrained wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not JSON; fetch it again.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a configuration of transformers; fetch it again.")
    return read_config(values)


def read_config(values: Mapping[str, Any]) -> HFModel:
    """The model from the content of a `config.json` of transformers 4 or 5. Raises ConfigError if our configuration
    cannot express it."""
    adapters = {adapter.architecture: adapter for adapter in ADAPTERS}
    kinds = {adapter.model_type: adapter.architecture for adapter in ADAPTERS}
    named = values.get("architectures") or [kinds.get(str(values.get("model_type")), values.get("model_type"))]
    if not isinstance(named[0], str) or named[0] not in adapters:
        raise ConfigError(f"The architecture {named[0]} is none of ours, which are {', '.join(adapters)}.")
    for key in ("quantization_config", "sliding_window"):
        if values.get(key):
            raise ConfigError(f"The model has a {key}, which ours has not; give one without.")
    adapter = adapters[named[0]]
    try:
        theirs = _parse(adapter.model_type, dict(values))
        model = adapter.read(theirs)
    except ValidationError as error:
        reason = error.errors()[0]
        key = ".".join(map(str, ("model", *reason["loc"])))
        raise ConfigError(f"config.json has no shape of ours: {key}: {reason['msg']}.") from None
    except ConfigError:
        raise
    except (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"config.json is no {adapter.model_type} configuration: {' '.join(str(error).split())}"
        ) from error
    end = theirs.eos_token_id
    return HFModel(model, end[0] if isinstance(end, list) else end, _notes(values, model))


def _parse(model_type: str, values: dict[str, Any]) -> Any:
    """The configuration as transformers reads it, with its defaults and the older names of fields."""
    from transformers import CONFIG_MAPPING, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return CONFIG_MAPPING[model_type].from_dict(values)


def _notes(values: Mapping[str, Any], model: ModelConfig) -> list[str]:
    notes = [f"{key} is {values[key]} there; this trainer has no dropout." for key in _DROPOUTS if values.get(key)]
    if values.get("model_type") == "gpt_neox" and model.activation == "gelu-erf":
        notes.append(
            "config.json says the erf GELU; GPT-NeoX and Pythia were trained with the tanh one "
            "(model.activation gelu-tanh), and the two differ a little."
        )
    return notes
