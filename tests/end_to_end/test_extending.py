"""The files and lines of docs/extending.md are all that a new strategy, op, model, data set and cluster need; those of
docs/your_own_strategy.md, all that a strategy needs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import ROOT, Run

PAGE = ROOT / "docs" / "extending.md"
TUTORIAL = ROOT / "docs" / "your_own_strategy.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"`((?:parallel|conf)/[\w/]+\.(?:py|yaml))`:\s*\Z")
"""The text that ends before the block of a new file."""
TABLE = re.compile(r"`([A-Z_]+)` of `(parallel/[\w/]+\.py)`[^`]*:\s*\Z")
"""The text that ends before the block of an import and an entry."""


@dataclass(frozen=True)
class Page:
    """The code blocks of the page."""

    files: dict[str, str]
    """Contents of new files by path."""
    entries: dict[tuple[str, str], tuple[str, str]]
    """Import and entry by file and table."""
    commands: list[list[str]]
    """Arguments of `python -m`."""


def read_page(path: Path = PAGE) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page({}, {}, [])
    for block in BLOCK.finditer(text):
        before, code = text[: block.start()], block[2]
        if block[1] == "sh":
            lines = [shlex.split(line) for line in code.splitlines()]
            assert all(words[:2] == ["python", "-m"] for words in lines)
            page.commands.extend(words[2:] for words in lines)
        elif table := TABLE.search(before):
            imported, entry = code.splitlines()
            page.entries[table[2], table[1]] = imported, entry
        else:
            file = FILE.search(before)
            assert file is not None, f"the page does not say where this belongs:\n{code}"
            page.files[file[1]] = code
    return page


def add(page: Page, folder: Path) -> None:
    """Add the page's files to the copy of the project in `folder`, and to each table an import and an entry."""
    for path, code in page.files.items():
        assert not (folder / path).exists()
        (folder / path).write_text(code, encoding="utf-8")
    for (path, table), (imported, entry) in page.entries.items():
        lines = (folder / path).read_text(encoding="utf-8").splitlines()
        opening = next(i for i, line in enumerate(lines) if line.startswith(f"{table}: "))
        lines.insert(lines.index("}", opening), f"    {entry}")
        lines.insert(
            max(i for i, line in enumerate(lines) if line.startswith("from parallel.")) + 1, imported
        )
        (folder / path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pictures(folder: Path) -> None:
    """Write eight dark and eight light images, half of them for validation."""
    folder.mkdir()
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(16):
        name, split = ("dark", "light")[number % 2], "train" if number < 8 else "val"
        pixels = np.full((20, 24, 3), 40 + 160 * (number % 2) + number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lists[split].append(f"{number}.png {name}")
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")


def copy_with(page: Page, folder: Path) -> Page:
    """Make `folder` a copy of the project with everything that the page adds."""
    for name in ("parallel", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    add(page, folder)
    return page


@pytest.fixture
def extended(tmp_path: Path) -> Page:
    """Make the current folder of commands a copy of the project with everything that the page adds."""
    page = copy_with(read_page(), tmp_path)
    write_pictures(tmp_path / "pictures")
    return page


def test_the_page_is_one_file_and_one_entry_each() -> None:
    page = read_page()
    assert [Path(path).parent.as_posix() for path in page.files] == [
        "parallel/strategies",
        "parallel/graph/ops",
        "parallel/models",
        "parallel/data",
        "conf/cluster",
    ]
    assert [(Path(path).parent.as_posix(), table) for path, table in page.entries] == [
        ("parallel/strategies", "STRATEGIES"),
        ("parallel/graph/ops", "RULES"),
        ("parallel/models", "MODELS"),
        ("parallel/data", "DATA_SETS"),
    ]


def test_the_commands_of_the_page_run(extended: Page, run: Run, tmp_path: Path) -> None:
    said = {}
    for module, *arguments in extended.commands:
        # Processes of the fork server have imported this project already; these must import the copy.
        done = run(
            module,
            *arguments,
            *(["tracker=none"] if module == "parallel.train" else []),
            environment={"PYTHONPATH": str(tmp_path)},
            real=True,
        )
        assert done.returncode == 0, f"{module}\n{done.stdout}\n{done.stderr}"
        said[module] = done.stdout
    assert list(said) == ["parallel.verify", "parallel.train", "parallel.simulate"]
    assert "\nspatial: " in said["parallel.verify"] and "  equal: " in said["parallel.verify"]
    (record,) = (json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("runs/*/record.json"))
    assert (record["strategy"], record["workload"]["model"]) == ("spatial", "tiny")
    assert (
        record["workload"]["data"],
        record["workload"]["num_classes"],
        record["workload"]["train_images"],
    ) == ("listed", 2, 8)
    assert "cluster workstation," in " ".join(said["parallel.simulate"].split())


SMALL = ("data=synthetic", "data.num_classes=10", "data.train_images=8", "data.val_images=4", "tracker=none")
SMALL += ("trainer.batch_size=4", "trainer.epochs=1", "trainer.warmup_steps=0")


@pytest.mark.slow
def test_the_tutorial_is_all_that_a_strategy_needs(run: Run, tmp_path: Path) -> None:
    page = copy_with(read_page(TUTORIAL), tmp_path)
    (code,) = page.files.values()
    assert sum(bool(line) for line in code.splitlines()) <= 15
    said = {}
    for module, *arguments in page.commands:
        small = {"parallel.train": SMALL, "parallel.verify": ("trainer.batch_size=4",)}.get(module, ())
        here = {"PYTHONPATH": str(tmp_path)}
        done = run(module, *arguments, *small, environment=here, real=True)
        assert done.returncode == 0, f"{module}\n{done.stdout}\n{done.stderr}"
        said[module] = done.stdout
    assert "  equal: " in said["parallel.verify"]
    assert "head_on_one" in said["parallel.compare"] and "data_parallel" in said["parallel.compare"]
