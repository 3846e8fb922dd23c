"""A byte-level BPE tokenizer (Sennrich et al. 2016): any text round-trips, and a run of spaces can be one token."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.config import END_OF_DOCUMENT, TokenizerConfig
from trainer.schema import ConfigError

# Words with a leading space, up to three digits, signs, a newline with the indentation after it, other spaces.
_SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\r?\n[ \t]*| {2,}|\s"


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer trained on `texts`, with at most `vocabulary` tokens, the end-of-document token included."""
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
    """Write the files that transformers' AutoTokenizer opens. `context` is the model's in tokens, `end` the
    end-of-document token."""
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
    """The id of the end-of-document token `end`. Raises ValueError if the tokenizer lacks it."""
    token = tokenizer.token_to_id(end)
    if token is None:
        raise ValueError(f"The tokenizer has no {end}.")
    return token


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder's tokenizer.json. Raises a bare Exception, the library's, if it cannot be read."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_checked(path: Path, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a tokenizer.json, checked against the configuration.

    Raises ConfigError if it cannot be read, has more tokens than `vocabulary`, or lacks the end-of-document token.
    """
    if not path.is_file():
        raise ConfigError(f"There is no tokenizer at {path}; correct data.tokenizer.file or data.root.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
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
    """The size of the vocabulary: one more than the highest token id."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def digest(tokenizer: Tokenizer) -> str:
    """The SHA-256 of what decides the tokens, whatever the formatting of its file."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
