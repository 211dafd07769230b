"""Tables that predictions are written to."""

from pathlib import Path

import pytest

from gender_cls.errors import UserError
from gender_cls.inference import journal


def test_a_row_is_safe_in_a_spreadsheet() -> None:
    for text in ("=1", "+1", "-1", "@x", "\tx", "\rx"):
        assert journal.safe_cell(text) == f"'{text}"
    assert journal.safe_cell("a=1") == "a=1"


@pytest.mark.parametrize(
    ("name", "code"), [("folder", "not-writable"), ("o.xlsx", "bad-value"), ("o.parquet", "missing-package")]
)
def test_tables_that_can_not_be_written(name: str, code: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda _: None)
    with pytest.raises(UserError) as failure:
        journal.check_table(Path(name))
    assert failure.value.code == code
    assert f"out={name}" in str(failure.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_whole_blocks_of_an_interrupted_run_are_kept(suffix: str, in_tmp: Path) -> None:
    out, paths = Path(f"o{suffix}"), ["a", "b", "c", "d", "e"]
    rows = [(path, "male", "51.00", "0.510000", *[""] * 8) for path in paths]
    first = journal.Journal(out, "hash", paths, 2)
    first.write(rows[:4])
    first.close()
    second = journal.Journal(out, "hash", paths, 2)
    assert len(second) == 2  # the last row may be torn, and with it its block
    second.write(rows[2:])
    second.finish()
    second.close()
    assert second.labels == {"male": 5}
    assert [path.name for path in in_tmp.iterdir()] == [out.name]
    assert len(out.read_text().splitlines()) == 5 + (suffix == ".csv")
