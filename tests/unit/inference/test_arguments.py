"""Arguments of the command lines, and what the entry points print."""

import sys
from pathlib import Path

import pytest
from conftest import Fails

from gender_cls.errors import UserError, printable
from gender_cls.inference.arguments import command, parse_arguments, run_main

KEYS = ("img", "model", "min_confidence")


def parse(*arguments: str) -> dict[str, list[str]]:
    return parse_arguments(arguments, KEYS, ("img",), "python predict.py")


def test_values_are_literal_and_keep_their_order() -> None:
    assert parse("img=a=b [1],{x}.jpg", "model=m", "img= b") == {
        "img": ["a=b [1],{x}.jpg", " b"], "model": ["m"], "min_confidence": []
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (
            ["photo.jpg"],
            "unknown-option",
            "'photo.jpg' is none of img=, model=, min_confidence= with a value; see python",
        ),
        (["img="], "unknown-option", "'img=' is none of img="),
        (["image=a"], "unknown-option", "'image=a'"),
        (["model=x", "model=y"], "conflict", "model= is given twice"),
        (["sure=90"], "renamed", "min_confidence=90"),
        (["data.without=x"], "unknown-option", "'data.without=x'"),  # its new name is not among these keys
    ],
)
def test_wrong_arguments(arguments: list[str], code: str, names: str) -> None:
    with pytest.raises(UserError) as failure:
        parse(*arguments)
    assert failure.value.code == code
    assert names in str(failure.value)


def test_a_file_without_its_key_gets_a_hint(in_tmp: Path) -> None:
    Path("photo.jpg").write_text("")
    with pytest.raises(UserError, match=r"did you mean img=photo\.jpg"):
        parse("photo.jpg")


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("größe\x1b[2J\n\u202e\udcff") == r"größe\x1b[2J\n\u202e\udcff"


@pytest.mark.parametrize("start", ["predict.py", "/x/bin/gender-cls-predict", r"gender-cls-predict.exe", "-c"])
def test_messages_name_the_command_that_was_used(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [start])
    installed = "gender-cls" in start
    assert command("predict") == ("gender-cls-predict" if installed else "python predict.py")
    assert command("train") == ("gender-cls-train" if installed else "python train.py")


def test_a_user_error_is_one_line_and_a_bug_keeps_its_traceback(fails: Fails) -> None:
    def fail(error: Exception) -> None:
        def main(_: list[str]) -> int:
            raise error

        run_main(main)

    failure = fails(fail, UserError("bad-value", "x=1: give 2"))
    assert (failure.code, failure.line) == ("bad-value", "error: x=1: give 2")
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
