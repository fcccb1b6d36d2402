"""Records on disk: complete or absent, read as written, rejected with the file's name if
damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parallel.results import environment
from parallel.results.environment import collect_environment
from parallel.results.old_formats import DEFAULTS, NEW_COLUMNS
from parallel.results.record_files import (
    EPOCHS,
    PART,
    RECORD,
    NotWritten,
    RecordWriter,
    find_records,
    read_record,
    unfinished_runs,
    write_record,
)
from parallel.results.records import FORMAT, Epoch
from parallel.results.stragglers import Straggler
from tests.support.made_records import made_epochs, made_hosts, made_record


def test_round_trip(tmp_path: Path) -> None:
    record = made_record("one_weird_trick", (5.1, 5.0, 1 / 3), scheme="a", sweep=None)
    write_record(tmp_path / "run", record)
    assert read_record(tmp_path / "run") == record
    assert read_record(tmp_path / "run").directory == str(tmp_path / "run")


def test_hosts(tmp_path: Path) -> None:
    record = made_record(workers=3, hosts=made_hosts(2, 1, bandwidth=1e8))
    write_record(tmp_path, record)
    assert read_record(tmp_path).hosts == record.hosts
    data = json.loads((tmp_path / RECORD).read_text())
    del data["hosts"]
    (tmp_path / RECORD).write_text(json.dumps(data))
    assert read_record(tmp_path).hosts == (), "of an earlier version"
    with pytest.raises(ValueError, match=r"hosts=\[0, 1\] must have the workers 0 to 2 in order"):
        made_record(workers=3, hosts=made_hosts(2))


def test_stragglers_are_read_as_written_or_unknown(tmp_path: Path) -> None:
    slow = Straggler(worker=1, host="n2", cause="loading", lost_s=0.02, share=0.1, epochs=(1, 3))
    for name, stragglers in (("some", (slow,)), ("none", ())):
        write_record(tmp_path / name, made_record("ddp", stragglers=stragglers))
        assert read_record(tmp_path / name).stragglers == stragglers
    file = tmp_path / "some" / RECORD
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"workers": 1}))
    with pytest.raises(ValueError, match="stragglers.worker=1 must be at least 0 and at most 0"):
        read_record(file)
    del values["stragglers"]  # as written before there was the field
    file.write_text(json.dumps(values))
    assert read_record(file).stragglers is None


def test_unknown_and_diverged_values_survive(tmp_path: Path) -> None:
    record = made_record(epochs=(Epoch(epoch=1, seconds=2.0, train_loss=float("nan"), bytes_sent=0),))
    write_record(tmp_path, record)
    epoch = read_record(tmp_path).epochs[0]
    assert epoch.val_top1 is None and epoch.bytes_sent == 0
    assert epoch.train_loss is not None and epoch.train_loss != epoch.train_loss


def test_epochs_can_be_watched_and_the_record_comes_last(tmp_path: Path) -> None:
    record = made_record()
    with RecordWriter(tmp_path) as writer:
        for count, epoch in enumerate(record.epochs, start=1):
            writer.append(epoch)
            assert len((tmp_path / PART).read_text().splitlines()) == 1 + count
            assert not (tmp_path / RECORD).exists() and not (tmp_path / EPOCHS).exists()
        writer.finish(record)
    assert sorted(p.name for p in tmp_path.iterdir()) == [EPOCHS, RECORD]


def test_an_interrupted_run_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "run") as writer:
        writer.append(made_epochs([1.0])[0])
        raise KeyboardInterrupt
    assert unfinished_runs([tmp_path]) == [tmp_path / "run"]
    with pytest.raises(ValueError, match=r"only unfinished runs \(1\)"):
        find_records([tmp_path])
    write_record(tmp_path / "run", made_record())  # the run started again
    assert unfinished_runs([tmp_path]) == []
    assert len(find_records([tmp_path])[0]) == 1


def test_a_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    write_record(tmp_path, made_record())
    with pytest.raises(ValueError, match="already holds a finished run"):
        RecordWriter(tmp_path)


def test_finish_refuses_other_epochs(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.append(made_epochs([1.0])[0])
        with pytest.raises(ValueError, match="must be the 1 epochs"):
            writer.finish(made_record(seconds=(1.0, 2.0)))
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part.write_text("mixed"),
        lambda part: part.write_bytes(part.read_bytes() + b"2,1.5\n"),
        lambda part: part.unlink(),
    ],
)
def test_finish_refuses_rows_that_another_program_has_changed(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    record = made_record()
    with RecordWriter(tmp_path) as writer:
        for epoch in record.epochs:
            writer.append(epoch)
        change(tmp_path / PART)
        with pytest.raises(ValueError, match="epochs.csv.part must hold the epochs of this run"):
            writer.finish(record)
    assert not (tmp_path / RECORD).exists()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let files grow to `size` bytes, as on a disk that becomes full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_no_finished_epoch(tmp_path: Path) -> None:
    record = made_record(seconds=(1.0, 2.0, 3.0))
    with RecordWriter(tmp_path) as writer:
        for epoch in record.epochs[:2]:
            writer.append(epoch)
        whole = (tmp_path / PART).read_bytes()
        with (
            room_for(len(whole) + 5),
            pytest.raises(
                NotWritten,
                match=r"epochs.csv.part can't be written: .*the 2 epochs before are kept in epochs.csv.part",
            ),
        ):
            writer.append(record.epochs[2])
        assert (tmp_path / PART).read_bytes() == whole and writer.epochs == record.epochs[:2]
    assert unfinished_runs([tmp_path]) == [tmp_path]
    write_record(tmp_path, record)  # the run started again
    assert read_record(tmp_path).epochs == record.epochs


def test_a_disk_that_is_full_at_the_end_loses_no_finished_epoch(tmp_path: Path) -> None:
    record = made_record(seconds=(1.0, 2.0))
    with RecordWriter(tmp_path) as writer:
        for epoch in record.epochs:
            writer.append(epoch)
        whole = (tmp_path / PART).read_bytes()
        with (
            room_for(len(whole) + 5),
            pytest.raises(
                NotWritten,
                match=r"record.json can't be written: .*the 2 epochs before are kept in epochs.csv.part",
            ),
        ):
            writer.finish(record)
    assert [path.name for path in tmp_path.iterdir()] == [PART], "nor is half a record.json left"
    assert (tmp_path / PART).read_bytes() == whole
    write_record(tmp_path, record)
    assert read_record(tmp_path).epochs == record.epochs


def _cut_csv(run: Path) -> None:
    (run / EPOCHS).write_text("".join((run / EPOCHS).read_text().splitlines(keepends=True)[:-1]))


def _cut_in_line(run: Path) -> None:
    (run / EPOCHS).write_bytes((run / EPOCHS).read_bytes()[:-9])


def _cut_json(run: Path) -> None:
    (run / RECORD).write_bytes((run / RECORD).read_bytes()[:200])


def _change_json(**changes: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / RECORD).write_text(json.dumps({**json.loads((run / RECORD).read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (_cut_csv, EPOCHS, "truncated: 2 epochs, but record.json says 3"),
        (_cut_in_line, EPOCHS, "altered or truncated"),
        (lambda run: (run / EPOCHS).unlink(), EPOCHS, "does not exist"),
        (_cut_json, RECORD, "truncated or not JSON"),
        (lambda run: (run / RECORD).write_text("[]"), RECORD, r"content=\[\] must be a mapping"),
        (_change_json(format=99), RECORD, "format=99 must be 1 or 2"),
        (_change_json(workers="two"), RECORD, "workers='two' must be a whole number"),
        (_change_json(workers=True), RECORD, "workers=True must be a whole number"),
        (_change_json(workers=0), RECORD, "workers=0 must be at least 1"),
        (_change_json(surprise=1), RECORD, "record has unknown surprise; its keys are format, name, "),
        (_change_json(workload={}), RECORD, "workload lacks batch_size, data, image_size"),
        (_change_json(directory="elsewhere"), RECORD, "directory=elsewhere is not a field"),
        (_change_json(epochs=3), RECORD, "epochs=3 must be a mapping"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], file: str, said: str) -> None:
    write_record(tmp_path / "run", made_record())
    damage(tmp_path / "run")
    with pytest.raises(ValueError, match=said) as caught:
        find_records([tmp_path])
    assert str(tmp_path / "run" / file) in str(caught.value)


def test_format_1_is_read(tmp_path: Path) -> None:
    """Records had neither `label` nor `baseline`, and the configuration had the options of all
    strategies."""
    options = {**DEFAULTS, "name": "model_parallel", "scheme": "layers", "micro_batches": 4, "path": None}
    for strategy, scheme, workers, path, label, baseline in (
        ("model_parallel", "layers", 2, None, "model_parallel layers micro_batches=4", False),
        ("single", None, 1, None, "single micro_batches=4", True),
        ("from_file", None, 2, "plan.yaml", "from_file micro_batches=4 plan a27fa2ba", False),
    ):
        record = made_record(strategy, scheme=scheme, workers=workers, plan="a plan")
        write_record(tmp_path / strategy, record)
        file = tmp_path / strategy / RECORD
        values = json.loads(file.read_text())
        del values["label"], values["baseline"]
        values["config"]["strategy"] = options | {"path": path}
        file.write_text(json.dumps({**values, "format": 1}))
        _remove_new_columns(tmp_path / strategy)
        found = read_record(file)
        assert (found.label, found.baseline, found.format) == (label, baseline, FORMAT)


def test_format_2_is_read(tmp_path: Path) -> None:
    """Records had no `attempts`, and epochs neither `checkpoint_s` nor `timed`."""
    record = made_record()
    write_record(tmp_path, record)
    values = json.loads((tmp_path / RECORD).read_text())
    del values["attempts"]
    (tmp_path / RECORD).write_text(json.dumps({**values, "format": 2}))
    with pytest.raises(ValueError, match="columns="):
        read_record(tmp_path)
    _remove_new_columns(tmp_path)
    epochs = tuple(dataclasses.replace(epoch, checkpoint_s=None) for epoch in record.epochs)
    assert read_record(tmp_path) == dataclasses.replace(record, epochs=epochs)


def _remove_new_columns(run: Path) -> None:
    rows = [line.split(",")[: -len(NEW_COLUMNS)] for line in (run / EPOCHS).read_text().splitlines()]
    content = "".join(",".join(row) + "\n" for row in rows).encode()
    (run / EPOCHS).write_bytes(content)
    _change_json(epochs={"count": len(rows) - 1, "sha256": hashlib.sha256(content).hexdigest()})(run)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("fast", "seconds='fast' must be a number"),
        ("", "seconds='' must be"),
        ("-1.0", "seconds=-1.0 must be at least 1e-09"),
    ],
)
def test_bad_cells_are_named(tmp_path: Path, cell: str, said: str) -> None:
    """The checksum of the altered file is correct, as if another program had written the record."""
    write_record(tmp_path, made_record(seconds=(1.5,)))
    csv = (tmp_path / EPOCHS).read_text().replace("1,1.5,", f"1,{cell},").encode()
    (tmp_path / EPOCHS).write_bytes(csv)
    _change_json(epochs={"count": 1, "sha256": hashlib.sha256(csv).hexdigest()})(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path / EPOCHS}: {said}"):
        read_record(tmp_path)


def test_find_records(tmp_path: Path) -> None:
    write_record(tmp_path / "sweep" / "b", made_record("ddp", started="2026-01-01T00:00:00Z"))
    write_record(tmp_path / "sweep" / "a", made_record(started="2026-01-02T00:00:00Z"))
    found, errors = find_records([tmp_path, tmp_path / "sweep", tmp_path / "sweep" / "a" / RECORD])
    assert errors == []
    assert [record.strategy for record in found] == ["ddp", "single"]
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_records([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no record.json"):
        find_records([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 0}, "epoch=0"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"val_top1": 94.0}, "val_top1=94.0 must be a fraction"),
    ],
)
def test_epoch_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(made_epochs([1.0])[0], **changes)


def test_epochs_count_from_one_without_a_gap() -> None:
    with pytest.raises(ValueError, match="without a gap"):
        made_record(epochs=made_epochs([1.0, 2.0])[1:])


@pytest.mark.parametrize("emulated", [{}, {"hosts": "2"}, {"hosts": 0}, {"hosts": 2.5}])
def test_an_emulated_cluster_has_hosts(emulated: dict[str, Any]) -> None:
    made_record("ddp", environment={"emulated": {"hosts": 2, "rate": "1gbit"}})
    with pytest.raises(ValueError, match="hosts"):
        made_record("ddp", environment={"emulated": emulated})


def test_environment_names_what_matters() -> None:
    env = collect_environment(["Some GPU"])
    assert env["gpus"] == ["Some GPU"] and env["cpu_count"] >= 1 and env["python"].startswith("3.")
    assert set(env) >= {"host", "os", "cpu", "torch", "numpy", "hydra", "wandb", "git_commit", "git_dirty"}
    json.dumps(env, allow_nan=False)


def test_environment_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    # An untracked file in a repository, like an installed package in a project's environment.
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    env = collect_environment()
    assert env["git_commit"] is None and env["git_dirty"] is None


def test_reading_records_is_quick_to_start() -> None:
    """Neither torch nor wandb is imported: each takes longer to load than the whole comparison."""
    code = "import sys, parallel.compare; print(sorted({'torch', 'wandb', 'hydra', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
