"""What is to be known before training: which pictures can't be read, who goes where, what leaks."""

import hashlib
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from pathlib import Path

from tqdm import tqdm

from gender_cls import CLASSES, cache_folder
from gender_cls.errors import UserError
from gender_cls.images import PictureError, content_digest, load_rgb
from gender_cls.people import name_people, split_people
from gender_cls.sources import UNSPLIT, Splits

MAX_BAD_SHARE = 0.05


@dataclass(frozen=True)
class FaceSet:
    """Checked faces.

    Attributes:
        splits: Faces by split: train, dev (where people were held out) and val.
        skipped: Path and reason of each picture that was left out.
        notes: What a person should know before reading the scores.
        fingerprint: Hash of the given splits, labels and picture contents: the same data have the same one anywhere.
    """

    splits: Splits
    skipped: list[tuple[str, str]]
    notes: list[str]
    fingerprint: str

    def counts(self) -> list[dict[str, str | int]]:
        """Pictures and people of each split and class."""
        rows: list[dict[str, str | int]] = []
        for split, faces in self.splits.items():
            for label, name in enumerate(CLASSES):
                people = [face.identity for face in faces if face.label == label]
                rows.append({"split": split, "class": name, "pictures": len(people), "people": len(set(people))})
        return rows


def check(
    splits: Splits,
    identity: str | None,
    val_share: float = 0.2,
    holdout: float = 0.0,
    split_seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> FaceSet:
    """Read every picture once, leave out what can't be read, name the people, split them and look for leaks.

    What was read is remembered by path, size and time of change, so that a large set is read at its first start only.

    Args:
        splits: Faces by split, or all of them under `UNSPLIT`.
        identity: Pattern that names people, see `name_people`.
        val_share: Share of the pictures, by people, that becomes val, where the faces come unsplit.
        holdout: Share of the training pictures, by people, that becomes dev, where the faces bring none; 0 for none.
        split_seed: Who becomes val and dev.
        cache: Folder of the memory; `$XDG_CACHE_HOME/gender_cls` or `~/.cache/gender_cls` by default.

    Raises:
        UserError: more than 5 % of a split can't be read, a class has no picture left, or a share is impossible.
    """
    digests, reasons = _read_all([face.path for faces in splits.values() for face in faces], cache)
    good = {s: [replace(f, digest=digests[f.path]) for f in faces if f.path in digests] for s, faces in splits.items()}
    for split, faces in splits.items():
        bad = [face.path for face in faces if face.path in reasons]
        if len(bad) > MAX_BAD_SHARE * len(faces):
            raise UserError(
                f"{len(bad)} of {len(faces)} pictures in {split} can't be read, more than 5 %; "
                f"mend or delete them, first {bad[0]}: {reasons[bad[0]]}"
            )
        for label, name in enumerate(CLASSES):
            if any(face.label == label for face in faces) and not any(face.label == label for face in good[split]):
                raise UserError(f"no {name} picture of {split} can be read; put some there")
    good, notes = name_people(good, identity)
    fingerprint = _fingerprint(good)
    if UNSPLIT in good:
        train, val = split_people(good[UNSPLIT], val_share, split_seed, "data.val_share")
        good = {"train": train, "val": val}
    if holdout != 0 and "dev" not in good:
        train, dev = split_people(good["train"], holdout, split_seed, "data.holdout")
        good = {"train": train, "dev": dev, "val": good["val"]}
    return FaceSet(good, sorted(reasons.items()), notes + _leaks(good), fingerprint)


def _fingerprint(splits: Splits) -> str:
    lines = sorted(f"{split} {face.label} {face.digest}" for split, faces in splits.items() for face in faces)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _leaks(splits: Splits) -> list[str]:
    notes = []
    labels: dict[str, set[int]] = defaultdict(set)
    for face in chain.from_iterable(splits.values()):
        labels[face.digest].add(face.label)
    both = sum(len(found) > 1 for found in labels.values())
    if both:
        notes.append(f"{both} pictures are filed under both labels, byte for byte: one of the two is wrong")
    for (one, faces), (other, others) in combinations(splits.items(), 2):
        people = {face.identity for face in faces} & {face.identity for face in others}
        if people:
            notes.append(f"{len(people)} people of {other} are also in {one}, such as {min(people)}: scores flatter")
        contents = {face.digest: face.path for face in faces}
        same = [face for face in others if face.digest in contents]
        if same:
            notes.append(
                f"{len(same)} files of {other} are also in {one}, byte for byte, such as {same[0].path} = "
                f"{contents[same[0].digest]}: scores flatter"
            )
    return notes


def _read_all(paths: Iterable[str], cache: str | os.PathLike[str] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Digest of each picture that decodes, and the reason for each that does not (those are tried at every start)."""
    digests: dict[str, str] = {}
    reasons: dict[str, str] = {}
    unread: dict[str, bytes] = {}
    memory = _Memory(Path(cache or cache_folder()))
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            reasons[path] = (error.strerror or str(error)).lower()
            continue
        key = os.fsencode(os.path.abspath(path)) + f"\0{state.st_size}\0{state.st_mtime_ns}".encode()
        known = memory.get(key)
        if known:
            digests[path] = known
        else:
            unread[path] = key
    bar = tqdm(total=len(unread), desc="checking pictures", unit="picture", disable=None, leave=False)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and hashing let other threads run
        rest = iter(unread.items())
        while some := list(islice(rest, 1000)):
            read = []
            for (path, key), (digest, reason) in zip(some, pool.map(_read_one, (path for path, _ in some))):
                bar.update()
                if reason:
                    reasons[path] = reason
                else:
                    digests[path] = digest
                    read.append((key, digest))
            memory.put(read)
    return digests, reasons


class _Memory:
    """Digests by path, size and time of change. Whatever is wrong with its file costs only time."""

    def __init__(self, cache: Path) -> None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._open(str(cache / "pictures.sqlite"))
        except (OSError, sqlite3.Error):
            self._open(":memory:")

    def _open(self, name: str) -> None:
        self.file = sqlite3.connect(name, timeout=60)
        self.file.execute("CREATE TABLE IF NOT EXISTS pictures (key BLOB PRIMARY KEY, digest TEXT) WITHOUT ROWID")

    def get(self, key: bytes) -> str | None:
        with suppress(sqlite3.Error):
            for (digest,) in self.file.execute("SELECT digest FROM pictures WHERE key = ?", (key,)):
                return str(digest)
        return None

    def put(self, rows: list[tuple[bytes, str]]) -> None:
        with suppress(sqlite3.Error), self.file:
            self.file.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?)", rows)


def _read_one(path: str) -> tuple[str, str]:
    try:
        load_rgb(path)
        return content_digest(Path(path).read_bytes()), ""
    except PictureError as error:
        return "", str(error)
    except OSError as error:
        return "", (error.strerror or str(error)).lower()
