"""A wheel works outside of the source tree: its configuration, its scripts, its launchers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.commands import ROOT, variables

SOURCES = (
    "parallel",
    "conf",
    "hydra_plugins",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


def call(*command: str | Path, folder: Path) -> str:
    """Run a command outside of the source tree and return its standard output."""
    environment = variables()
    del environment["PYTHONPATH"]
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scripts of an environment with the wheel, which shares our installed packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source, folder=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    )
    packages = [path for path in sys.path if path.endswith("site-packages")] or [
        sysconfig.get_path("purelib")
    ]
    (site / "packages.pth").write_text("\n".join(packages))
    call(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, folder=folder)
    return python.parent


@pytest.mark.slow
def test_the_scripts_of_a_wheel_train_sweep_and_compare(installed: Path, tmp_path: Path) -> None:
    path = call(installed / "python", "-c", "import parallel; print(parallel.__file__)", folder=tmp_path)
    assert ROOT not in Path(path.strip()).parents, "the test must not use the source tree"
    small = ("data=synthetic", "data.train_images=8", "data.val_images=4", "data.num_classes=10")
    small += ("trainer.batch_size=4", "trainer.epochs=1", "trainer.warmup_steps=0", "tracker=none")
    sweep = ("-m", "strategy=single,model_parallel_tensor", "workers=2", "hydra/launcher=torchrun", "sweep=s")
    call(installed / "parallel-train", *sweep, *small, folder=tmp_path)
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/s/*/record.json"))]
    assert [record["workers"] for record in records] == [2, 1]
    assert "model_parallel" in call(installed / "parallel-compare", "runs/s", folder=tmp_path)
    assert "--nproc-per-node" in call(installed / "parallel-torchrun", "--help", folder=tmp_path)
    assert "single" in call(
        installed / "parallel-simulate", "strategy=single", "cluster=dgx1", "workers=1", folder=tmp_path
    )


@pytest.mark.slow
def test_every_command_has_a_script(installed: Path, tmp_path: Path) -> None:
    commands = [path.stem for path in (ROOT / "parallel").glob("[!_]*.py")]
    assert sorted(path.name for path in installed.glob("parallel-*")) == sorted(
        f"parallel-{c}" for c in commands
    )
