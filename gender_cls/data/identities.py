"""Identities: who is in an image, and which split or fold all images of an identity go to."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from gender_cls.data.sources import Face, Splits
from gender_cls.errors import UserError, check_regex, check_share
from gender_cls.labels import CLASSES

IDENTITY = r"^(.+)_\d{4}$"  # the usual pattern of file names, see `assign_identities`
MIN_IDENTITIES = 10  # with fewer in a class the pattern most likely took a camera's file name for an identity


def split_identities(faces: Sequence[Face], share: float, seed: int, key: str) -> tuple[list[Face], list[Face]]:
    """Split faces by identity so that about `share` of the images of each class go to the second part.

    The choice depends only on a hash of the seed and the identity, so that adding identities moves few others. An
    identity with more images than are still wanted stays, so that it can't be most of the second part.

    Raises:
        UserError: If `share`, set by `key`, is not in (0, 1) or leaves a class without identities on one side.
    """
    check_share(key, share)
    labels: dict[str, list[int]] = defaultdict(list)
    for face in faces:
        labels[face.identity].append(face.label)
    taken: set[str] = set()
    for label in range(len(CLASSES)):  # an identity with both labels counts where most of its images are
        identities = [who for who, found in labels.items() if median_low(found) == label]
        identities.sort(key=lambda who: _rank(seed, who))
        left = share * sum(len(labels[identity]) for identity in identities)
        for identity in identities:
            if len(labels[identity]) <= left:
                taken.add(identity)
                left -= len(labels[identity])
        if identities and not taken & set(identities):
            taken.add(min(identities, key=lambda identity: len(labels[identity])))
    first, second = ([face for face in faces if (face.identity in taken) == part] for part in (False, True))
    if any({face.label for face in part} != {0, 1} for part in (first, second)):
        message = f"{key}={share} leaves a class without identities on one side; give another share or more identities"
        raise UserError("too-few-identities", message)
    return first, second


def fold_identities(faces: Sequence[Face], number: int, seed: int) -> list[int]:
    """Assign each face to a fold, 0 to `number` - 1, with all faces of an identity in the same one.

    Identities with many images are placed first, each in the fold with the fewest images of their label; `seed` decides
    the order among those with equally many.
    """
    labels: dict[str, list[int]] = defaultdict(list)
    for face in faces:
        labels[face.identity].append(face.label)
    filled = [[0] * number for _ in CLASSES]
    folds = {}
    for identity in sorted(labels, key=lambda identity: (-len(labels[identity]), _rank(seed, identity))):
        row = filled[median_low(labels[identity])]
        folds[identity] = row.index(min(row))
        row[folds[identity]] += len(labels[identity])
    return [folds[face.identity] for face in faces]


def count_identities(faces: Sequence[Face]) -> list[int]:
    """Count the identities of each class; one with both labels counts where most of its images are, as in folds."""
    labels: dict[str, list[int]] = defaultdict(list)
    for face in faces:
        labels[face.identity].append(face.label)
    main = [median_low(found) for found in labels.values()]
    return [main.count(label) for label in range(len(CLASSES))]


def sample_identities(faces: Sequence[Face], number: int, key: str) -> list[Face]:
    """Return all faces or, of more than `number`, about that many: those of identities chosen by a hash of `key`."""
    if len(faces) <= number:
        return list(faces)
    order = sorted(faces, key=lambda face: (_rank(key, face.identity), face.identity))
    last = order[number - 1].identity
    return order[: number + sum(face.identity == last for face in order[number:])]


def assign_identities(splits: Splits, pattern: str | None) -> tuple[Splits, list[str]]:
    """Assign an identity to each face that has none yet.

    Args:
        splits: Faces by split.
        pattern: Regular expression on the file name without its suffix; its first group is the identity. An image whose
            name does not match, and every image if `pattern` is None, is an identity of its own, named by its content.

    Returns:
        The faces with their identities, and notes. If a class has fewer than ten identities that way, each image is
        treated as an identity of its own and a note says so.
    """
    regex = compile_pattern(pattern)

    def name(face: Face, use: re.Pattern[str] | None) -> str:
        found = use.search(os.path.splitext(os.path.basename(face.path))[0]) if use else None
        return face.identity or (found.group(1) if found else face.digest)

    notes = []
    for label, class_name in enumerate(CLASSES):
        images = [face for faces in splits.values() for face in faces if face.label == label and not face.identity]
        identities = {name(face, regex) for face in images}
        if len(identities) < min(MIN_IDENTITIES, len(images)):
            found = f"data.identity finds only {len(identities)} identities in {len(images)} {class_name} images"
            notes.append(f"{found}, fewer than {MIN_IDENTITIES}: each image is treated as an identity of its own")
    use = None if notes else regex
    return {split: [replace(f, identity=name(f, use)) for f in faces] for split, faces in splits.items()}, notes


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """Compile the pattern of `assign_identities`, or raise a `UserError` that names its key."""
    check_regex("data.identity", pattern)
    regex = None if pattern is None else re.compile(pattern)
    if regex and regex.groups < 1:
        raise UserError("bad-value", f"data.identity={pattern} has no group (...) for the identity; null turns it off")
    return regex


def _rank(seed: int | str, identity: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{identity}".encode(errors="surrogateescape")).digest()
