"""Damaged and hostile files and arguments: every reader returns a valid value or raises `ValueError`
with one line, whatever it is given.

A value is valid if it survives what is done with it next: written and read again, compared, drawn.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from parallel.cli.compose import CONF, compose_config, compose_node, to_config
from parallel.cluster import read_cluster, write_cluster
from parallel.cluster.files import cluster_of
from parallel.config import one_line
from parallel.config.checks import NESTING
from parallel.plans import read_plan
from parallel.results.comparison import compare
from parallel.results.comparison_export import as_csv, as_json, comparison_values
from parallel.results.notes import notes
from parallel.results.record_files import EPOCHS, RECORD, read_record, write_record
from parallel.results.report.page import page
from parallel.results.report.validation import section
from parallel.results.validation import read_validation, write_validation
from tests.support.made_records import made_record
from tests.support.made_validations import row, validation
from tests.support.small_models import graph_of

DEEP: Any = 1
for _ in range(NESTING + 8):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**20, 2**40, 2**63, -(2**63), 10**300, 10**600),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e300, 1.7e308, math.inf, -math.inf, math.nan),
    *("", "x", "on", "1", "inf", "nan", "1e999", "0", "9" * 5000, "x" * 10**5, "\x1b[2J", "\udc80", "a\x00b"),
    *(
        "1e999 GB",
        "1e308 s",
        "0 B",
        "0 s",
        "-5 us",
        "nan s",
        "45 %",
        "1e-300 %",
        "5 us",
        "12 GB/s",
        "1 parsec",
    ),
    *("1 s [1 s, 1 s] of 0", "1 s [2 s, 1 s] of 3", "1e300 s [0 s, 1 s] of 3", "0 elements", "9e9 elements"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"x": 1},
        {"value": "1 s"},
        {"value": math.inf},
        [0, 0],
        [1, -1],
        DEEP,
    ),
]
KEYS = ["", "x", "on", "n", "workers", "name", "1", "source", "\x1b[2J", "1e9 elements", "4 kB"]

CONVOLUTION = "Conv2d kernel=3x3 stride=1x1"
MEASURED = {
    "name": "made",
    "nodes": 1,
    "workers_per_node": 2,
    "memory": {"value": "16 GB", "source": "data sheet"},
    "inside": {
        "shared": True,
        "latency": "20 us",
        "bandwidth": {"points": {"4 kB": "1 GB/s", "1 MB": "12 GB/s"}, "source": "measured"},
    },
    "between": None,
    "step_overhead": "1 ms",
    "overlap_slowdown": "5 %",
    "core_contention": {"workers": {1: "100 %", 2: "190 %"}, "source": "measured"},
    "data": {"per_image": "3 ms/image", "shared": True, "overlaps": False},
    "machine": {"device": "cpu: x", "workers": "2"},
    "compute": {
        "measured": {
            "memory_format": "channels_last",
            "source": "means",
            "ops": {
                "fp32": {
                    CONVOLUTION: {
                        "1x3x8x8 > 1x4x8x8, 108 parameters, 6912 multiply-adds": {
                            "forward": "41 ms [40 ms, 42 ms] of 12",
                            "backward": "83 ms [82 ms, 85 ms] of 12",
                        }
                    }
                }
            },
            "update": {"fp32": {"1000 elements": "20 us", "2000 elements": "30 us"}},
            "add": {"fp32": {"1000 elements": "20 us"}},
            "copy": {"fp32": {"1000 elements": "20 us"}},
        }
    },
}
PLAN = {
    "workers": 2,
    "micro_batches": 1,
    "scheme": "a",
    "pipeline": "1f1b",
    "update": "step",
    "ops": {"conv1": {"n": 2, "on": [0, 1]}, "fc3": {"c": 2, "on": [0, 1]}},
}
SHIPPED = [
    yaml.safe_load(path.read_text())["hardware"] for path in sorted((CONF / "cluster").glob("[!l]*.yaml"))
]
GRAPH = graph_of("tower")


def dumped(value: Any) -> bytes:
    """Return a value as YAML."""
    return yaml.safe_dump(value).encode(errors="replace")


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a value, and of the value itself."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from ((key, *path) for path in places(child))


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A copy of plain values with one or two of them replaced, removed, repeated or renamed."""
    hostile = st.sampled_from(VALUES).map(copy.deepcopy)
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            return draw(hostile)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if action == "replace":
            parent[path[-1]] = draw(hostile)
        elif isinstance(parent, list):
            parent[path[-1] :] = [] if action == "remove" else [parent[path[-1]]] * 2
        elif action == "add":
            parent[draw(st.sampled_from(KEYS))] = draw(hostile)
        else:
            old = parent.pop(path[-1])
            if action == "rename":
                parent[draw(st.sampled_from(KEYS))] = old
    return value


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file with some of them cut, replaced or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 40)))
        new = draw(
            st.sampled_from(
                [b"", b"\x00", b"\xff", b"{", b"}", b"[", b"]" * 50, b"&a", b"*a", b"!!bool ", b"- ", b"\n"]
            )
            | st.sampled_from(
                [b"inf", b"NaN", b"1e999", b"9" * 400, b"9" * 5000, b'"', b"'", b"\t", b"? ", b": ", b"<<: "]
            )
            | st.binary(max_size=8)
        )
        content = content[:start] + new + content[stop:]
    return content


def accepted(read: Callable[[], Any]) -> Any:
    """Return what `read` returns; None if it raises `ValueError` with a message of one line."""
    try:
        return read()
    except ValueError as error:
        said = one_line(error)
        assert said.isprintable() and len(said) < 5000
        return None


QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking, which takes minutes here; examples are small from the start."""
MANY = settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None, phases=QUICK)


@MANY
@given(altered(PLAN).map(lambda value: dumped(value)) | torn(yaml.safe_dump(PLAN).encode()))
def test_plans(content: bytes) -> None:
    plan = accepted(lambda: read_plan(content.decode(), GRAPH))
    if plan is not None:
        assert read_plan(str(plan), GRAPH) == plan


def check_cluster(read: Callable[[], Any]) -> None:
    cluster = accepted(read)
    if cluster is not None:
        assert read_cluster(write_cluster(cluster)) == cluster
        assert math.isfinite(cluster.inside.seconds(1e12)) and math.isfinite(cluster.step_s(1.0, [10**6]))


@MANY
@given(
    st.sampled_from([MEASURED, *SHIPPED]).flatmap(altered).map(lambda value: dumped(value))
    | torn(yaml.safe_dump(MEASURED).encode())
)
def test_cluster_files(content: bytes) -> None:
    check_cluster(lambda: read_cluster(content.decode()))


@MANY
@given(st.sampled_from([MEASURED, *SHIPPED]).flatmap(altered))
def test_clusters_in_the_configuration(value: Any) -> None:
    if isinstance(value, dict):
        check_cluster(lambda: cluster_of(value))


def check_run(run: Path) -> None:
    record = accepted(lambda: read_record(run))
    if record is not None:
        with TemporaryDirectory() as folder:
            write_record(Path(folder), record)
            again = read_record(Path(folder))
            assert repr(dataclasses.replace(again, directory=None)) == repr(
                dataclasses.replace(record, directory=None)
            )
        comparisons = compare([record, made_record(), made_record("ddp")])
        page(comparisons).encode(errors="backslashreplace")
        assert as_csv(comparison_values(comparisons)).replace("\n", "").isprintable()
        json.loads(as_json(comparison_values(comparisons)))
        for comparison in comparisons:
            notes(comparison)


def record_values() -> Any:
    with TemporaryDirectory() as folder:
        write_record(Path(folder), made_record("ddp"))
        return json.loads((Path(folder) / RECORD).read_bytes())


@MANY
@given(
    altered(record_values()).map(lambda value: json.dumps(value).encode())
    | torn(json.dumps(record_values()).encode())
)
def test_records(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        write_record(Path(folder), made_record("ddp"))
        (Path(folder) / RECORD).write_bytes(content)
        check_run(Path(folder))


CELLS = [
    "",
    "1",
    "2",
    "0",
    "-1",
    "0.5",
    "inf",
    "-inf",
    "nan",
    "1e308",
    "1e-320",
    "9" * 400,
    "9" * 5000,
    "x" * 10**6,
]
CELLS += ["true", '"', "\x00", "1_0", " 1", "٣", "1e999"]


@MANY
@given(st.data())
def test_epochs(data: st.DataObject) -> None:
    """The checksum of the altered file is correct, as if another program had written the record."""
    with TemporaryDirectory() as folder:
        run = Path(folder)
        write_record(run, made_record("ddp"))
        content = (run / EPOCHS).read_bytes()
        if data.draw(st.booleans()):
            rows = [line.split(",") for line in content.decode().splitlines()]
            for _ in range(data.draw(st.integers(1, 2))):
                row = data.draw(st.sampled_from(rows))
                row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(CELLS))
            content = "\n".join(map(",".join, rows)).encode()
        else:
            content = data.draw(torn(content) | st.just(b""))
        (run / EPOCHS).write_bytes(content)
        values = json.loads((run / RECORD).read_bytes())
        values["epochs"] = {
            "count": data.draw(st.sampled_from([3, 3, 2, 4, 0])),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        (run / RECORD).write_text(json.dumps(values))
        check_run(run)


def validation_values() -> Any:
    return json.loads(json.dumps(dataclasses.asdict(validation(row(1.0, 1.0)))))


@MANY
@given(
    altered(validation_values()).map(lambda value: json.dumps(value).encode())
    | torn(json.dumps(validation_values()).encode())
)
def test_validations(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "validation-1.json"
        path.write_bytes(content)
        validation = accepted(lambda: read_validation(path))
        if validation is not None:
            page([], [section(validation)])
            write_validation(path, validation)
            assert read_validation(path) == validation


@pytest.fixture(scope="module")
def composed() -> Any:
    node = OmegaConf.to_container(compose_node(["model=vgg16", "data=imagenet", "strategy=model_parallel"]))
    assert isinstance(node, dict)
    del node["hydra"]
    return node


def check_config(read: Callable[[], Any]) -> None:
    config = accepted(read)
    if config is not None:
        json.dumps(dataclasses.asdict(config), allow_nan=False)


@MANY
@given(st.data())
def test_configurations(composed: Any, data: st.DataObject) -> None:
    values = data.draw(altered(composed))
    if isinstance(values, dict):
        check_config(lambda: to_config(OmegaConf.create(values)))


def test_a_group_that_is_a_list(composed: Any) -> None:
    with pytest.raises(ValueError, match=r"^trainer=\[\] must be a mapping of options$"):
        to_config(OmegaConf.create({**composed, "trainer": []}))


TEXTS = [
    "inf",
    "-inf",
    "nan",
    "1e999",
    "1e308",
    "-1",
    "0",
    "9" * 400,
    "9" * 5000,
    "[1]",
    "[]",
    "{a: 1}",
    "null",
]
TEXTS += [
    "x",
    "true",
    "''",
    "0x10",
    "1_0",
    "[" * 500 + "]" * 500,
    "${x}",
    "\x1b[2J",
    "\udc80",
    "a=b",
    "[inf]",
    "1,2",
]


@settings(MANY, max_examples=30)
@given(st.data())
def test_overrides(composed: Any, data: st.DataObject) -> None:
    keys = [".".join(map(str, path)) for path in places(composed) if path] + [
        "cluster.hardware.nodes",
        "experiment",
    ]
    key, text = data.draw(st.sampled_from(keys)), data.draw(st.sampled_from(TEXTS))
    before = data.draw(st.sampled_from(["", "", "", "+", "++", "~"]))
    check_config(lambda: compose_config(["model=vgg16", "data=imagenet", f"{before}{key}={text}"]))
