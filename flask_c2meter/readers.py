"""Readers turn one value of a configuration tree into a checked one, or name place and cure.

A reader takes the key path of a value and the value; it returns what the value means or raises with
path, value and cure. :class:`Table` hands the values of one table to readers. Nothing here knows
what the tree is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, Inexact, InvalidOperation
from typing import Any, TypeVar

from .decimals import own_context
from .errors import CatalogueError, CatalogueTypeError, did_you_mean, show
from .model import MAX_UNITS

T = TypeVar("T")
D = TypeVar("D")
#: Turns the value at a key path into a checked one, or raises.
Reader = Callable[[str, Any], T]
#: The same for a named table: key path, name, content.
Builder = Callable[[str, str, Any], T]

_DECIMAL_TEXT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)
_EXACT = own_context(40, Inexact, InvalidOperation)


def text(path: str, value: Any) -> str:
    """Printable text that is not empty."""
    if not isinstance(value, str):
        raise wrong_type(path, value, "write it as text in quotes")
    if not value or not value.isprintable():
        raise wrong(path, value, "write printable text that is not empty")
    return value


def flag(path: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_type(path, value, "write true or false, without quotes")
    return value


def whole(low: int, high: int) -> Reader[int]:
    """Reads a whole number from *low* to *high*."""

    def read(path: str, value: Any) -> int:
        cure = f"write a whole number from {low} to {high}"
        if type(value) is not int:
            raise wrong_type(path, value, cure)
        if not low <= value <= high:
            raise wrong(path, value, cure)
        return value

    return read


def bound(path: str, value: Any) -> Decimal:
    """A whole number of at most 15 digits, of either sign."""
    return Decimal(whole(-MAX_UNITS, MAX_UNITS)(path, value))


def decimal(places: int) -> Reader[Decimal]:
    """Reads a quantity or an amount: >= 0, at most *places* decimal places, never a float."""
    or_text = f' or decimal text such as "2.5", at most {places} places' if places else ""
    cure = f"write a whole number{or_text}, >= 0"
    step = Decimal(1).scaleb(-places)

    def read(path: str, value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
            raise wrong_type(path, value, cure)
        if isinstance(value, str) and not _DECIMAL_TEXT.fullmatch(value):
            raise wrong(path, value, cure)
        number = Decimal(value)
        if not number.is_finite() or not 0 <= number <= MAX_UNITS:
            raise wrong(path, value, cure)
        try:
            number.quantize(step, context=_EXACT)
        except (Inexact, InvalidOperation):
            raise wrong(path, value, cure) from None
        return number

    return read


def one_of(*allowed: str) -> Reader[Any]:
    """Reads one of the *allowed* words."""

    def read(path: str, value: Any) -> str:
        word = text(path, value)
        if word not in allowed:
            words = ", ".join(f'"{one}"' for one in allowed)
            raise wrong(path, value, f"use one of {words}{did_you_mean(word, allowed)}")
        return word

    return read


def list_of(reader: Reader[T]) -> Reader[tuple[T, ...]]:
    """Reads a list that is not empty, each item by *reader*."""

    def read(path: str, value: Any) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise wrong_type(path, value, "write it as a list")
        if not value:
            raise wrong(path, value, "list at least one, or leave the key out")
        return tuple(reader(f"{path}[{number}]", item) for number, item in enumerate(value))

    return read


def names(path: str, value: Any) -> tuple[str, ...]:
    """Texts, each once."""
    listed = list_of(text)(path, value)
    if len(set(listed)) < len(listed):
        raise wrong(path, value, "one is listed twice, remove it")
    return listed


def tables_of(build: Builder[T]) -> Reader[dict[str, T]]:
    """Reads a table of named tables, each by *build*."""

    def read(path: str, value: Any) -> dict[str, T]:
        table = Table(path, value)
        return {name: build(table.at(name), name, item) for name, item in table.content.items()}

    return read


def pattern(path: str, value: Any) -> str:
    """A regular expression."""
    expression = text(path, value)
    try:
        re.compile(expression)
    except re.error as error:
        raise wrong(path, value, f"no regular expression ({error}), correct it") from None
    return expression


class Table:
    """One table of the source and the key path that leads to it.

    :param known: the keys it may have; None = any text (names chosen by the user).
    :raises CatalogueError: it is no table, or has another key.
    """

    def __init__(self, path: str, content: Any, known: Collection[str] | None = None) -> None:
        if not isinstance(content, Mapping):
            raise wrong_type(path or "the catalogue", content, "write it as a table")
        self.path = path
        self.content: Mapping[str, Any] = content
        for key in content:
            if not isinstance(key, str):
                raise wrong_type(self.at(key), content[key], "write the key as text")
            if known is not None and key not in known:
                cure = f"unknown key{did_you_mean(key, known)}; known keys: "
                raise wrong(self.at(key), content[key], cure + ", ".join(sorted(known)))

    def at(self, key: object) -> str:
        """The path of *key*."""
        return f"{self.path}.{key}" if self.path else str(key)

    def read(self, key: str, reader: Reader[T]) -> T:
        """The checked value of a *key* that must be there."""
        if key not in self.content:
            raise CatalogueError(f"{self.at(key)} is missing: add it")
        return reader(self.at(key), self.content[key])

    def read_or(self, key: str, reader: Reader[T], default: D) -> T | D:
        """The checked value of *key*, or *default* if it is absent."""
        return reader(self.at(key), self.content[key]) if key in self.content else default

    def only_if(self, condition: bool, reason: str, *keys: str) -> None:
        """Refuse *keys* unless *condition* holds."""
        for key in keys:
            if key in self.content and not condition:
                raise wrong(self.at(key), self.content[key], f"only {reason}, remove it")


def wrong(path: str, value: object, cure: str) -> CatalogueError:
    """The error of a value that does not fit its place."""
    return CatalogueError(f"{path} = {show(value)}: {cure}")


def wrong_type(path: str, value: object, cure: str) -> CatalogueTypeError:
    """The error of a value of the wrong type."""
    return CatalogueTypeError(f"{path} = {show(value)} has type {type(value).__name__}: {cure}")
