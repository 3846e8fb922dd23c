"""Preparing instructions and preferences: lines of JSON become rows of tokens, whose completions are trained on.

A line of instructions has `prompt` and `completion`, or `messages`, each with a `role` (system, user, assistant) and
its `content`; a line of preferences has `prompt`, `chosen` and `rejected`. A message is written as `<|role|>`, a line
end, its content, and a line end; after what the assistant says comes the end-of-document token instead, which is
trained on with it. Prompts and completions are written as they are, with that token at the end. The parts are encoded
one by one.

Beside the tokens of a split, `SOURCE.SPLIT.marks.bin/.idx` has a number for each: twice the number of its example in
the row, counted from 1, and one more where the token is trained on; 0 is padding.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.data import raw_files, readers, tokenizer
from trainer.data.build import Advance, Build, SourceWriter, tokenizer_file
from trainer.data.config import DataConfig, SourceConfig
from trainer.data.encode import SPLITS, Encoded, is_held_out
from trainer.data.indexed import Writer, token_type
from trainer.data.readers import Say
from trainer.schema import ConfigError

ROLES = ("system", "user", "assistant")
MARK = "<i4"
"""The type of the marks."""


class Part(NamedTuple):
    """A part of an example; one that is `counted` is trained on, and the end-of-document token follows it."""

    text: str
    counted: bool


Example = list[Part]
Lines = list[tuple[str, list[tuple[list[int], list[int]]]]]
"""The name of each line, and tokens and counts of its examples."""


class Row(NamedTuple):
    """Tokens and marks of a row, [row_size] each, and the name of the first line that it has."""

    name: str
    tokens: NDArray[np.int64]
    marks: NDArray[np.int64]


def build(data: DataConfig, folder: Path, say: Say, advance: Advance, checkpoint: Path | None, mark: str) -> None:
    """Fill a folder of prepared data. The tokenizer is that of the checkpoint, or the configuration's. Raises
    ConfigError."""
    if checkpoint is None and not data.tokenizer.file:
        raise ConfigError(f"Data of {data.kind} need a tokenizer; give data.tokenizer.file, or a base.")
    bpe = tokenizer.load(checkpoint) if checkpoint else tokenizer_file(data)
    made = Build(data, folder, say, 1, advance)
    made.write_tokenizer(bpe, checkpoint)
    bpe.encode_special_tokens = True
    made.complete(tokenizer.load(folder), mark, lambda source: _write(source, data, bpe, folder, say))


def examples(line: bytes, kind: str, location: str) -> list[Example]:
    """The example of a line of instructions, or the chosen and the rejected one of a line of preferences. Raises
    ConfigError, which names the `location` of the line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{location} is not valid JSON; mend it or take it out.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{location} is no JSON object; give each line an object.")
    if kind == "instructions" and "messages" in value:
        return [_conversation(value["messages"], location)]
    answers = ("chosen", "rejected") if kind == "preferences" else ("completion",)
    for key in ("prompt", *answers):
        if not isinstance(value.get(key), str):
            wanted = "prompt, chosen and rejected" if kind == "preferences" else "messages, or prompt and completion"
            raise ConfigError(f"{location} has no text under {key}; a line of {kind} has {wanted}.")
    return [[Part(value["prompt"], False), Part(value[answer], True)] for answer in answers]


def _conversation(messages: Any, location: str) -> Example:
    parts = []
    for message in messages if isinstance(messages, list) else [None]:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise ConfigError(
                f"{location} has a message without a role ({', '.join(ROLES)}) or without a text as its content; mend "
                "it or take the line out."
            )
        if role == "assistant":
            parts += [Part(f"<|{role}|>\n", False), Part(content, True)]
        else:
            parts.append(Part(f"<|{role}|>\n{content}\n", False))
    if not any(part.counted for part in parts):
        raise ConfigError(f"{location} has no message of the assistant, so nothing is trained on; take it out.")
    return parts


class _Encoder:
    """Makes the tokens of an example, and which of them count, [N] each. The first never counts."""

    def __init__(self, bpe: Tokenizer, data: DataConfig) -> None:
        self._bpe = bpe
        self._end = tokenizer.end_of_document(bpe, data.tokenizer.end_of_document)
        self._prefix = tokenizer.prefix(bpe)

    def __call__(self, example: Example) -> tuple[list[int], list[int]]:
        tokens = list(self._prefix)
        counted = [0] * len(tokens)
        for part in example:
            ids = list(self._bpe.encode(part.text, add_special_tokens=False).ids) if part.text else []
            ids += [self._end] * part.counted
            tokens += ids
            counted += [int(part.counted)] * len(ids)
        if counted[0]:
            tokens, counted = [self._end, *tokens], [0, *counted]
        return tokens, counted


def read(source: SourceConfig, data: DataConfig) -> Iterator[tuple[str, list[Example]]]:
    """The name of each line and its examples. Raises ConfigError."""
    for path in readers.files_of(source, data.root_folder):
        kind = raw_files.kind_of(path)
        if kind == "parquet":
            raise ConfigError(f"{path} is Parquet, and data of {data.kind} are lines of JSON; convert it.")
        for number, line in enumerate(raw_files.lines(path, kind), start=1):
            if line.strip():
                yield f"{source.name}/{path.name}:{number}", examples(line, data.kind, f"{path} line {number}")


def _write(source: SourceConfig, data: DataConfig, bpe: Tokenizer, folder: Path, say: Say) -> dict[str, Any]:
    """Write the files of a source; returns how they are described."""
    say(readers.encoding(source, data))
    encode, longest, left_out = _Encoder(bpe, data), data.sequence_length + 1, 0
    split: dict[str, Lines] = {name: [] for name in SPLITS}
    for name, found in read(source, data):
        encoded = [encode(example) for example in found]
        if max(len(tokens) for tokens, _ in encoded) > longest:
            left_out += 1
            continue
        split["held_out" if is_held_out(name, data.held_out) else "train"].append((name, encoded))
    if not split["train"]:
        raise ConfigError(
            f"The source {source.name} has no example of at most {longest} tokens to train on; give it more, or raise "
            "data.sequence_length."
        )
    if left_out:
        say(f"left out of {source.name}: {left_out:,} lines of more than {longest:,} tokens")
    padding = tokenizer.end_of_document(bpe, data.tokenizer.end_of_document)
    rows = {
        name: [_row(group, data, padding) for group in _groups(lines, longest, data.kind)]
        for name, lines in split.items()
    }
    described: dict[str, Any] = {}
    with SourceWriter(folder, source, data) as writer:
        for row_split, made in rows.items():
            empty = dict.fromkeys(SPLITS, _encoded([], data))
            writer.add(empty | {row_split: _encoded(made, data)})
            with Writer(folder / f"{source.name}.{row_split}.marks", MARK) as marks:
                for row in made:
                    marks.add(row.marks, np.array([data.row_size], dtype=np.int32))
            described[row_split] = {"marks": marks.sha256}
    counts = np.zeros(data.tokenizer.vocabulary, dtype=np.int64)
    for row in rows["train"]:
        counts += np.bincount(row.tokens[row.marks % 2 == 1], minlength=len(counts))
    np.save(folder / f"{source.name}.train.counts.npy", counts)
    for name, written in writer.described.items():
        both = hashlib.sha256(f"{written['sha256']} {described[name]['marks']}".encode()).hexdigest()
        described[name] = written | {"examples": len(split[name]), "sha256": both}
    return {**described, "kind": data.kind, "row": data.row_size, "left_out": left_out}


def _groups(lines: Lines, longest: int, kind: str) -> Iterator[Lines]:
    """The lines of each row: as many as follow one another and fit, but of preferences one."""
    group: Lines = []
    size = 0
    for line in lines:
        added = sum(len(tokens) for tokens, _ in line[1])
        if group and (kind == "preferences" or size + added > longest):
            yield group
            group, size = [], 0
        group.append(line)
        size += added
    if group:
        yield group


def _row(group: Lines, data: DataConfig, padding: int) -> Row:
    tokens = np.full(data.row_size, padding, dtype=np.int64)
    marks = np.zeros(data.row_size, dtype=np.int64)
    at = 0
    for segment, (ids, counted) in enumerate((each for _, encoded in group for each in encoded), start=1):
        tokens[at : at + len(ids)] = ids
        marks[at : at + len(ids)] = 2 * segment + np.array(counted)
        # Of preferences, the rejected answer has the second half of the row.
        at = data.sequence_length + 1 if data.kind == "preferences" else at + len(ids)
    return Row(group[0][0], tokens, marks)


def _encoded(rows: list[Row], data: DataConfig) -> Encoded:
    dtype = np.dtype(token_type(data.tokenizer.vocabulary))
    tokens = np.concatenate([np.empty(0, dtype), *(row.tokens.astype(dtype) for row in rows)])
    sizes = np.full(len(rows), data.row_size, dtype=np.int32)
    return Encoded(tokens, sizes, [row.name.encode() for row in rows], 0)
