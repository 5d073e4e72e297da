"""The shape of the house: imports point one way, and a few things are never done."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("fastadv/**/*.py"), *ROOT.glob("kernels/*.py")])

# Lowest first; a part imports parts of lower layers, and of its own layer those that do
# not import it back. A new package needs a place here.
LAYERS = (
    {
        "checksums",
        "errors",
        "extensions",
        "files",
        "groups",
        "lazy",
        "machine",
        "phases",
        "progress",
        "text_tables",
    },
    {"addresses", "ranges", "statistics", "threat", "preparation"},
    {"device", "flags"},
    {"environment", "kernels", "results"},
    {"models", "data"},
    {"runs"},
    {"attacks"},
    {"evaluation", "loops", "reporting"},
    {"training"},
    {"transfer", "detection"},
    {"analysis"},
    {"cli"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _part(path: Path) -> str:
    """`errors` for fastadv/errors.py, `models` for fastadv/models/view.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


@functools.cache
def _modules() -> dict[str, Path]:
    """Full name -> file of every module and package."""
    names = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = ("fastadv", *parts) if parts[0] == "kernels" else parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def _imported(tree: ast.Module, *, runs: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, wherever in the file.

    A string that names a module counts: it ends in `python -m` or `import_module`. With
    `runs` imports for type checkers alone do not count.
    """
    idle = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if runs and node in idle:
            continue
        if isinstance(node, ast.Constant):
            # `fastadv` alone is the name of much else.
            if node.value in _modules() and node.value != "fastadv":
                yield node.lineno, str(node.value)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module
            yield from (
                (node.lineno, f"{node.module}.{alias.name}") for alias in node.names
            )


def _home(name: str) -> str:
    """The module that an imported name comes from; packages say it in their stubs."""
    if name in _modules():
        return name
    package, _, attribute = name.rpartition(".")
    stub = _modules().get(package, ROOT).with_suffix(".pyi")
    if stub.exists():
        for _, full in _imported(_tree(stub)):
            if full.endswith(f".{attribute}"):
                return _home(full)
    return package


def _circles(edges: Mapping[str, set[str]]) -> list[str]:
    """Those that reach themselves along the edges."""
    reached = {name: set(targets) for name, targets in edges.items()}
    before = -1
    while before != (before := sum(map(len, reached.values()))):
        for targets in reached.values():
            targets |= {t for each in targets for t in reached.get(each, ())}
    return sorted(name for name, targets in reached.items() if name in targets)


@functools.cache
def _edges() -> dict[tuple[str, str], str]:
    """(importing part, imported part) -> where."""
    edges = {}
    for path in SOURCES:
        for line, name in _imported(_tree(path)):
            words = name.split(".")
            if (
                words[0] == "fastadv"
                and words[1] in LEVEL
                and _part(path) not in (words[1], "__init__")
            ):
                edges[_part(path), words[1]] = f"{path.relative_to(ROOT)}:{line}"
    return edges


def test_every_part_has_its_place() -> None:
    assert {_part(p) for p in SOURCES} - {"__init__"} == set(LEVEL)
    assert len(SOURCES) > 60


def test_imports_point_one_way() -> None:
    edges = _edges()
    assert ("cli", "training") in edges  # the search finds what is there,
    assert ("attacks", "kernels") in edges  # also across the two folders
    upward = [
        f"{where}: {importer} imports {imported}"
        for (importer, imported), where in edges.items()
        if LEVEL[imported] > LEVEL[importer]
    ]
    assert upward == []


def test_a_module_named_in_a_string_is_an_import() -> None:
    tree = ast.parse('"""fastadv.cli is a part."""\nMODULE = "fastadv.cli.train"')
    assert list(_imported(tree)) == [(2, "fastadv.cli.train")]


def test_no_two_parts_need_each_other() -> None:
    assert _circles({a: {c for b, c in _edges() if a == b} for a in LEVEL}) == []


def test_no_two_modules_need_each_other() -> None:
    """But for the registry of kernels, whose table names the modules that need it."""
    edges = {
        module: {_home(name) for _, name in _imported(_tree(path), runs=True)}
        - {module}
        for module, path in _modules().items()
    }
    edges["fastadv.kernels.registry"].clear()
    assert "fastadv.runs.eventlog" in edges["fastadv.runs.directory"]
    assert "fastadv.models.create" in edges["fastadv.training.network"]  # by its stub
    assert _circles(edges) == []
    edges["fastadv.runs.launch"].add("fastadv.cli.train")
    assert _circles(edges) == ["fastadv.cli.train", "fastadv.runs.launch"]


def test_the_floors_of_data_point_down() -> None:
    """Its single modules, then what a set is, then file formats, then what uses them."""
    floors = {"sets": 1, "files": 2, "loading": 3, "opening": 3, "corruptions": 3}
    upward, found = [], 0
    for path in (p for p in SOURCES if _part(p) == "data" and p.name != "__init__.py"):
        own = floors.get(path.parent.name, 0)
        for line, name in _imported(_tree(path)):
            words = _home(name).split(".")
            if words[:2] == ["fastadv", "data"] and len(words) > 2:
                found += 1
                if floors.get(words[2], 0) > own:
                    upward.append(f"{path.name}:{line}: {name}")
    assert upward == []
    assert found > 50


def test_no_two_test_files_share_a_name() -> None:
    """Pytest imports them by name, and refuses the second where one run has both."""
    names = Counter(path.name for path in ROOT.glob("tests/**/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", ["torch", "numpy"])
def test_the_lowest_layer_needs_nothing(package: str) -> None:
    for path in SOURCES:
        if LEVEL.get(_part(path), 9) == 0:
            found = [n for _, n in _imported(_tree(path)) if n.split(".")[0] == package]
            assert found == [], path


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def _option(call: ast.Call, name: str) -> object:
    values = [k.value for k in call.keywords if k.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def _forbidden(path: Path) -> Iterator[str]:
    tree = _tree(path)
    for call, name in _calls(tree):
        here = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
        last = name.rsplit(".", 1)[-1]
        if name in ("eval", "exec", "compile", "__import__", "os.system"):
            yield here
        writes = name in ("pickle.dump", "pickle.dumps")  # which runs nothing
        pickles = ("pickle", "dill", "joblib", "marshal", "shelve")
        if name.split(".")[0] in pickles and not writes:
            yield here
        if last == "cuda" and isinstance(call.func, ast.Attribute):
            yield f"{here}: use .to(device)"
        if name == "torch.load" and _option(call, "weights_only") is not True:
            yield f"{here} without weights_only=True"
        inert = path.name == "safe_pickle.py"  # whose unpickler runs nothing
        if ("serialization._" in name or last == "Unpickler") and not inert:
            yield f"{here} outside of safe_pickle.py"
        if name == "np.load" and _option(call, "allow_pickle") is not False:
            yield f"{here} without allow_pickle=False"
        if name.startswith("yaml.") and last in ("load", "unsafe_load", "full_load"):
            yield here
        if _option(call, "shell") is True:
            yield f"{here} with a shell"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: assert (python -O drops it)"


def test_nothing_dangerous_is_called() -> None:
    assert [found for path in SOURCES for found in _forbidden(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "torch.serialization._legacy_load(stream, None, module)",
        "model.cuda()",
        "assert eps > 0",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run(words, shell=True)",
    ],
)
def test_what_is_forbidden_is_found(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text(f"def f():\n    {line}\n    model.eval()\n")
    assert len(list(_forbidden(path))) == 1


def test_code_is_ascii() -> None:
    suffixes = {".py", ".cpp", ".h", ".cu", ".cuh", ".toml", ".txt", ".html", ".css"}
    files = [
        path
        for folder in ("fastadv", "kernels", "csrc", "tests", "bench", ".")
        for path in ROOT.glob("*" if folder == "." else f"{folder}/**/*")
        if path.is_file() and (path.suffix in suffixes or path.name == "Makefile")
    ]
    assert len(files) > len(SOURCES)
    assert [str(p) for p in files if not p.read_bytes().isascii()] == []


def test_no_module_hides_a_library_it_uses() -> None:
    """fastadv/kernels/numba.py would be imported instead of numba from beside it."""
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert (
        names & {"triton", "numba", "torch", "numpy", "timm", "cuda", "tyro"} == set()
    )


def test_every_package_is_packed() -> None:
    """pyproject.toml lists packages by hand, because `kernels` lies elsewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("fastadv/**/__init__.py")
    }
    packed = project["tool"]["setuptools"]["packages"]
    assert sorted(packed) == sorted(found | {"fastadv.kernels"})
    for target in project["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    "name",
    [
        "threat",
        "errors",
        "models.architecture_names",
        "text_tables",
        "extensions",
        "data.counter",
        "progress",
    ],
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"fastadv.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
