"""Literal key=value arguments of a command line: nothing after the first = is interpreted."""

import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from gender_cls.errors import UserError

RENAMED = {"sure": "min_confidence", "data.without": "data.report_exclude"}  # keys of earlier versions


def parse_arguments(
    arguments: Sequence[str], keys: Sequence[str], repeated: Sequence[str], command: str
) -> dict[str, list[str]]:
    """Return the values of each key in their order, none for a key that is not given.

    Args:
        arguments: Arguments of the command line.
        keys: Keys that may be given; the first is suggested for a file that is given without one.
        repeated: Keys that may be given several times.
        command: Command whose --help the errors point to.
    """
    values: dict[str, list[str]] = {key: [] for key in keys}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if RENAMED.get(key) in values:
            raise UserError("renamed", f"{key}= has been renamed; give {RENAMED[key]}={value}")
        if key not in values or not value:
            wrong = f"{argument!r} is none of {'=, '.join(keys)}= with a value"
            hint = f"; did you mean {keys[0]}={argument}?" if os.path.exists(argument) else ""
            raise UserError("unknown-option", f"{wrong}{hint}; see {command} --help")
        if values[key] and key not in repeated:
            raise UserError("conflict", f"{key}= is given twice; give it once")
        values[key].append(value)
    return values


def shell_line(words: Sequence[str]) -> str:
    """Return the line that gives these words to a command when it is pasted into a shell.

    What a terminal would obey, and bytes that are not UTF-8, are escaped in the $'...' of bash and zsh.
    """

    def quoted(word: str) -> str:
        if word.isprintable():
            return shlex.quote(word)
        plain = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(word))
        return f"$'{''.join(plain)}'"

    return " ".join(map(quoted, words))


def command(verb: str) -> str:
    """Return the line that starts `predict` or `train`."""
    return shell_line(start_of(verb))


def start_of(verb: str) -> list[str]:
    """Return the words that start `predict` or `train` in the way in which this process was started."""
    this = Path(sys.argv[0])
    if this.name.startswith("gender-cls-"):
        return [f"gender-cls-{verb}"]
    return ["python", str(this.with_name(f"{verb}.py")) if this.name in ("predict.py", "train.py") else f"{verb}.py"]


def run_main(main: Callable[[list[str]], int]) -> None:
    """Run `main` with the arguments of the command line and exit; a `UserError` is printed as one line."""
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")  # for file names that are not UTF-8
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether the image decodes
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("stopped")
