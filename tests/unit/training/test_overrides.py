"""Paths on the command line of train.py are taken literally, and Hydra gives them back."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gender_cls.training.overrides import literal, quote_paths

PATHS = (
    "/data/josé", "人脸", "a#b", "it's", "a=b", "x (1)", "20240101", "1e3", "faces/", " a b ", "a,b", "[x]", "{y}",
    "C:\\faces\\", "\\\\nas\\it's\\", 'say "hi"', "'half", "half'", "true", "nan", "$x", "100%", "?", "a\tb", "\\'",
    "NULL", "a:b", "!x", "a&b;c|d", "*", "(", "choice(1", "a  b", "=", "\\\\", "'\\'",
)  # fmt: skip


def taken(override: str) -> object:
    value = OverridesParser.create().parse_override(override).value()
    return getattr(value, "text", value)


@pytest.mark.parametrize("path", PATHS)
def test_any_path_comes_back(path: str) -> None:
    (override,) = quote_paths([f"data.root={path}"])
    assert taken(override) == path
    assert quote_paths([override]) == [override]
    as_hydra_keeps_it = f"data.root={OverridesParser.create().parse_override(override).get_value_string()}"
    assert literal(as_hydra_keeps_it) == f"data.root={path}"  # as a command is printed
    assert taken(quote_paths([f"++data.root={path}"])[0].removeprefix("++")) == path


def test_what_stays_as_it_is() -> None:
    kept = ["ckpt_path=null", "data.root='x (1)'", 'data.csv="a b"', "data.root=${oc.env:HOME}/x", "data.root="]
    kept += ["data.root=choice(a,b)", "seed=1", "data.identity='^(x)'", "experiment=demo", "~data.root", "-m"]
    assert quote_paths(kept) == kept


def test_the_commas_of_a_sweep() -> None:
    given = ["data.root=a b,it's,'c,d',20240101", "seed=1,2"]
    quoted = ["data.root='a b','it\\'s','c,d','20240101'", "seed=1,2"]
    for start in ("-m", "--multirun", "hydra.mode=MULTIRUN", "hparams_search=grid"):
        assert quote_paths([start, *given]) == [start, *quoted]
        assert quote_paths([start, *quoted]) == [start, *quoted]
    assert taken(quote_paths(given)[0]) == "a b,it's,'c,d',20240101"
    assert quote_paths(["-m", "hydra.sweep.dir=a,b"]) == ["-m", "hydra.sweep.dir='a,b'"]
    again = ["hparams_search=grid", "hydra.mode=RUN", "data.root=a,b"]
    assert quote_paths(again) == [*again[:2], "data.root='a,b'"]


def test_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quote_paths(["hydra.run.dir=~/runs/a b"]) == [f"hydra.run.dir='{tmp_path}/runs/a b'"]
