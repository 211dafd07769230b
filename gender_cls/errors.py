"""The one exception that a user is meant to read, and the checks of values that raise it."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Real


class UserError(Exception):
    """Something that the user can mend.

    The entry points print the message without a traceback.

    Args:
        code: Kind of the error, kebab-case, for programs and tests; the message may be reworded, the code may not.
        message: One line that names the file or key and the way out.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(printable(message))
        self.code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:  # it crosses processes
        return type(self), (self.code, str(self))


class ImageError(Exception):
    """A file or value that can't be decoded; the message says why and leaves the path to the caller."""


def printable(text: str) -> str:
    """Return the text with everything escaped that a terminal would not print but obey."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def unreadable(source: str, error: OSError, way_out: str = "") -> UserError:
    """Return the error for a file that can't be read; `source` is the key=value that names it."""
    code = "not-found" if isinstance(error, FileNotFoundError) else "unreadable"
    return UserError(code, f"{source}: {reason(error)}{way_out}")


@contextmanager
def writing(source: str, way_out: str = "give a file that can be written") -> Iterator[None]:
    """Turn an OSError into a `UserError` that names `source`, the key=value that says where to write."""
    try:
        yield
    except OSError as error:
        raise UserError("not-writable", f"{source}: {reason(error)}; {way_out}") from error


def reason(error: Exception) -> str:
    """Return in one line what went wrong."""
    refused, said = getattr(error, "strerror", None), str(error).splitlines()
    return str(refused).lower() if refused else said[0] if said else type(error).__name__


def check_extra(source: str, extra: str, *packages: str, way_out: str = "") -> None:
    """Raise a `UserError` unless the packages of an extra, which `source` needs, are installed."""
    if not all(map(find_spec, packages)):
        command = f'pip install -e ".[{extra}]"{way_out}'
        raise UserError("missing-package", f"{source} needs the extra `{extra}`: {command}")


def check_integer(key: str, value: object, least: int) -> None:
    """Raise a `UserError` unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError("bad-value", f"{key}={value}: give an integer of at least {least}")


def check_share(key: str, value: object, *, zero: bool = False, one: bool = False) -> None:
    """Raise a `UserError` unless `value` is a number between 0 and 1; `zero` and `one` allow the ends."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):  # type: ignore[operator]
        ends = f"{'from' if zero else 'above'} 0 {'to' if one else 'and below'} 1"
        raise UserError("bad-value", f"{key}={value}: give a number {ends}")


def check_number(key: str, value: object, *, zero: bool = False) -> None:
    """Raise a `UserError` unless `value` is a finite number above 0; `zero` allows 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (0 < value < math.inf or (zero and value == 0)):  # type: ignore[operator]
        raise UserError("bad-value", f"{key}={value}: give a number {'of at least' if zero else 'above'} 0")


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """Raise a `UserError` unless `value` is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise UserError("bad-value", f"{key}={value}: give {' or '.join(map(str, known))}")


def check_boolean(key: str, value: object) -> None:
    """Raise a `UserError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError("bad-value", f"{key}={value}: give true or false")


def check_path(key: str, value: object) -> None:
    """Raise a `UserError` unless `value` is a path, which a configuration may hold as a number."""
    if not isinstance(value, str | os.PathLike):
        raise UserError("bad-value", f"{key}={value}: give a path; in a file of the configuration, in quotes")


def check_regex(key: str, pattern: str | None) -> None:
    """Raise a `UserError` unless `pattern` is a regular expression or None."""
    try:
        re.compile("" if pattern is None else pattern)
    except (re.error, TypeError) as error:
        message = f"{key}={pattern}: not a regular expression ({error}); null turns it off"
        raise UserError("bad-value", message) from error
