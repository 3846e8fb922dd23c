"""A byte-level BPE tokenizer: any text round-trips, and a run of spaces (an indentation) can be one token."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = "<|endoftext|>"

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


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write what transformers' AutoTokenizer opens."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": END_OF_DOCUMENT,
        "eos_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def end_of_document(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document. Raises ValueError if there is none."""
    token = tokenizer.token_to_id(END_OF_DOCUMENT)
    if token is None:
        raise ValueError(f"The tokenizer has no {END_OF_DOCUMENT}.")
    return token


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
