"""The `data` section of the configuration: sources, their mixture and the tokenizer. Imports no torch."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from trainer.schema import Section

MIXTURES = Path(__file__).parent / "mixtures"
END_OF_DOCUMENT = "<|endoftext|>"

Builtin = Literal["python-docs", "python-stdlib"]
"""Text that every Python installation carries."""

PLACES = ("builtin", "path", "dataset", "tokens")
"""The keys of a source that say where it lies."""


def check_name(name: str, of: str) -> str:
    """The name, if it can be one of a source, a corpus or a tokenizer, which is what `of` says. Raises ValueError."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise ValueError(
            f"The {of} name {name[:64]!r} must be lower-case letters, digits, dots, dashes and underscores, "
            "64 at most, a letter or a digit first."
        )
    return name


def _is_name(name: str, info: ValidationInfo) -> str:
    return check_name(name, "corpus" if info.field_name == "corpus" else "source")


def _is_tokenizer_name(name: str) -> str:
    return check_name(name, "tokenizer")


def _is_spdx(licence: str) -> str:
    if not licence:
        return licence
    try:
        return canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        raise ValueError(
            f"The licence {licence[:60]!r} is no SPDX identifier such as CC-BY-4.0; where there is none, give "
            "LicenseRef- and a name."
        ) from None


Name = Annotated[str, AfterValidator(_is_name)]
"""The name of a source or of a corpus."""
Licence = Annotated[str, Field(min_length=1), AfterValidator(_is_spdx)]


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer (Sennrich et al. 2016), trained on the first `train_bytes` bytes of the sources or
    read from `file`, a tokenizer.json. `vocabulary` is the number of its tokens, at most. A tokenizer that has a `name`
    is not trained: it lies in `file`, which the lab fills in where a pool knows a tokenizer by that name."""

    name: Annotated[str, AfterValidator(_is_tokenizer_name)] | None = None
    vocabulary: int = Field(ge=320, le=262_144)
    train_bytes: int = Field(default=2_000_000, ge=1_000, le=2**50)
    file: str | None = None
    end_of_document: str = Field(default=END_OF_DOCUMENT, min_length=1)


class SourceConfig(Section):
    """A source of text: where it lies, its licence (an SPDX expression), and its share of the mixture.

    It lies in one of `builtin`, `path` (a JSONL file, plain, .gz or .zst; a glob of such files; a folder of text
    files), `dataset` (an id of Hugging Face, or a folder, with `revision`, `subset` and `split`) or `tokens` (the
    prefix of a .bin/.idx pair). The text of a JSON object or of a dataset's row is under `text_key`. A source that is a
    `corpus` of that name lies where a pool of the lab says that the corpus lies; a place beside it is where the source
    lies without a lab.

    The share is a `weight`, relative to the other sources' weights, or the number of `epochs` that it is read. A source
    is read until it gave `max_bytes` bytes of text.
    """

    name: Name
    weight: float | None = Field(default=None, gt=0, le=1e9)
    epochs: float | None = Field(default=None, gt=0, le=1e9)
    licence: Licence
    corpus: Name | None = None
    builtin: Builtin | None = None
    path: str | None = Field(default=None, min_length=1)
    dataset: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    tokens: str | None = Field(default=None, min_length=1)
    text_key: str = Field(default="text", min_length=1)
    max_bytes: int | None = Field(default=None, ge=1_000, le=2**60)

    @property
    def share(self) -> float:
        """The weight or the epochs, whichever the mixture is given in."""
        return self.weight or self.epochs or 0.0

    @model_validator(mode="after")
    def _one_place_one_share(self) -> Self:
        places = [key for key in PLACES if getattr(self, key) is not None]
        if len(places) > 1 or (not places and self.corpus is None):
            raise ValueError(
                f"The source {self.name} must name one place (builtin, path, dataset or tokens) and names "
                f"{' and '.join(places) or 'none'}."
            )
        if (self.weight is None) == (self.epochs is None):
            raise ValueError(f"The source {self.name} must have a weight or epochs, one of the two.")
        for key in ("revision", "subset", "split"):
            if getattr(self, key) is not None and self.dataset is None:
                raise ValueError(f"The source {self.name} has a {key}, which only a dataset has; take it out.")
        return self


class DedupeConfig(Section):
    """Removing near-duplicates: of documents whose sets of word n-grams have a Jaccard similarity of at least
    `threshold` one is kept. `permutations` is the length of the MinHash signatures, see `trainer.data.dedupe`."""

    threshold: float = Field(default=0.87, gt=0, le=1)
    ngram: int = Field(default=5, ge=1, le=100)
    permutations: int = Field(default=128, ge=16, le=1024)


Kind = Literal["text", "instructions", "preferences"]


class DataConfig(Section):
    """Sources, tokenizer, and the length of rows in tokens.

    `kind` is what the lines of the sources hold: text, instructions (`messages`, or `prompt` and `completion`), or
    preferences (`prompt`, `chosen` and `rejected`); see `trainer.data.instructions`.

    `held_out` is the share of the documents that is kept for evaluation. Relative paths start at `root`, by default at
    the working directory. `mixture` is the name of a mixture of this package and stands for the sources that it lists.
    `prepared` is a folder that `data prepare` wrote; without it the run prepares its own. A pool of the lab may know
    such a folder by the name `corpus`, which is then read instead of the sources.

    `packed` says that the sources of tokens hold rows of sequence_length + 1 tokens, as Pythia's own files do: they are
    read as they are stored, without end-of-document tokens, and the last ones are held out. Without it, such rows are
    recognised by their length; `packed: false` reads them as documents. `order: stored` reads the rows in the order of
    the files, source after source, and `shuffled` mixes and shuffles them by the seed.
    """

    # Left out where it is text, so that the dump of such a run is what it was before there were other kinds.
    kind: Kind = Field(default="text", exclude_if=lambda kind: kind == "text")
    sequence_length: int = Field(ge=8, le=1_048_576)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    tokenizer: TokenizerConfig
    prepared: str | None = Field(default=None, min_length=1)
    corpus: Name | None = None
    root: str | None = Field(default=None, min_length=1)
    dedupe: DedupeConfig | None = None
    packed: bool | None = None
    order: Literal["shuffled", "stored"] = "shuffled"
    mixture: str | None = None
    sources: list[SourceConfig] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _mixture_is_spelt_out(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("mixture") is None:
            return values
        if values.get("sources") is not None:
            raise ValueError("data.mixture and data.sources are both given; give one of the two.")
        name = str(values["mixture"])
        return {"corpus": name, **values, "sources": mixture(name), "mixture": None}

    @property
    def row_size(self) -> int:
        """Tokens of a row: of its inputs and targets together. A row of preferences is two of these, side by side."""
        return (self.sequence_length + 1) * (2 if self.kind == "preferences" else 1)

    @model_validator(mode="after")
    def _examples_are_lines(self) -> Self:
        if self.kind == "text":
            return self
        for key in ("packed", "dedupe", "order"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} is for text, and data.kind is {self.kind}; take out data.{key}.")
        for source in self.sources:
            if source.path is None and source.corpus is None and self.prepared is None:
                raise ValueError(
                    f"The source {source.name} must have a path, of JSONL files, as data.kind is {self.kind}."
                )
        return self

    @property
    def root_folder(self) -> Path:
        """Where relative paths start."""
        return Path(self.root or ".")

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Self:
        names = [source.name for source in self.sources]
        for name, times in Counter(names).items():
            if times > 1:
                raise ValueError(f"data.sources names {name} twice; give it once, with its whole weight.")
        first = self.sources[0]
        for source in self.sources:
            if (source.weight is None) != (first.weight is None):
                raise ValueError(
                    f"data.sources mixes weight and epochs ({first.name} and {source.name}); give all of them the same."
                )
            is_text = any(getattr(source, key) is not None for key in PLACES if key != "tokens")
            if self.packed and is_text and self.prepared is None:
                raise ValueError(
                    f"data.packed is true and the source {source.name} is text; packed rows are tokens, a .bin/.idx "
                    "pair."
                )
            if self.order == "stored" and len(self.sources) > 1 and source.epochs != 1:
                raise ValueError(
                    f"data.order stored reads one source after the other, each once; give {source.name} epochs 1."
                )
            named = self.tokenizer.file is not None or self.tokenizer.name is not None
            if source.tokens is not None and not named and self.prepared is None:
                raise ValueError(
                    f"The source {source.name} is tokens, and data.tokenizer.file is missing; give the tokenizer.json "
                    "that made them."
                )
        if self.packed and self.dedupe:
            raise ValueError("data.dedupe would take rows out of packed data; take out data.dedupe or data.packed.")
        return self


def mixture_names() -> list[str]:
    """The names of the mixtures of this package, sorted."""
    return sorted(path.stem for path in MIXTURES.glob("*.yml"))


def mixture(name: str) -> list[dict[str, Any]]:
    """The sources of a mixture of this package, as values for `data.sources`; each is a corpus named
    MIXTURE-SOURCE, or like its mixture where it is the only source.

    Raises ValueError for an unknown name.
    """
    content = _mixture_file(name)
    other = {"weight", "epochs"} - {content["by"]}
    alone = len(content["sources"]) == 1
    return [
        {"corpus": name if alone else f"{name}-{source['name']}"}
        | {key: value for key, value in source.items() if key not in other}
        for source in content["sources"]
    ]


def mixture_weights(name: str | None, weights: str) -> dict[str, float]:
    """The `weights` of that name that a mixture of this package has beside those of its sources, by source.

    Raises ValueError for an unknown name, and where no mixture is given.
    """
    if name is None:
        raise ValueError(
            f"The weights {weights[:60]!r} are a name, which only a data.mixture has; give weights by source."
        )
    known = named_weights(str(name))
    if weights not in known:
        has = ", ".join(known) or "none"
        raise ValueError(f"The mixture {name} has no weights {weights[:60]!r}; those that it has by name are {has}.")
    return known[weights]


def named_weights(name: str) -> dict[str, dict[str, float]]:
    """The weights that a mixture of this package has by name, such as those of a cool-down, each by source. Raises
    ValueError for an unknown name."""
    return dict(_mixture_file(name).get("weights", {}))


@cache
def _mixture_file(name: str) -> dict[str, Any]:
    if name not in mixture_names():
        raise ValueError(f"There is no mixture {name!r}; the mixtures are {', '.join(mixture_names())}.")
    content: dict[str, Any] = yaml.safe_load((MIXTURES / f"{name}.yml").read_text(encoding="utf-8"))
    return content
