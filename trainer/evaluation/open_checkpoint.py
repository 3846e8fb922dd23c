"""Opening a checkpoint to use it: its model, in fp32 on the GPU where there is one, and its tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from trainer.checkpoint import metadata, save_load
from trainer.config import TrainConfig
from trainer.contract import CHECKPOINT_METADATA_FILE
from trainer.data import tokenizer as bpe
from trainer.data.prepare import folder_of
from trainer.model.transformer import Transformer
from trainer.schema import ConfigError


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint's model and tokenizer. `window` is the most tokens that the model sees at once, `end` the id of the
    end-of-document token, `begin` of the one that comes before the first token of a text: the tokenizer's own, or else
    `end`. Generation stops before any of `ends`."""

    folder: Path
    step: int
    config: TrainConfig
    model: Transformer
    tokenizer: Tokenizer
    window: int
    begin: int
    end: int
    ends: frozenset[int]
    device: torch.device

    def encode(self, text: str, special: bool = False, added: bool = False) -> list[int]:
        """The token ids of a text. A special token in the text is taken as plain text, unless `special`. Where `added`,
        they include those that the tokenizer itself puts around every text."""
        self.tokenizer.encode_special_tokens = not special
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=added).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The token ids of a text to continue, after those that the tokenizer itself puts before every text."""
        ids, first = self.encode(text, special=True), bpe.prefix(self.tokenizer)
        return ids if ids[: len(first)] == first else [*first, *ids]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode(ids)
        return text

    @property
    def data(self) -> Path:
        """The prepared data of the run that wrote the checkpoint."""
        return data_of(self.folder, self.config)

    @torch.no_grad()
    def hidden(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [B, L, D] after the last block, for B rows of token ids; shorter rows are padded on the right
        to the longest, L.

        Attention is causal, so no token sees the padding after it. Every call computes all tokens; a cache of keys and
        values would belong here.
        """
        for x_BLD in self.layers(ids):
            last_BLD = x_BLD
        return last_BLD

    @torch.no_grad()
    def layers(self, ids: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The hidden states [B, L, D] of `hidden` after the embedding, and then after each block."""
        longest = max(map(len, ids))
        ids_BL = torch.tensor([(*row, *[0] * (longest - len(row))) for row in ids], device=self.device)
        x_BLD: Tensor = self.model.embed(ids_BL)
        yield x_BLD
        for block in self.model.blocks:
            x_BLD = block(x_BLD)
            yield x_BLD

    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [N, V] in fp32 of hidden states [N, D]; V includes the rows that pad the tokenizer's vocabulary."""
        logits_NV: Tensor = self.model.head(x_ND)
        return logits_NV.float()

    def next_logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] in fp32 on the CPU for the token after each row; V is the tokenizer's vocabulary."""
        last = [len(row) - 1 for row in ids]
        return self.logits(self.hidden(ids)[range(len(ids)), last])[:, : bpe.size(self.tokenizer)].cpu()


def open_checkpoint(folder: Path, before: OpenCheckpoint | None = None) -> OpenCheckpoint:
    """Open the checkpoint in a step folder; its weights take the place of those of `before`, a checkpoint with the same
    model that is not used any more. Raises ConfigError if it is not a checkpoint, or a damaged one."""
    made = metadata.read(folder)
    config, step = _configuration(folder, made)
    tokenizer = _open_tokenizer(folder, config)
    model = save_load.build(config) if before is None else before.model
    save_load.load_weights(model, folder, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = bpe.end_of_document(tokenizer, config.data.tokenizer.end_of_document)
    model.eval().to(device)
    if model.rotary:
        model.rotary.to(device)
    metadata.verify_weights(folder, made)
    begin = bpe.begin_of_text(tokenizer, folder)
    return OpenCheckpoint(
        folder=folder,
        step=step,
        config=config,
        model=model,
        tokenizer=tokenizer,
        window=config.context,
        begin=end if begin is None else begin,
        end=end,
        ends=frozenset({end, *save_load.ends_of_generation(folder)}),
        device=device,
    )


def data_of(folder: Path, config: TrainConfig | None = None) -> Path:
    """The prepared data of the run that wrote the checkpoint in a step folder. Raises ConfigError if it is not a
    checkpoint."""
    config = config or _configuration(folder, metadata.read(folder))[0]
    return folder_of(config, folder.absolute().parent.parent)


def _configuration(folder: Path, made: dict[str, Any]) -> tuple[TrainConfig, int]:
    """The configuration and the step of a checkpoint with these metadata."""
    try:
        return TrainConfig.model_validate(made["config"]), int(made["step"])
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")])
        raise ConfigError(
            f"The checkpoint {folder} has a configuration that this trainer cannot read ({problem.lstrip(': ')}); use "
            "the version of the trainer that wrote it."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(_damaged(folder, CHECKPOINT_METADATA_FILE, "it lacks the config or the step")) from error


def _open_tokenizer(folder: Path, config: TrainConfig) -> Tokenizer:
    try:
        tokenizer = bpe.load(folder)
    except Exception as error:  # the library raises a bare Exception
        raise ConfigError(_damaged(folder, "tokenizer.json", "it is missing or cannot be read")) from error
    size, end = bpe.size(tokenizer), config.data.tokenizer.end_of_document
    if size > config.vocabulary:
        raise ConfigError(
            _damaged(folder, "tokenizer.json", f"it has {size} tokens and the model's vocabulary {config.vocabulary}")
        )
    if tokenizer.token_to_id(end) is None:
        raise ConfigError(_damaged(folder, "tokenizer.json", f"it has no {end}"))
    return tokenizer


def _damaged(folder: Path, name: str, problem: str) -> str:
    return f"The checkpoint {folder} is damaged at {name}: {problem}; use another."
