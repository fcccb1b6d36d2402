"""Lower things know nothing of higher ones: who may import torch.distributed, Hydra and W&B, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PURE = {"box", "cluster", "config", "graph", "lower", "memory", "ops", "plan", "program", "schedule", "search",
        "simulator", "strategies"}
"""Nothing in these, nor in what they import, may know how a plan is run, configured or tracked."""
KNOW_HYDRA = {"parallel.launch.compose", "parallel.launch.hydra_app"}
"""The entry points' common part; they call it. `hydra_plugins/` has a launcher outside the library."""
KNOW_WANDB = {"parallel.results.tracker"}
KNOW_PROCESS_GROUPS = ("parallel.runtime", "parallel.launch.ranks")


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere, those under TYPE_CHECKING left out."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            found.add("torch.distributed")
        todo.extend(ast.iter_child_nodes(node))
    return found


def modules() -> dict[str, set[str]]:
    """Module name to what it imports, for the whole library."""
    result = {}
    for path in sorted((ROOT / "parallel").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = imports(path)
    return result


MODULES = modules()


def reach(name: str) -> set[str]:
    """All that a module imports, by way of the library's own modules, too."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for imported in MODULES[todo.pop()] - seen:
            seen.add(imported)
            if imported in MODULES:
                todo.append(imported)
    return seen


def known(imported: set[str], library: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for name in imported)


def top(name: str) -> str:
    return (name.split(".") + [""])[1]


def is_entry(name: str) -> bool:
    """Whether `python -m` runs it: it may compose a configuration, and nothing imports it."""
    return name.endswith(".__main__")


def test_the_library_was_found() -> None:
    assert {"parallel.plan", "parallel.graph", "parallel.box", "parallel.strategies", "parallel.ops"} <= set(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in PURE and not is_entry(name)])
def test_pure_modules_stay_pure(name: str) -> None:
    reached = reach(name)
    assert [library for library in ("torch.distributed", "hydra", "omegaconf", "wandb")
            if known(reached, library)] == []


@pytest.mark.parametrize("name", MODULES)
def test_only_the_tracker_knows_wandb_and_only_the_entry_knows_hydra(name: str) -> None:
    if name not in KNOW_WANDB:
        assert not known(MODULES[name], "wandb")
    if name not in KNOW_HYDRA:
        assert not known(MODULES[name], "hydra") and not known(MODULES[name], "omegaconf")


@pytest.mark.parametrize("name", MODULES)
def test_only_the_runtime_talks_to_process_groups(name: str) -> None:
    if not name.startswith(KNOW_PROCESS_GROUPS):
        assert not known(MODULES[name], "torch.distributed")


def test_nothing_imports_an_entry() -> None:
    assert [name for name in MODULES if any(is_entry(imported) for imported in MODULES[name])] == []


def test_nothing_needs_torchvision() -> None:
    assert [name for name in MODULES if known(MODULES[name], "torchvision")] == []


def test_the_reader_of_imports_reads(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("import torch\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wandb\n"
                      "def f():\n    from hydra import compose\n    torch.distributed.barrier()\n")
    found = imports(source)
    assert known(found, "hydra") and known(found, "torch.distributed") and not known(found, "wandb")
