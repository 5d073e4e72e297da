"""Hugging Face data sets: local Parquet and Arrow files, or a name on the hub.

Arrow files are mapped into memory. Parquet has no cheap access to one row: it is copied
once into an Arrow file in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import file_key
from fastadv.data.files.patterns import fetch_hint
from fastadv.data.files.records import read_splits
from fastadv.data.sets.depth import set_depth
from fastadv.data.sets.image_set import Damage, FileSet, ImageSet, option_hint
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.data.sets.splitting import SplitSets, chosen_splits, split_order
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.files import atomic, fastadv_cache_dir, loads_json, read_regular

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "jpg", "png", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target")
_ROWS = 256  # converted at once: bounds memory, and what one damaged file costs


class ColumnSet(FileSet):
    """One split whose encoded images are a column of a table.

    It takes the arguments of `FileSet`, the table, and the name of the image column. Rows
    with a label of -1 are left out.

    Attributes:
        rows: Row of each image in the table, int64 [n].
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        labels: NDArray[np.int64],
        table: Any,
        column: str,
    ) -> None:
        self.rows = np.flatnonzero(labels >= 0)
        members = [f"{split}/{row:08d}" for row in self.rows.tolist()]
        super().__init__(name, split, classes, members, labels[self.rows])
        self.table, self.column = table, column


class ArrowSet(ColumnSet):
    """A split of Arrow files, whose list is its `table`; they are mapped when first read.

    The column holds bytes, paths, or a struct with `bytes` and `path`.

    Attributes:
        places: Folders that paths of images may start from.
    """

    _images: tuple[Any, Any] | None = None  # bytes and paths; None where there are none
    places: tuple[Path, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": None}

    def _columns(self) -> tuple[Any, Any]:
        if self._images is None:
            import pyarrow as pa

            parts = [_images_of(_mapped(file)[self.column]) for file in self.table]
            both = [
                None if any(p[i] is None for p in parts) else pa.chunked_array(
                    [c for p in parts for c in p[i].chunks]
                )
                for i in (0, 1)
            ]  # fmt: skip
            self._images = both[0], both[1]
        return self._images

    def _encoded(self, index: int) -> bytes:
        row = int(self.rows[index])
        data, paths = self._columns()
        value: bytes | None = None if data is None else data[row].as_py()
        if value is not None:
            return value
        path: str | None = None if paths is None else paths[row].as_py()
        if not path:
            raise ValueError("the row holds no image bytes")
        return read_regular(self._file(path))

    def _file(self, path: str) -> Path:
        """Return the file that a row names; raise ValueError where there is none."""
        for place in self.places:
            if (found := place / path).is_file():
                return found
        looked = ", ".join(map(str, self.places)) or "any folder"
        raise ValueError(f"its file {path} is not in {looked}")

    def check_files(self) -> None:
        """Raise DataError where the rows name files and the first of them is not there."""
        data, paths = self._columns()
        if paths is None or not len(self):
            return
        row = int(self.rows[0])
        path = paths[row].as_py()
        if (data is not None and data[row].as_py() is not None) or not path:
            return
        try:
            self._file(path)
        except ValueError as error:
            raise DataError(
                f"{self.name}: the rows of {self.split} hold paths and no image bytes, and "
                f"{error}; give {option_hint('image_root', 'DIR')}, the folder that the "
                "paths start from"
            ) from None

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes; 0 for rows without."""
        import pyarrow.compute as pc

        data, paths = self._columns()
        if data is not None:
            lengths = pc.fill_null(pc.binary_length(data), 0).to_numpy()[self.rows]
            if lengths.all():
                return list(lengths.tolist())
        else:
            lengths = np.zeros(len(self), np.int64)
        sizes = lengths.tolist()
        for i, row in enumerate(self.rows.tolist()):
            if not sizes[i] and paths is not None and (path := paths[row].as_py()):
                with contextlib.suppress(OSError, ValueError):
                    sizes[i] = self._file(path).stat().st_size
        return list(sizes)


def _mapped(file: Path) -> pa.Table:
    import pyarrow as pa

    try:
        source = pa.memory_map(str(file))
        whole = source.read(6) == b"ARROW1"  # of the file format, not the stream format
        source.seek(0)
        return (pa.ipc.open_file if whole else pa.ipc.open_stream)(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as an Arrow file: {error}") from error


def open_columns(
    name: str,
    splits: dict[str, list[Path]],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: Path | None = None,
    damage: Damage | None = None,
) -> dict[str, ImageSet]:
    """Open local Parquet or Arrow files.

    Args:
        name: The data set.
        splits: The files of each split, the training split first.
        image_column: The column of encoded images; found by its name by default.
        label_column: The column of class ids or names; found by its name by default.
        image_root: The folder that paths of images start from; by default that of the
            file, or one above it.
        damage: Files that cannot be read are added here, and left out.

    Returns:
        The splits that have labels.

    Raises:
        DataError: A file cannot be read, or has no such columns; labels are no labels, or
            the files that rows name are not there.
    """
    tables = read_splits(name, splits, _table, damage)
    first, _ = next(iter(next(iter(tables.values())).values()))
    columns = first.column_names
    image = _column_name("image", name, columns, image_column, _IMAGES)
    label = _column_name("label", name, columns, label_column, _LABELS)
    values: dict[str, list[object]] = {}
    for split, parts in tables.items():
        values[split] = []
        for file, (table, _) in parts.items():
            if image not in table.column_names:
                raise DataError(
                    f"{file} has the columns {', '.join(table.column_names)}; the first "
                    f"file has {image} and {label} as well. Are they of one data set?"
                )
            has_label = label in table.column_names
            if not has_label and split == next(iter(tables)):
                raise DataError(
                    f"{file} has the columns {', '.join(table.column_names)}; the first "
                    f"file has {label} as well. Are they of one data set?"
                )
            none = [None] * len(table)
            values[split] += table[label].to_pylist() if has_label else none
    classes, ids = resolve_labels(values, name, names=_class_names(first, label))
    sets: dict[str, ImageSet] = {}
    for split in ids:
        arrows = [arrow for _, arrow in tables[split].values()]
        made = ArrowSet(name, split, classes, ids[split], arrows, image)
        files = list(tables[split])
        made.places = _places(files, image_root)
        made.check_files()
        sets[split] = made
    return sets


def _places(files: Sequence[Path], root: Path | None) -> tuple[Path, ...]:
    """Return the folders that paths of rows may start from."""
    if root is not None:
        if not root.is_dir():
            raise ConfigError(f"image_root={root} is no folder")
        return (root.absolute(),)
    folder = files[0].absolute().parent
    return (folder, folder.parent, folder / "images", folder.parent / "images")


def _table(file: Path) -> tuple[pa.Table, Path]:
    """Return the table of a file, and the Arrow file it is mapped from."""
    arrow = file if file.suffix == ".arrow" else _converted(file)
    return _mapped(arrow), arrow


def _converted(file: Path) -> Path:
    """Return the Arrow copy of a Parquet file, made when it is not there."""
    import pyarrow as pa
    from pyarrow import parquet

    target = fastadv_cache_dir() / "parquet" / f"{file_key(file)}.arrow"
    if target.exists():
        return target
    try:
        source = parquet.ParquetFile(file)
        with (
            atomic(target) as temporary,
            pa.ipc.new_file(str(temporary), source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches(batch_size=_ROWS):
                writer.write_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as a Parquet file: {error}") from error
    return target


def _column_name(
    what: str,
    name: str,
    columns: Iterable[str],
    asked: str | None,
    usual: Sequence[str],
) -> str:
    """Return the column that was named, else the first of the usual ones that is there."""
    if asked is not None and asked not in columns:
        raise ConfigError(unknown_name(f"{what} column of {name}", asked, columns))
    found = asked or next((u for u in usual if u in columns), None)
    if found is None:
        wanted = ", ".join(usual) or f"the type of {what}s"
        raise DataError(
            f"{name} has the columns {', '.join(columns)} and none of {wanted}; give "
            f"{option_hint(f'{what}_column', 'NAME')}"
        )
    return found


def _images_of(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """Return bytes and paths of a column of images, None for what it does not hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    data, paths = column, None
    if types.is_struct(column.type):
        names = [field.name for field in column.type]
        data = pc.struct_field(column, "bytes") if "bytes" in names else None
        paths = pc.struct_field(column, "path") if "path" in names else None
    elif types.is_string(column.type) or types.is_large_string(column.type):
        return None, column
    if data is not None and types.is_null(data.type):
        data = None
    if paths is not None and types.is_null(paths.type):
        paths = None
    is_bytes = data is not None and (
        types.is_binary(data.type) or types.is_large_binary(data.type)
    )
    if not is_bytes and (data is not None or paths is None):
        raise DataError(f"the image column holds {column.type}, not encoded images")
    return data, paths


def _class_names(table: pa.Table, label: str) -> list[str] | None:
    """Return the names that the `datasets` package stored in the schema, if any."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = loads_json(stored or "{}")["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if names else None


class HubSet(ColumnSet):
    """A split of a data set opened by the `datasets` package, which is its `table`."""

    def _encoded(self, index: int) -> bytes:
        value = self.table[int(self.rows[index])][self.column]
        if value.get("bytes"):
            return bytes(value["bytes"])
        try:
            return read_regular(value["path"])
        except (OSError, TypeError) as error:
            raise ValueError(f"no image bytes ({error})") from error

    def sizes(self) -> list[int]:
        """Return 0 for every image: `fingerprint` has the package's own key instead."""
        return [0] * len(self)

    @property
    def fingerprint(self) -> str:
        """Key of the package's fingerprint and the labels, hex."""
        digest = hashlib.sha256(str(self.table._fingerprint).encode())
        digest.update(self.labels.tobytes() + self._bits_key())
        return digest.hexdigest()[:32]


def open_hub(
    name: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    download: bool = False,
    holdout: float = 0.1,
    strict: bool = True,
    eval_split: str | None = None,
) -> SplitSets:
    """Open a data set of the Hugging Face hub by name.

    Args:
        name: As on the hub, e.g. "cifar10".
        config: Its configuration, where it has several.
        image_column: The column of images; the first of that kind by default.
        label_column: The column of class ids; the first of that kind by default.
        download: Fetch it when it is not in the package's cache.
        holdout: Share held out for evaluation where it has one split only.
        strict: Refuse an evaluation split that lacks classes, instead of warning.
        eval_split: Name of the evaluation split; by default the first with labels.

    Raises:
        ConfigError: The `datasets` package is missing, or a column.
        DataError: The data set is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"hf:{name} needs the datasets package: pip install 'fastadv[hub]'. A folder "
            "of its Parquet files opens without"
        ) from error
    local = None if download else datasets.DownloadConfig(local_files_only=True)
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not download
    try:
        opened = datasets.load_dataset(name, config, download_config=local)
    except Exception as error:  # whatever the hub, the network and the cache raise
        hint = "" if download else f"; {fetch_hint(f'hf:{name}')}"
        raise DataError(f"cannot open hf:{name}: {error}{hint}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    where = f"hf:{name}"
    features = next(iter(opened.values())).features
    images = [c for c, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [c for c, k in features.items() if isinstance(k, datasets.ClassLabel)]
    image = _column_name("image", where, features, image_column, images)
    label = _column_name("label", where, features, label_column, labels)
    names = getattr(features[label], "names", None)
    train, held = split_order(opened, eval_split, where)
    order = list(opened) if train is None and not held else [train or held[0], *held]
    none: list[object] = [None]
    values = {
        split: list(opened[split][label])
        if label in opened[split].features
        else none * len(opened[split])
        for split in dict.fromkeys(order)
    }
    classes, ids = resolve_labels(values, where, names=names)
    sets: dict[str, ImageSet] = {}
    for split in ids:
        table = opened[split].cast_column(image, datasets.Image(decode=False))
        sets[split] = HubSet(name, split, classes, ids[split], table, image)
    set_depth(sets.values(), where)
    return SplitSets(name, chosen_splits(sets, None, where), "top1", holdout, strict)
