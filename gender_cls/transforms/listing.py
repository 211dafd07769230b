"""The images below a folder: what is listed, and what is ignored, by kind."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gender_cls.transforms.formats import endings, is_image

SYSTEM = (  # folders of copies that disk stations make, of what unpacking leaves, and of what was deleted
    "@eaDir", "__MACOSX", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
)  # fmt: skip
KINDS = 12  # that are counted one by one
PREVIEWS = (".lrdata", ".cocatalog")  # endings of folders of small copies, as Lightroom and Capture One keep them


@dataclass
class Listing:
    """Images below a folder.

    Attributes:
        paths: Their paths.
        ignored: Number of files and folders that are ignored, by kind: an ending such as `.txt`, or hidden.
        linked: Whether a linked folder was followed.
    """

    paths: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    linked: bool = False


def ignored_note(ignored: Counter[str]) -> str:
    """Return a line that counts what is ignored, by kind; empty if nothing is."""
    rows = sorted(ignored.items(), key=lambda row: (-row[1], row[0]))
    kinds = [f"{number} {kind}" for kind, number in rows[:KINDS]]
    if rest := rows[KINDS:]:
        kinds.append(f"{sum(number for _, number in rest)} of {len(rest)} other kinds")
    return f"ignored as no images: {', '.join(kinds)}" if kinds else ""


def list_images(*folders: str | os.PathLike[str]) -> Listing:
    """List the images below some folders.

    A file is an image by its ending, if that is one of Pillow's formats or HEIC, or else by its first bytes. Linked
    folders are followed, each real folder once, except to one that holds one of `folders`. Hidden files and folders,
    and `SYSTEM` and `PREVIEWS` ones, are ignored. Folders that can't be read are listed as well, so that the images in
    them are reported rather than lost. The order is that of the names, folder by folder, and what is linked comes last.
    """
    found, known = Listing(), endings()
    links, seen = [os.fspath(folder) for folder in folders], set[str]()
    given = set(links)
    above = {str(parent) for folder in folders for parent in Path(os.path.realpath(folder)).parents}
    while links:
        start = links.pop(0)
        if os.path.realpath(start) in seen:
            continue
        if start not in given and os.path.realpath(start) in above:
            found.ignored["link to a folder above"] += 1
            continue
        found.linked |= os.path.islink(start)
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
        if name in SYSTEM or name.endswith(PREVIEWS):
            ignored[name] += 1
        elif name.startswith("."):
            ignored["hidden"] += 1
        else:
            yield name
