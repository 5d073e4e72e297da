"""Read files of `torch.save` and `pickle` without running anything that they name.

A pickle is a program: it names functions and classes, and calls them. Here only what builds a
tensor or a container is what its name says (`_BUILDERS`). Every other name becomes an inert
`Stub`, which keeps what it is given and does nothing, so that weights can be read beside an
`argparse.Namespace`, a scheduler, a function that dill wrote, or an attack on the reader.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor, serialization

ENCODING = "latin1"  # that of texts and arrays which Python 2 pickled


class Stub:
    """What stands for an object of a class, or the result of a function, that is not loaded.

    Attributes:
        named: What the file names, as `module.name`.
        args: The positional arguments it was called with.
        state: The state it was given, usually a dict of its attributes.
        entries: The entries that a subclass of dict was given.
        elements: The elements that a subclass of list or set was given.
    """

    named = "?"
    # Read by torch where an old file holds the source code of a network.
    dump_patches = False

    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """Keep the arguments; nothing is called."""
        made = object.__new__(cls)
        vars(made).update(args=args, state=None, entries={}, elements=[])
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing with the arguments, which `__new__` kept."""

    def __setstate__(self, state: Any) -> None:
        """Keep the state as it is, instead of setting attributes."""
        vars(self)["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep an entry of a class that is a dict."""
        self.entries[key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        """Return another stub where a file calls what a call returned."""
        return type(self)(*args)

    def append(self, element: Any) -> None:
        """Keep an element of a class that is a list."""
        self.elements.append(element)

    def extend(self, elements: Any) -> None:
        """Keep the elements of a class that is a list."""
        self.elements.extend(elements)

    add = append


class _Builder:
    """A function that a file may call; a file cannot set attributes of it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function is given a state, which none takes")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    made = torch.empty(0, dtype=storage.dtype, device=storage._untyped_storage.device)
    return made.set_(storage._untyped_storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any
) -> Tensor:
    made = torch.empty(0, dtype=dtype, device=storage._untyped_storage.device)
    return made.set_(storage._untyped_storage, offset, size, stride)


def _from_bytes(content: bytes) -> Any:
    """Read a storage of a tensor that was pickled without `torch.save`."""
    return _read_torch(io.BytesIO(content))


def _subclass(build: Callable[..., Tensor], _: Any, args: Any, *state: Any) -> Tensor:
    return build(*args)


def _a_class(*_: Any) -> type[Stub]:
    """Stand in for the functions by which dill and cloudpickle make classes."""
    return type("Stub", (Stub,), {"named": "a class of the file"})


_BUILDERS: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("dill._dill._create_type", "dill.dill._create_type", "builtins.type"),
            *("dill._dill._load_type", "dill.dill._load_type"),
            "cloudpickle.cloudpickle._make_skeleton_class",
        ),
        _Builder(_a_class),
    ),
    "collections.OrderedDict": OrderedDict,
    "torch.UntypedStorage": torch.UntypedStorage,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "_codecs.encode": _Builder(lambda text, *_: text.encode(ENCODING)),
    "torch.Size": _Builder(torch.Size),
    "torch.storage._load_from_bytes": _Builder(_from_bytes),
    "torch._utils._rebuild_tensor": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v3": _Builder(lambda *args: _tensor_v3(*args[:7])),
    "torch._utils._rebuild_parameter": _Builder(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Builder(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _Builder(_subclass),
}


class _Unpickler(pickle.Unpickler):
    """An unpickler whose names are those of `_BUILDERS`; all others are stubs.

    Source: The section "Restricting Globals" of the documentation of Python's pickle.
    """

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _BUILDERS:
            return _BUILDERS[full]
        if module == "torch" and name.endswith("Storage"):
            with contextlib.suppress(KeyError):
                return serialization.StorageType(name)  # type: ignore[no-untyped-call]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Stub", (Stub,), {"named": full})


def _load(stream: IO[bytes], **how: Any) -> Any:
    return _Unpickler(stream, **how).load()


# What torch's readers of its formats use of the module that is given to them.
_MODULE = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)


def _read_torch(stream: IO[bytes]) -> Any:
    """Read a file of `torch.save`, of any version.

    `torch.load(weights_only=True)` refuses a file for every name that it does not know, so
    these are the readers that it calls for the formats, with an unpickler that runs nothing.
    """
    start = stream.read(4)
    stream.seek(0)
    if start != b"PK\x03\x04":
        return serialization._legacy_load(stream, "cpu", _MODULE, encoding=ENCODING)  # type: ignore[no-untyped-call]
    with serialization._open_zipfile_reader(stream) as archive:
        if "constants.pkl" in archive.get_all_records():
            raise NotImplementedError("a TorchScript archive")
        return serialization._load(archive, "cpu", _MODULE, encoding=ENCODING)  # type: ignore[no-untyped-call]


def read_pickle(file: Path) -> Any:
    """Return what a file of `torch.save` or `pickle.dump` holds; nothing in it is run.

    All formats are read: the zip archives of today, the stream of pickles and the tar archive
    of older versions, and tensors in a plain pickle, of any protocol.

    Args:
        file: The file.

    Returns:
        Its content, with a `Stub` in place of everything that is neither a tensor nor a plain
        container, text or number.

    Raises:
        NotImplementedError: It is a TorchScript archive, which is a program.
        Exception: It is damaged; of what kind depends on its bytes.
    """
    with open(file, "rb") as stream, warnings.catch_warnings():
        # Old files hold the source of classes, which torch compares with that of the stub.
        warnings.simplefilter("ignore")
        try:
            return _read_torch(stream)
        except RuntimeError as error:
            if "magic number" not in str(error):
                raise
        stream.seek(0)
        return _load(stream, encoding=ENCODING)
