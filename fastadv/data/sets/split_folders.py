"""The files of the folder of one split: folders of classes, or loose images."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastadv.data.sets.class_order import Members
from fastadv.data.sets.endings import is_image
from fastadv.data.sets.tree import Tree

# Folders in a split that hold its images without being a class.
_PLAIN = frozenset(
    [
        "images",
        "image",
        "imgs",
        "img",
        "jpg",
        "jpeg",
        "jpegs",
        "jpegimages",
        "photos",
        "pictures",
        "pics",
        "data",
        "unknown",
        "unlabeled",
        "unlabelled",
        "all",
    ]
)


@dataclass
class SplitFiles:
    """The files of one split.

    Attributes:
        folders: Images by folder, also of folders without any.
        loose: Images outside of folders.
        others: Files that are no images.
    """

    folders: Members = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        """All images, loose or not."""
        return [*self.loose, *(p for paths in self.folders.values() for p in paths)]


def files_of_split(tree: Tree, name: str) -> SplitFiles:
    """Return the files of a split folder, without folders that only wrap it."""
    base = f"{name}/"
    files = [p for p in tree.files if p.startswith(base)]
    folders = [p for p in tree.folders if p.startswith(base)]
    while True:
        n = len(base)
        direct = sorted(
            p[n:] for p in folders if p.startswith(base) and "/" not in p[n:]
        )
        loose = [p for p in files if "/" not in p[n:] and is_image(p)]
        if len(direct) != 1 or loose:
            break
        inner = f"{base}{direct[0]}/"
        classes = {
            path[len(inner) :].split("/")[0]
            for path in files
            if path.startswith(inner) and "/" in path[len(inner) :] and is_image(path)
        }
        if direct[0].lower() in _PLAIN | {name.lower()} or len(classes) > 1:
            base = inner
            continue
        break
    found = SplitFiles(others=[p for p in files if not is_image(p)], loose=loose)
    found.folders = {folder: [] for folder in direct}
    for path in files:
        inside = path[len(base) :] if path.startswith(base) else ""
        if "/" in inside and is_image(path):
            found.folders[inside.split("/", 1)[0]].append(path)
    return found


def are_classes(part: SplitFiles, train: Members | None) -> bool:
    """Return whether the folders of an evaluation split are classes."""
    if not any(part.folders.values()):
        return False
    if train is None or set(part.folders) & set(train):
        return True
    # One folder of another name holds images without labels: `test/unknown/`.
    return len(part.folders) > 1
