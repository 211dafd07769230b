"""Reading every picture once before training: what can't be read, who is in two splits, and a fingerprint."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from gender_cls import CLASSES
from gender_cls.errors import UserError
from gender_cls.images import PictureError, load_rgb
from gender_cls.sources import Splits, name_people, split_people

MAX_BAD_SHARE = 0.05


@dataclass(frozen=True)
class FaceSet:
    """Checked faces.

    Attributes:
        splits: Faces by split: train, dev (where people were held out) and val.
        skipped: Path and reason of each picture that was left out.
        notes: What a person should know before reading the scores.
        fingerprint: Hash of all splits, labels and picture contents: the same data have the same one anywhere.
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

    def hold_out(self, share: float, seed: int) -> "FaceSet":
        """Move a share of the training people to the split `dev`, unless the data bring one.

        Raises:
            UserError: `share` is outside [0, 1), or leaves a class without training pictures.
        """
        if not 0 <= share < 1:
            raise UserError(f"data.holdout={share} is no share of the training people; give 0 to below 1, such as 0.1")
        if share == 0 or "dev" in self.splits:
            return self
        train, dev = split_people(self.splits["train"], share, seed)
        if {face.label for face in train} != {face.label for face in dev}:
            raise UserError(f"data.holdout={share}: too few people to hold some out of each class; set data.holdout=0")
        return replace(self, splits={"train": train, "dev": dev, "val": self.splits["val"]})


def check(splits: Splits, identity: str | None, cache: str | os.PathLike[str] | None = None) -> FaceSet:
    """Read every picture once, leave out what can't be read, name the people and look for leaks between splits.

    What was read is remembered by path, size and time of change, so that a large set is read at its first start only.

    Args:
        splits: Faces by split.
        identity: Pattern that names people, see `name_people`.
        cache: Folder of the memory; the user's cache folder by default.

    Raises:
        UserError: more than 5 % of a split can't be read, or a class has no picture left.
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
            if not any(face.label == label for face in good[split]):
                raise UserError(f"no {name} picture of {split} can be read; put some there")
    good, notes = name_people(good, identity)
    return FaceSet(good, sorted(reasons.items()), notes + _leaks(good), _fingerprint(good))


def _fingerprint(splits: Splits) -> str:
    lines = sorted(f"{split} {face.label} {face.digest}" for split, faces in splits.items() for face in faces)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _leaks(splits: Splits) -> list[str]:
    notes = []
    train = splits["train"]
    people, contents = {face.identity for face in train}, {face.digest: face.path for face in train}
    for split, faces in splits.items():
        if split == "train":
            continue
        both = people & {face.identity for face in faces}
        if both:
            notes.append(f"{len(both)} people of {split} are also in train, such as {min(both)}: its scores flatter")
        same = [face for face in faces if face.digest in contents]
        if same:
            notes.append(
                f"{len(same)} files of {split} are also in train, byte for byte, such as {same[0].path} = "
                f"{contents[same[0].digest]}: its scores flatter"
            )
    return notes


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gender_cls`, or `~/.cache/gender_cls`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gender_cls"


def _read_all(paths: Iterable[str], cache: str | os.PathLike[str] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Digest of each picture that decodes, and the reason for each that does not (those are tried at every start)."""
    digests: dict[str, str] = {}
    reasons: dict[str, str] = {}
    unread: list[tuple[str, bytes]] = []
    memory = _open_memory(Path(cache or cache_folder()))
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            reasons[path] = (error.strerror or str(error)).lower()
            continue
        key = os.fsencode(os.path.abspath(path)) + f"\0{state.st_size}\0{state.st_mtime_ns}".encode()
        known = memory.execute("SELECT digest FROM pictures WHERE key = ?", (key,)).fetchone()
        if known:
            digests[path] = known[0]
        else:
            unread.append((path, key))
    with ThreadPoolExecutor(os.cpu_count()) as pool, memory:  # decoding and hashing let other threads run
        bar = partial(tqdm, desc="checking pictures", unit="picture", disable=None, leave=False)
        for start in range(0, len(unread), 1000):
            part = unread[start : start + 1000]
            for (path, key), (digest, reason) in bar(
                zip(part, pool.map(_read_one, (path for path, _ in part))), initial=start, total=len(unread)
            ):
                if reason:
                    reasons[path] = reason
                else:
                    digests[path] = digest
                    memory.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?)", (key, digest))
            memory.commit()
    memory.close()
    return digests, reasons


def _open_memory(cache: Path) -> sqlite3.Connection:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(cache / "pictures.sqlite", timeout=60)
        memory.execute("CREATE TABLE IF NOT EXISTS pictures (key BLOB PRIMARY KEY, digest TEXT) WITHOUT ROWID")
    except (OSError, sqlite3.Error):  # no place to write, or a damaged file: only the memory is lost, not the run
        memory = sqlite3.connect(":memory:")
        memory.execute("CREATE TABLE pictures (key BLOB PRIMARY KEY, digest TEXT) WITHOUT ROWID")
    return memory


def _read_one(path: str) -> tuple[str, str]:
    try:
        load_rgb(path)
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest(), ""
    except PictureError as error:
        return "", str(error)
    except OSError as error:
        return "", (error.strerror or str(error)).lower()
