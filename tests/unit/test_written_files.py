"""Files that users keep are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel.calibration.calibration_file import write_calibration
from parallel.cluster import Roofline
from parallel.plans import Layout, make_plan
from parallel.results.json_files import write_atomically
from parallel.search.kept_plans import KeptPlan, save
from tests.support.made_clusters import made_cluster
from tests.support.small_models import graph_of

COMPUTE = Roofline(peak={"fp32": 1e9}, efficiency={"Conv2d": 0.5}, memory_bandwidth=1e9, op_overhead_s=1e-6)
WRITERS: dict[str, Callable[[Path], None]] = {
    "json": lambda path: write_atomically(path, b"{}"),
    "calibration": lambda path: write_calibration(made_cluster(compute=COMPUTE), path),
    "plan": lambda path: save(
        KeptPlan(
            make_plan(graph_of("tower"), 1, {"conv1": Layout(on=(0,))}),
            "1",
            "2",
            "exact",
            0,
            0.1,
            0.1,
            "optimal",
        ),
        path,
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_file_before_and_nothing_else(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() != "before"
