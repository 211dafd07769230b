"""The images below a folder: what is listed, and what is ignored, by kind."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gender_cls.transforms.formats import endings, is_image

SYSTEM = ("@eaDir", "__MACOSX")  # folders of copies that a disk station makes, and of what unpacking leaves


@dataclass
class Listing:
    """Images below a folder.

    Attributes:
        paths: Their paths.
        ignored: Number of files and folders that are ignored, by kind: an ending such as `.txt`, or hidden.
    """

    paths: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def ignored_note(ignored: Counter[str]) -> str:
    """Return a line that counts what is ignored, by kind; empty if nothing is."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(ignored.items(), key=lambda row: (-row[1], row[0])))
    return f"ignored as no images: {kinds}" if kinds else ""


def list_images(folder: str | os.PathLike[str]) -> Listing:
    """List the images below a folder.

    A file is an image by its ending, if that is one of Pillow's formats or HEIC, or else by its first bytes. Linked
    folders are followed, each real folder once. Hidden files and folders, and `SYSTEM` ones, are ignored. Folders that
    can't be read are listed as well, so that the images in them are reported rather than lost. The order is that of the
    names, folder by folder, and what is linked comes last.
    """
    found, known = Listing(), endings()
    links, seen = [os.fspath(folder)], set[str]()
    while links:
        start = links.pop(0)
        if os.path.realpath(start) in seen:
            continue
        for parent, children, names in os.walk(start, onerror=lambda error: found.paths.append(error.filename)):
            seen.add(os.path.realpath(parent))
            children[:] = sorted(_shown(children, found.ignored))
            paths = {name: os.path.join(parent, name) for name in children}
            links += [path for path in paths.values() if os.path.islink(path)]
            children[:] = [name for name, path in paths.items() if os.path.realpath(path) not in seen]
            for name in sorted(_shown(names, found.ignored)):
                path, ending = os.path.join(parent, name), os.path.splitext(name)[1].lower()
                if ending in known or (os.path.isfile(path) and is_image(path)):
                    found.paths.append(path)
                else:
                    found.ignored[ending or "without ending"] += 1
    return found


def _shown(names: list[str], ignored: Counter[str]) -> Iterator[str]:
    for name in names:
        if name in SYSTEM:
            ignored[name] += 1
        elif name.startswith("."):
            ignored["hidden"] += 1
        else:
            yield name
