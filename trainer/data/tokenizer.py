"""A byte-level BPE tokenizer (Sennrich et al. 2016): any text round-trips, and a run of spaces can be one token."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.config import END_OF_DOCUMENT, TokenizerConfig
from trainer.schema import ConfigError

SETTINGS = "tokenizer_config.json"
COMPANIONS = ("chat_template.jinja", "chat_template.json", "generation_config.json")
"""Files of a model folder of transformers that belong to its tokenizer."""

# Words with a leading space, up to three digits, signs, a newline with the indentation after it, other spaces.
_SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\r?\n[ \t]*| {2,}|\s"
LONGEST_WORD = 1_000
"""Characters of a word in training, which takes time in the square of them; the rest is another word."""
_SPLIT_IN_TRAINING = (
    rf" ?\p{{L}}{{1,{LONGEST_WORD}}}| ?\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]{{1,{LONGEST_WORD}}}"
    rf"|\r?\n[ \t]{{0,{LONGEST_WORD}}}| {{2,{LONGEST_WORD}}}|\s"
)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer trained on `texts`, with at most `vocabulary` tokens, the end-of-document token included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _words(_SPLIT_IN_TRAINING)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(END_OF_DOCUMENT, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _words(_SPLIT)
    return tokenizer


def _words(split: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save(
    tokenizer: Tokenizer, folder: Path, context: int, end: str = END_OF_DOCUMENT, source: Path | None = None
) -> None:
    """Write the files that transformers' AutoTokenizer opens. `context` is the model's in tokens, `end` the
    end-of-document token. Where the tokenizer comes from a folder `source`, its other special tokens, its chat template
    and its settings of generation come from there too."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = settings_of(source) if source else {}
    if not settings:
        first = prefix(tokenizer)
        begin = tokenizer.id_to_token(first[0]) if first else end
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin}
        settings["clean_up_tokenization_spaces"] = False
    settings |= {"model_max_length": context, "eos_token": end}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if source and source != folder:
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def settings_of(folder: Path) -> dict[str, Any]:
    """The content of a folder's tokenizer_config.json, with the special tokens that older versions of transformers
    keep in special_tokens_map.json. Raises ConfigError if one of them is no JSON object."""
    settings: dict[str, Any] = {}
    for name in (SETTINGS, "special_tokens_map.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder / name} is no configuration of a tokenizer; fetch it again.") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{folder / name} is no configuration of a tokenizer; fetch it again.")
        settings = content | {key: value for key, value in settings.items() if value is not None}
    for key, value in settings.items():
        # A token's other properties are in tokenizer.json.
        if key.endswith("_token") and isinstance(value, dict):
            settings[key] = content_of(value)
        elif key.endswith("_tokens") and isinstance(value, list):
            settings[key] = [content_of(token) for token in value]
    # These name code and the place that the tokenizer came from; a folder that is written has neither.
    return {key: value for key, value in settings.items() if key not in ("auto_map", "name_or_path", "is_local")}


def content_of(token: Any) -> str | None:
    """The text of a special token as tokenizer_config.json has it: as such, or in an object with its properties."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def begin_of_text(tokenizer: Tokenizer, folder: Path) -> int | None:
    """The id of the token that begins a text, by the settings in the tokenizer's folder; None where it has none."""
    begin = content_of(settings_of(folder).get("bos_token"))
    return None if begin is None else tokenizer.token_to_id(begin)


def prefix(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer itself puts before every text; none where it cannot encode a letter."""
    try:
        plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    except Exception:  # the library raises a bare Exception
        return []
    starts = [at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain]
    return list(whole[: starts[0]]) if starts else []


def end_of_document(tokenizer: Tokenizer, end: str = END_OF_DOCUMENT) -> int:
    """The id of the end-of-document token `end`. Raises ValueError if the tokenizer lacks it."""
    token = tokenizer.token_to_id(end)
    if token is None:
        raise ValueError(f"The tokenizer has no {end}.")
    return token


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder's tokenizer.json, as `parse` reads it. Raises OSError, and a bare Exception, the
    library's, if it cannot be read."""
    return parse((folder / "tokenizer.json").read_text(encoding="utf-8"))


def parse(text: str) -> Tokenizer:
    """The tokenizer of the text of a tokenizer.json, without the state that is no part of its vocabulary. Raises a bare
    Exception, the library's, if it is none.

    That state is truncation and padding, which transformers saves as they were last used, and the sampling of BPE and
    Unigram models (Provilkov et al. 2020, Kudo 2018), which gives other tokens at each call.
    """
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE) and tokenizer.model.dropout is not None:
        tokenizer.model.dropout = None
    if isinstance(tokenizer.model, models.Unigram) and tokenizer.model.alpha is not None:
        tokenizer.model.alpha = tokenizer.model.nbest_size = None
    return tokenizer


def read(path: Path, fix: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json; `fix` says what to do where there is no such file. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"There is no tokenizer at {path}; {fix}.")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception
        raise ConfigError(f"{path} is no tokenizer.json of the tokenizers library; name another file.") from error


def load_checked(path: Path, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a tokenizer.json, checked against the configuration.

    Raises ConfigError if it cannot be read, has more tokens than `vocabulary`, or lacks the end-of-document token.
    """
    tokenizer = read(path, "correct data.tokenizer.file or data.root")
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
