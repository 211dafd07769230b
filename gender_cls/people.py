"""Who is who, and who goes where: a person (`identity`) is never split over train, dev and val by this project."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median_low

from gender_cls import CLASSES
from gender_cls.errors import UserError
from gender_cls.sources import Face, Splits

IDENTITY = r"^(.+)_\d{4}$"  # the usual pattern of file names, see `name_people`
MIN_PEOPLE = 10  # fewer in a class: the pattern most likely took a camera's file name for a person


def split_people(faces: Sequence[Face], share: float, seed: int, key: str) -> tuple[list[Face], list[Face]]:
    """Part faces by person, so that about `share` of each class's pictures go second.

    Who goes is decided by a hash of the seed and the name alone, so that adding people moves few others. Someone with
    more pictures than are still wanted stays, so that one person can't be most of the second part.

    Args:
        faces: With their identities.
        share: In (0, 1).
        seed: Of the hash.
        key: Of the configuration, for errors.

    Raises:
        UserError: `share` is no share, or leaves a class without people on one side.
    """
    if not 0 < share < 1:
        raise UserError(f"{key}={share} is no share of the people; give a number above 0 and below 1, such as 0.1")
    pictures: dict[str, list[int]] = defaultdict(list)
    for face in faces:
        pictures[face.identity].append(face.label)

    taken: set[str] = set()
    for label in range(len(CLASSES)):  # someone filed under both labels counts where most of the pictures are
        people = sorted(
            (who for who, labels in pictures.items() if median_low(labels) == label), key=partial(_rank, seed)
        )
        left = share * sum(len(pictures[who]) for who in people)
        for who in people:
            if len(pictures[who]) <= left:
                taken.add(who)
                left -= len(pictures[who])
        if people and not taken & set(people):
            taken.add(min(people, key=lambda who: len(pictures[who])))
    first = [face for face in faces if face.identity not in taken]
    second = [face for face in faces if face.identity in taken]
    if any({face.label for face in part} != {0, 1} for part in (first, second)):
        raise UserError(f"{key}={share} leaves a class without people on one side; give another share or more people")
    return first, second


def fold_people(faces: Sequence[Face], number: int, seed: int) -> list[int]:
    """The fold, 0 to `number` - 1, of each face: all faces of a person are in one.

    People with many pictures are placed first, each in the fold that has the fewest pictures of their label.

    Args:
        faces: With their identities.
        number: Of folds.
        seed: Of the order among people with equally many pictures.
    """
    pictures: dict[str, list[int]] = defaultdict(list)
    for face in faces:
        pictures[face.identity].append(face.label)
    filled = [[0] * number for _ in CLASSES]
    of_person = {}
    for who in sorted(pictures, key=lambda who: (-len(pictures[who]), _rank(seed, who))):
        row = filled[median_low(pictures[who])]
        of_person[who] = row.index(min(row))
        row[of_person[who]] += len(pictures[who])
    return [of_person[face.identity] for face in faces]


def some_people(faces: Sequence[Face], number: int, key: str) -> list[Face]:
    """All of the faces or, of more than `number`, about that many, by whole people whom a hash of `key` picks."""
    if len(faces) <= number:
        return list(faces)
    order = sorted(faces, key=lambda face: (_rank(key, face.identity), face.identity))
    last = order[number - 1].identity
    return order[: number + sum(face.identity == last for face in order[number:])]


def name_people(splits: Splits, pattern: str | None) -> tuple[Splits, list[str]]:
    """Name the person of each face that has no identity yet.

    Args:
        splits: Faces by split.
        pattern: Regular expression on the file name without its ending; its first group is the person. A name that
            does not match, and every picture where `pattern` is None, is a person of its own, named by its content.

    Returns:
        The faces with their identities, and notes. If a class has fewer than ten people that way, each picture is
        treated as a person and a note says so.

    Raises:
        UserError: `pattern` is no regular expression with a group.
    """
    try:
        regex = re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise UserError(f"data.identity={pattern} is no regular expression: {error}; null turns it off") from error
    if regex is not None and regex.groups < 1:
        raise UserError(f"data.identity={pattern} has no group (...) around the person's name; null turns it off")

    def person(face: Face, use: re.Pattern[str] | None) -> str:
        found = use.search(os.path.splitext(os.path.basename(face.path))[0]) if use else None
        return face.identity or (found.group(1) if found else face.digest)

    notes = []
    for label, name in enumerate(CLASSES):
        pictures = [face for faces in splits.values() for face in faces if face.label == label and not face.identity]
        people = {person(face, regex) for face in pictures}
        if len(people) < min(MIN_PEOPLE, len(pictures)):
            notes.append(
                f"data.identity finds only {len(people)} people in {len(pictures)} {name} pictures, fewer than "
                f"{MIN_PEOPLE}: each picture is treated as a person of its own"
            )
    use = None if notes else regex
    return {split: [replace(f, identity=person(f, use)) for f in faces] for split, faces in splits.items()}, notes


def _rank(seed: int | str, person: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{person}".encode(errors="surrogateescape")).digest()
