"""Literal key=value words of a command line: nothing after the first = is interpreted."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import cast

from gender_cls.errors import UserError


def read_words(
    words: Sequence[str], keys: Sequence[str], repeated: Sequence[str], command: str
) -> dict[str, list[str]]:
    """Values by key, in their order; a key without a word has none.

    Args:
        words: Of the command line.
        keys: That may be given.
        repeated: Those of them that may be given several times.
        command: Whose --help an error points to.

    Raises:
        UserError: a word is no key=value of these, or a key comes twice that may not.
    """
    values: dict[str, list[str]] = {key: [] for key in keys}
    for word in words:
        key, _, value = word.partition("=")
        if key not in values or not value:
            meant = f"; did you mean {keys[0]}={word}?" if os.path.exists(word) else ""
            raise UserError(f"{word!r} is none of {'=, '.join(keys)}= with a value{meant}; see {command} --help")
        if values[key] and key not in repeated:
            raise UserError(f"{key}= is given twice; give it once")
        values[key].append(value)
    return values


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not print but obey."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def run_command(main: Callable[[list[str]], int]) -> None:
    """Run `main` with the words of the command line and end the process: an error is one line."""
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")  # names that are not UTF-8 end no run
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether it decodes
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("stopped")
