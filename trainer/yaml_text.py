"""YAML that somebody has typed, read with one-sentence refusals. Imports no torch.

`read_yaml` refuses more than PyYAML does: keys that are given twice or are no words, numbers too long to be meant, and
texts that are large, are nested deeply, or grow large when their aliases are written out.
"""

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trainer.schema import ConfigError

MOST_CHARACTERS = 1_000_000
MOST_NODES = 100_000
"""Values after every alias is written out."""
DEEPEST = 30
LONGEST_NUMBER = 40
"""Characters of a number; a seed takes 19."""
CONVERSIONS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What Python's conversions raise within PyYAML, for `!!bool x`, `!!timestamp x`, `0x_`, `2026-13-45` and the like."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives every error of a value its place, and stops at DEEPEST: its reading of nested
    values is recursive."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        nests = isinstance(event, yaml.CollectionStartEvent)
        self._depth += nests
        if self._depth > DEEPEST:
            raise ConfigError(f"it is nested more than {DEEPEST} deep{_line(event.start_mark)}")
        node = super().compose_node(parent, index)
        self._depth -= nests
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except CONVERSIONS as error:
            raise yaml.constructor.ConstructorError(problem="a value", problem_mark=node.start_mark) from error

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen:
                    raise ConfigError(f"the key {key.value[:60]!r} is given twice{_line(key.start_mark)}")
                seen.add(key.value)
        found = super().construct_mapping(node, deep)
        for key in found:
            if not isinstance(key, str):
                raise ConfigError(f"the key {str(key)[:60]!r} is no word{_line(node.start_mark)}; put it in quotes")
        return found


def read_yaml(text: str, what: str) -> Any:
    """The value in a YAML text; `what` begins the sentence of a refusal. Raises ConfigError."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise ConfigError(f"it has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _size(node, {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError as error:
        raise ConfigError(f"{what} is not valid YAML: {error}.") from None
    except (yaml.YAMLError, RecursionError, *CONVERSIONS) as error:
        raise ConfigError(f"{what} is not valid YAML{_line(getattr(error, 'problem_mark', None))}.") from error


def _size(node: Node | None, known: dict[int, int]) -> int:
    """The number of values that a node stands for, with its aliases written out; `known` has those counted before.

    Raises ConfigError where there are too many, where a node holds itself, and for a value that cannot be meant.
    """
    if node is None:
        return 0
    if id(node) in known:
        if not known[id(node)]:
            raise ConfigError(f"it holds itself{_line(node.start_mark)}")
        return known[id(node)]
    known[id(node)] = 0
    parts: list[Node] = []
    if isinstance(node, MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        parts = node.value
    else:
        _check_scalar(node)
    size = 1 + sum(_size(part, known) for part in parts)
    if size > MOST_NODES:
        raise ConfigError(f"it stands for more than {MOST_NODES:,} values, with its aliases written out")
    known[id(node)] = size
    return size


def _check_scalar(node: Node) -> None:
    said = str(node.value)
    if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(said) > LONGEST_NUMBER:
        raise ConfigError(f"a number has {len(said):,} characters{_line(node.start_mark)}")
    if any(char < " " and char not in "\t\n" for char in said):
        raise ConfigError(f"a text holds a control character{_line(node.start_mark)}")


def _line(mark: Any) -> str:
    return f" at line {mark.line + 1}" if mark else ""
