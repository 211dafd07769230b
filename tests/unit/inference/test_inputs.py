"""The images that arguments name."""

import io
import os
import sys
from pathlib import Path

import pytest

from gender_cls.inference.inputs import expand


def test_lists_patterns_and_folders_keep_their_order(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jpg", "a.png", "deep/er/c.JPG", "deep/.hidden/d.jpg", "list/e[1].jpg", "new\nline.jpg", "n.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    assert expand(".").paths == ["./a.png", "./b.jpg", "./new\nline.jpg", "./deep/er/c.JPG", "./list/e[1].jpg"]
    assert expand("*.jpg").paths == ["b.jpg", "new\nline.jpg"]
    assert expand("**/*.JPG").paths == ["deep/er/c.JPG"]
    assert expand("list/e[1].jpg").paths == ["list/e[1].jpg"]  # a file that has the pattern's name
    Path("list/plain.txt").write_text("../b.jpg\n\nx y.jpg\n/z.jpg")
    assert expand("@list/plain.txt").paths == ["list/../b.jpg", "list/x y.jpg", "/z.jpg"]
    Path("list/table.csv").write_bytes(b'\xef\xbb\xbfid,path\r\n1,"a,b.jpg"\r\n2,f\xff.jpg\r\n')
    assert [os.fsencode(path) for path in expand("@list/table.csv").paths] == [b"list/a,b.jpg", b"list/f\xff.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"new\nline.jpg\0b.jpg\0")))
    assert expand("-").paths == ["new\nline.jpg", "b.jpg"]


def test_links_in_a_circle_do_not_go_on_for_ever(in_tmp: Path) -> None:
    Path("a/b").mkdir(parents=True)
    Path("a/b/x.jpg").write_text("")
    for name in ("a/one", "a/two", "a/b/three"):
        Path(name).symlink_to(in_tmp / "a")
    assert expand("a/**/*.jpg").paths == ["a/b/x.jpg"]
    assert expand("a").paths == ["a/b/x.jpg"]


def test_only_line_ends_split_a_list(in_tmp: Path) -> None:
    Path("list.txt").write_bytes("a\u2028b.jpg\r\nc\x0cd.jpg\n".encode())
    assert expand("@list.txt").paths == ["a\u2028b.jpg", "c\x0cd.jpg"]
    Path("wide.txt").write_bytes("ä.jpg\r\n".encode("utf-16"))
    assert expand("@wide.txt").paths == ["ä.jpg"]
