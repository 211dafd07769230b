"""Checks before training: unreadable images, identities, splits and leaks between them."""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import chain, combinations, islice
from pathlib import Path

from tqdm import tqdm

from gender_cls.data.faceset import FaceSet
from gender_cls.data.identities import assign_identities, compile_pattern, split_identities
from gender_cls.data.sources import UNSPLIT, Face, Listed, Splits
from gender_cls.errors import ImageError, UserError, check_integer, check_share, printable, reason
from gender_cls.files import cache_folder
from gender_cls.labels import CLASSES
from gender_cls.transforms.decode import MAX_PIXELS, Decoder, content_digest

MAX_BAD_SHARE = 0.05
MAX_LISTED = 1000  # unreadable images that are listed before the run ends

log = logging.getLogger(__name__)


def check(
    listed: Listed,
    identity: str | None,
    val_share: float = 0.2,
    holdout: float = 0.0,
    split_seed: int = 0,
    decoder: Decoder = Decoder(),
    training: bool = True,
) -> FaceSet:
    """Read every image once, leave out unreadable ones, assign identities, split them and look for leaks.

    Digests are cached by path, size and modification time, so that a large data set is read only once.

    Args:
        listed: Faces by split, or all of them under `UNSPLIT`.
        identity: Pattern of identities in file names, see `assign_identities`.
        val_share: Share of the images, split by identity, that becomes val if the faces come unsplit.
        holdout: Share of the training images, split by identity, that becomes dev if there is no dev yet; 0 for none.
        split_seed: Seed of the choice of val and dev.
        decoder: How images are decoded.
        training: Whether train needs both classes.

    Raises:
        UserError: If a value is out of range, more than 5 % of a split can't be read, a split has no image left, or
            training has none of a class.
    """
    check_split(identity, val_share, holdout, split_seed)  # an error should not wait until all images are read
    splits = listed.splits
    if training:
        _check_training(splits)
    digests, reasons, kept = _read_all([face.path for faces in splits.values() for face in faces], decoder)
    good = {s: [replace(f, digest=digests[f.path]) for f in faces if f.path in digests] for s, faces in splits.items()}
    _check_readable(splits, reasons)
    cut_off = f"{len(kept)} images are cut off or damaged; what is there is kept, first {''.join(kept[:1])}"
    notes = [*listed.notes, *([cut_off] if kept else [])]
    if training:
        _check_training(good)
    for split, faces in good.items():
        notes += _check_classes(split, faces, listed.splits[split])
    good, found = assign_identities(good, identity)
    notes += found
    lines = sorted(f"{split} {face.label} {face.digest}" for split, faces in good.items() for face in faces)
    fingerprint = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
    if UNSPLIT in good:
        notes.append(f"no split is given: about {val_share:.0%} of the images, by identity, are val (data.val_share)")
        good = dict(zip(("train", "val"), split_identities(good[UNSPLIT], val_share, split_seed, "data.val_share")))
    if holdout != 0 and "dev" not in good:
        train, dev = split_identities(good["train"], holdout, split_seed, "data.holdout")
        good = {"train": train, "dev": dev, "val": good["val"]}
    return FaceSet(good, sorted(reasons.items()), notes + _leaks(good), fingerprint)


def _check_readable(splits: Splits, reasons: Mapping[str, str]) -> None:
    """Raise a `UserError` if too many images of a split can't be read, after listing them."""
    for split, faces in splits.items():
        bad = [face.path for face in faces if face.path in reasons]
        if len(bad) > MAX_BAD_SHARE * len(faces):
            for path in bad[:MAX_LISTED]:
                log.warning("can't be read: %s: %s", printable(path), printable(reasons[path]))
            share = f"{len(bad)} of {len(faces)} images in {split} can't be read, more than 5 %"
            raise UserError("bad-data", f"{share}; repair or delete them, first {bad[0]}: {reasons[bad[0]]}")


def _check_training(splits: Splits) -> None:
    """Raise a `UserError` unless there are images of both classes to train on."""
    for split in {"train", UNSPLIT} & set(splits):  # in the others one class may do
        for absent in {0, 1} - {face.label for face in splits[split]}:
            where = "" if split == UNSPLIT else " in train"
            raise UserError("no-images", f"there is no {CLASSES[absent]} image{where}, and training needs both classes")


def _check_classes(split: str, readable: list[Face], given: list[Face]) -> list[str]:
    """Return a note where only one class is left; a `UserError` where no image is."""
    absent = {0, 1} - {face.label for face in readable}
    lost = " that can be read" if len(readable) < len(given) else ""
    if not readable:
        raise UserError("no-images", f"there is no image in {split}{lost}; add some")
    return [f"there is no {CLASSES[label]} image in {split}{lost}: its macro-F1 has no value" for label in absent]


def check_split(identity: str | None, val_share: float, holdout: float, split_seed: int) -> None:
    """Raise a `UserError` unless these arguments of `check` are in their ranges."""
    compile_pattern(identity)
    check_share("data.val_share", val_share)
    check_share("data.holdout", holdout, zero=True)
    check_integer("data.split_seed", split_seed, 0)


def _leaks(splits: Splits) -> list[str]:
    notes = []
    first: dict[str, Face] = {}
    both = {
        face.digest: f"{face.path} = {earlier.path}"
        for face in chain.from_iterable(splits.values())
        if (earlier := first.setdefault(face.digest, face)).label != face.label
    }
    if both:
        found = f"{len(both)} images are under both labels, byte for byte, such as {min(both.values())}"
        notes.append(f"{found}: one of the two is wrong")
    for split, faces in splits.items():
        if again := len(faces) - len({face.digest for face in faces}):
            notes.append(f"{again} images of {split} are there twice, byte for byte: they count twice")
    for (one, faces), (other, others) in combinations(splits.items(), 2):
        if identities := {face.identity for face in faces} & {face.identity for face in others}:
            known = min(identities)
            shown = next(face.path for face in others if face.identity == known) if len(known) == 32 else known
            found = f"{len(identities)} identities of {other} are also in {one}, such as {shown}"
            notes.append(f"{found}: metrics are too good")
        contents = {face.digest: face.path for face in faces}
        if same := [f"{face.path} = {contents[face.digest]}" for face in others if face.digest in contents]:
            found = f"{len(same)} files of {other} are also in {one}, byte for byte"
            notes.append(f"{found}, such as {same[0]}: metrics are too good")
    return notes


def _read_all(paths: Iterable[str], decoder: Decoder) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the digest of each image that decodes, the reason for each that does not, and which ones are cut off.

    Only the first are cached, and only those that are whole, so that each run names the others.
    """
    kept: dict[str, None] = {}
    how = "" if decoder.max_pixels == MAX_PIXELS else f"\0{decoder.max_pixels}"
    how += "" if find_spec("pillow_heif") else "\0no HEIC"
    digests: dict[str, str] = {}
    reasons: dict[str, str] = {}
    unread: dict[str, bytes] = {}
    memory = _Memory(cache_folder())
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            reasons[path] = reason(error)
            continue
        key = os.fsencode(os.path.abspath(path)) + f"\0{state.st_size}\0{state.st_mtime_ns}{how}".encode()
        if known := memory.get(key):
            digests[path] = known
        else:
            unread[path] = key
    bar = tqdm(total=len(unread), desc="checking images", unit="image", disable=None, leave=False)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and hashing let other threads run
        rest = iter(unread.items())
        while some := dict(islice(rest, 1000)):
            for path, (digest, why, cut_off) in zip(some, pool.map(partial(_read_one, decoder=decoder), some)):
                bar.update()
                (reasons if why else digests)[path] = why or digest
                kept |= {path: None} if cut_off else {}
            memory.put([(key, digests[path]) for path, key in some.items() if path in digests and path not in kept])
    return digests, reasons, list(kept)


class _Memory:
    """Digests by path, size and modification time. An unusable file only costs time."""

    def __init__(self, cache: Path) -> None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._open(str(cache / "pictures.sqlite"))  # the older word stays, so that caches stay valid
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


def _read_one(path: str, decoder: Decoder) -> tuple[str, str, bool]:
    try:
        cut_off = bool(decoder.load(path).info.get("truncated"))
        return content_digest(Path(path).read_bytes()), "", cut_off
    except ImageError as error:
        return "", str(error), False
    except OSError as error:
        return "", reason(error), False
