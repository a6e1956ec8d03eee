"""YAML whose every value knows its line, and overrides of the command line, which are YAML too.

What cannot be read is told with its line and its key, all of it at once; an exception of the YAML library is none that
a person can do something with.
"""

import os
import re
from typing import Any

import yaml

from cluster.errors import RecipeError
from cluster.masking import ENVIRONMENT, learn, shown

Keys = tuple[str | int, ...]
Pair = tuple[yaml.Node, yaml.Node]

COMMAND_LINE = "command line"
MERGE, TRUTH, WHOLE = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "bool", "int"))
TOO_DEEP = "nested too deeply to be read"
KINDS = {"timestamp": "date", "int": "whole number", "float": "number", "bool": "true or false"}
MOST_BITS = 14_000  # of a whole number; Python does not write a longer one in digits

QUOTED, TAGGED = ("'", '"'), ("&", "!")


class Loader(yaml.SafeLoader):
    """YAML 1.2's idea of truth and of whole numbers: ``yes``, ``no``, ``on`` and ``off`` are words that a company's
    tables hold, ``12:30`` is a time of day and ``007`` a code, which PyYAML takes for True, 750 and 7."""

    yaml_implicit_resolvers = {
        sign: [(tag, pattern) for tag, pattern in resolvers if tag not in (TRUTH, WHOLE)]
        for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(TRUTH, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver(
    WHOLE, re.compile("^[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)


class Reader:
    """Builds the tree of one file and its overrides.

    Attributes:
        lines: where each key stands, as ``file.yaml:14`` or ``command line``.
        problems: what is wrong, a finished line for each.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Keys, str] = {}
        self.problems: list[str] = []
        self._overriding = name == COMMAND_LINE
        self._open: list[yaml.Node] = []  # what is being read, from the root down

    def tree(self, text: str) -> dict[str, Any]:
        """The mapping that a file holds.

        Raises:
            RecipeError: it is no YAML, or no mapping.
        """
        try:
            loader = Loader(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            sign = f"U+{ord(text[error.position]):04X}"
            message = f"the character {sign} may not stand in a recipe; remove it"
            raise RecipeError([f"{self.name}:{line}: {message}"]) from None
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise RecipeError([f"{self.name}:1: a recipe is a mapping of keys to values"])
            value: dict[str, Any] = self._value(loader, node, ())
            return value
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise RecipeError([f"{self.name}:{line}: not valid YAML: {error.problem}"]) from None
        except RecursionError:
            raise RecipeError([f"{self.name}:{loader.get_mark().line + 1}: {TOO_DEEP}"]) from None
        finally:
            loader.dispose()

    def override(self, tree: dict[str, Any], override: str) -> None:
        """Puts the value of ``key.path=value`` into the tree."""
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys):
            self.problems.append(f"{COMMAND_LINE}: '{override}' is no override; write key.path=value")
            return
        inner = tree
        for depth, key in enumerate(keys[:-1], 1):
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
                self.lines[keys[:depth]] = COMMAND_LINE
            inner = inner[key]
        self._overriding = True
        for below in [known for known in self.lines if known[: len(keys)] == keys]:  # what is replaced stands nowhere
            del self.lines[below]
        self.lines[keys] = COMMAND_LINE
        inner[keys[-1]] = self._overridden(text, keys)

    def resolved(self, value: Any, keys: Keys = ()) -> Any:
        """``value`` with every ``${env:NAME}`` filled in."""
        if isinstance(value, dict):
            return {key: self.resolved(inner, (*keys, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.resolved(inner, (*keys, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str) or "${env:" not in value:
            return value
        if "${env:" in ENVIRONMENT.sub("", value):
            self._complain(keys, "write ${env:NAME}; a variable's name has letters, digits and _")
        return ENVIRONMENT.sub(lambda match: self._variable(match.group(1), keys), value)

    def _variable(self, name: str, keys: Keys) -> str:
        value = os.environ.get(name)
        if value is None:
            self._complain(keys, f"environment variable {name} is not set; export {name}=…")
            return ""
        learn(value)
        return value

    def _overridden(self, text: str, keys: Keys) -> Any:
        try:
            loader = Loader(text)
            node = loader.get_single_node()
            if _reads_less(node, text):
                return self._storable(text.strip(), keys)
            return None if node is None else self._value(loader, node, keys)
        except yaml.YAMLError:
            if text.lstrip()[:1] in ("[", "{"):
                self._complain(keys, f"'{text}' is not valid YAML; check its brackets")
                return None
            return self._storable(text, keys)  # a sentence or a statement, which YAML would want quoted
        except RecursionError:
            self._complain(keys, TOO_DEEP)
            return None

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, keys: Keys) -> Any:
        self.lines.setdefault(keys, self._line(node))
        if any(node is outer for outer in self._open):
            self._within_itself(keys)
            return None
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(loader, node, keys)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(loader, inner, (*keys, index)) for index, inner in enumerate(node.value)]
            return self._scalar(loader, node, keys)
        finally:
            self._open.pop()

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        self._refuse_twins(loader, node, keys)
        chosen: dict[str, Pair] = {}
        for key, value in self._pairs(node, keys):
            chosen[_name(loader, key)] = key, value
        mapping: dict[str, Any] = {}
        for name, (key, value) in chosen.items():
            self.lines[(*keys, name)] = self._line(key)
            mapping[name] = self._value(loader, value, (*keys, name))
        return mapping

    def _refuse_twins(self, loader: yaml.SafeLoader, node: yaml.MappingNode, keys: Keys) -> None:
        """Of a mapping's own keys none may stand twice; what it merges they may replace."""
        first: dict[str, str] = {}
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            name, line = _name(loader, key), self._line(key)
            if name in first:
                self.lines[(*keys, name)] = line
                self._complain((*keys, name), f"stands twice, first at {first[name]}; keep one")
            first.setdefault(name, line)

    def _pairs(self, node: yaml.MappingNode, keys: Keys) -> list[Pair]:
        """The keys and values of a mapping, those that count last: what ``<<`` merges before its own, and of several
        merged mappings the first after the others."""
        merged: list[Pair] = []
        own: list[Pair] = []
        for key, value in node.value:
            if key.tag != MERGE:
                own.append((key, value))
                continue
            self.lines[(*keys, "<<")] = self._line(key)
            for mapping in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                if any(mapping is outer for outer in self._open):
                    self._within_itself((*keys, "<<"))
                elif not isinstance(mapping, yaml.MappingNode):
                    self._complain((*keys, "<<"), "merges mappings of keys to values, and this is none")
                else:
                    self._open.append(mapping)
                    merged += self._pairs(mapping, keys)
                    self._open.pop()
        return merged + own

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node, keys: Keys) -> Any:
        try:
            value = _constructed(loader, node)
            fits = not isinstance(value, int) or value.bit_length() < MOST_BITS
        except ValueError:
            fits = False
        if fits:
            return self._storable(value, keys)
        kind = KINDS.get(node.tag.rpartition(":")[2], f"{node.tag}")
        self._complain(keys, f"{shown(node.value)} is no {kind}; put it in quotes if it is a text")
        return None

    def _storable(self, value: Any, keys: Keys) -> Any:
        """``value``, of which a text must be one that can be written to a file."""
        if isinstance(value, str):
            odd = next((sign for sign in value if sign == "\0" or "\ud800" <= sign <= "\udfff"), None)
            if odd is not None:
                self._complain(keys, f"holds the character U+{ord(odd):04X}, which cannot be stored; remove it")
                return None
        return value

    def _within_itself(self, keys: Keys) -> None:
        self._complain(keys, "stands within itself; an alias may only name what is complete before it")

    def _complain(self, keys: Keys, message: str) -> None:
        where = self.lines.get(keys, self.name)
        self.problems.append(f"{where} {'.'.join(map(str, keys))}: {message}")

    def _line(self, node: yaml.Node) -> str:
        return COMMAND_LINE if self._overriding else f"{self.name}:{node.start_mark.line + 1}"


def _reads_less(node: yaml.Node | None, text: str) -> bool:
    """Whether YAML would leave out some of what was typed for a value: a statement's lines become one, and what
    follows a ``#`` is a comment to it."""
    if node is None:
        return bool(text.strip())
    plain = isinstance(node, yaml.ScalarNode) and node.style not in QUOTED and text.lstrip()[0] not in TAGGED
    return plain and node.value != text.strip()


def _name(loader: yaml.SafeLoader, key: yaml.Node) -> str:
    """A key as it was written, whatever YAML takes it for."""
    if isinstance(key, yaml.ScalarNode):
        return str(key.value)
    try:
        return str(_constructed(loader, key))
    except ValueError:
        return str(key.value)


def _constructed(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """What PyYAML makes of a node; a ValueError where its text does not fit its tag, whatever PyYAML trips over."""
    try:
        return loader.construct_object(node, deep=True)
    except (OverflowError, LookupError, AttributeError) as error:
        raise ValueError(str(error)) from None
    finally:
        loader.recursive_objects.pop(node, None)  # where it failed, an alias for it would be taken for a circle
