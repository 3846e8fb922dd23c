"""A byte-level BPE tokenizer: any text round-trips, and a run of spaces (an indentation) can be one token."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.config import END_OF_DOCUMENT, TokenizerConfig
from trainer.schema import ConfigError

# Words with their leading space, up to three digits, signs, a newline with the indentation after it, other spaces.
_SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\r?\n[ \t]*| {2,}|\s"


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn the merges from `texts`; the result has at most `vocabulary` tokens, the end of a document among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(END_OF_DOCUMENT, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int, end: str = END_OF_DOCUMENT) -> None:
    """Write what transformers' AutoTokenizer opens; `end` is the token that ends a document."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def end_of_document(tokenizer: Tokenizer, end: str = END_OF_DOCUMENT) -> int:
    """The id of the token that ends a document. Raises ValueError if there is none."""
    token = tokenizer.token_to_id(end)
    if token is None:
        raise ValueError(f"The tokenizer has no {end}.")
    return token


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_checked(path: Path, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer.json that fits the configuration.

    Raises ConfigError if it cannot be read, has more tokens than `vocabulary` or none that ends a document.
    """
    if not path.is_file():
        raise ConfigError(f"There is no tokenizer at {path}; correct data.tokenizer.file or data.root.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # What the library raises is a bare Exception.
    except Exception as error:
        raise ConfigError(f"{path} is no tokenizer.json of the tokenizers library; name another file.") from error
    if size(tokenizer) > config.vocabulary:
        raise ConfigError(
            f"data.tokenizer.vocabulary ({config.vocabulary}) must be at least the {size(tokenizer)} tokens of {path}."
        )
    if tokenizer.token_to_id(config.end_of_document) is None:
        raise ConfigError(
            f"The tokenizer {path} has no {config.end_of_document}; set data.tokenizer.end_of_document to the token "
            "that ends its documents."
        )
    return tokenizer


def size(tokenizer: Tokenizer) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def digest(tokenizer: Tokenizer) -> str:
    """The SHA-256 of all that decides its tokens, however its file is laid out."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
