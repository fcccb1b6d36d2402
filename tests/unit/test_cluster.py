"""Clusters: links, units, files, errors, growth; roofline times computed by hand."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parallel.cli.compose import CONF, compose_config
from parallel.cluster import (
    AllReduce,
    Cluster,
    Link,
    Measured,
    Roofline,
    cluster_of,
    open_cluster,
    read_cluster,
    write_cluster,
)
from parallel.cluster.machine import (
    calibration_path,
    fingerprint_of,
    machine_of,
    node_workers_of,
    on_same_nodes,
)
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS, Curve, Table, Timing
from parallel.cluster.units import UNITS, quantity, text
from parallel.config import ClusterConfig
from parallel.graph import whole_part
from parallel.graph.configured import model_graph
from parallel.plans import Layout
from parallel.results.environment import EMULATED
from parallel.simulator import CostModel
from tests.support.small_models import graph_of

SHIPPED = sorted(path.stem for path in (CONF / "cluster").glob("*.yaml") if path.stem != "local")
ROOFLINE = Roofline(
    peak={"fp32": 1e12, "bf16": 4e12}, efficiency={"Conv2d": 0.5}, memory_bandwidth=1e11, op_overhead_s=1e-6
)


def made(**changes: Any) -> Cluster:
    values: dict[str, Any] = {
        "name": "made",
        "nodes": 2,
        "workers_per_node": 4,
        "inside": Link(1e-5, ((1.0, 1e9),)),
        "between": Link(2e-5, ((4e3, 1e8), (1e6, 1e9)), shared=True),
        "memory_bytes": 16_000_000_000,
        "compute": ROOFLINE,
        "sources": {
            "memory": "a sheet",
            "between.bandwidth": "measured",
            "compute.roofline.peak.fp32": "a sheet: of 2020",
        },
    }
    return Cluster(**{**values, **changes})


def written(**changes: Any) -> dict[str, Any]:
    """Return the mapping of a small cluster file with changed keys such as `inside.latency`; ABSENT
    removes one."""
    data: dict[str, Any] = yaml.safe_load(write_cluster(made(sources={})))
    for path, value in changes.items():
        *into, last = path.split("__")
        inner = data
        for key in into:
            inner = inner[key]
        if value is ABSENT:
            del inner[last]
        else:
            inner[last] = value
    return data


ABSENT = object()


class TestLink:
    def test_seconds(self) -> None:
        link = Link(1e-3, ((1e3, 1e6), (1e6, 1e8)))
        assert link.seconds(0) == 0.0
        assert link.seconds(100) == pytest.approx(1e-3 + 100 / 1e6)
        assert link.seconds(1e9) == pytest.approx(1e-3 + 1e9 / 1e8)
        # In the middle of the points in log(bytes), the bandwidth is their geometric mean.
        assert link.seconds(math.sqrt(1e3 * 1e6)) == pytest.approx(1e-3 + math.sqrt(1e9) / 1e7)

    @given(
        st.lists(
            st.tuples(st.floats(1, 1e9), st.floats(1e-6, 10)),
            min_size=1,
            max_size=6,
            unique_by=lambda point: point[0],
        ),
        st.lists(st.floats(0.5, 1e10), min_size=2, max_size=8),
    )
    def test_never_falls(self, points: list[tuple[float, float]], sizes: list[float]) -> None:
        times = sorted(seconds for _, seconds in points)
        link = Link(
            0.0, tuple((size, size / t) for size, t in zip(sorted(s for s, _ in points), times, strict=True))
        )
        found = [link.seconds(size) for size in sorted(sizes)]
        assert all(a <= b * (1 + 1e-9) for a, b in zip(found, found[1:], strict=False))

    @pytest.mark.parametrize(
        "latency, points, words",
        [
            (-1.0, ((1.0, 1.0),), "latency_s=-1.0"),
            (0.0, (), "must have a point"),
            (0.0, ((1.0, 0.0),), "from 0.001 to"),
            (0.0, ((2.0, 1.0), (1.0, 1.0)), "must rise"),
            (math.inf, ((1.0, 1.0),), "latency_s=inf must be at least 0 and at most"),
            (0.0, ((1.0, 1.0), (2.0, 9.0)), "faster than a smaller one"),
        ],
    )
    def test_refusals(self, latency: float, points: tuple[tuple[float, float], ...], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Link(latency, points)


class TestUnits:
    @given(st.floats(1e-15, 1e18), st.sampled_from(sorted(UNITS)))
    def test_text_keeps_the_number(self, value: float, kind: str) -> None:
        assert quantity(text(value, kind), kind, "x") == value

    @pytest.mark.parametrize(
        "value, kind, base",
        [
            ("5 us", "time", 5e-6),
            ("5µs", "time", 5e-6),
            ("1 Gbit/s", "bandwidth", 1.25e8),
            ("45 %", "share", 0.45),
            ("18.7 TFLOP/s", "speed", 18.7e12),
            ("16 GB", "size", 16e9),
            ("1 GiB", "size", 2.0**30),
            ("2.8 ms/image", "time per image", 2.8e-3),
            ("0 s", "time", 0.0),
            ("1e3 B", "size", 1000.0),
        ],
    )
    def test_reads(self, value: str, kind: str, base: float) -> None:
        assert quantity(value, kind, "x") == base

    @pytest.mark.parametrize(
        "value, words",
        [
            (5, "has no unit"),
            ("5", "has no unit"),
            (None, "is missing"),
            ("-5 us", "must not be negative"),
            ("5 GB", "has the unit GB; its units are s, ms"),
            ("soon", "is not a number with a unit"),
            (True, "is not a number"),
        ],
    )
    def test_refuses(self, value: object, words: str) -> None:
        with pytest.raises(ValueError, match=f"inside.latency={value}.*{words}"):
            quantity(value, "time", "inside.latency")


class TestCluster:
    def test_nodes(self) -> None:
        cluster = made()
        assert cluster.workers == 8
        assert [cluster.node_of(worker) for worker in (0, 3, 4, 7)] == [0, 0, 1, 1]

    def test_loading(self) -> None:
        each = made(data_s_per_image=0.01)
        assert each.data_s([10, 20, 0, 0, 5]) == pytest.approx(0.2)
        shared = made(data_s_per_image=0.01, data_shared=True)
        assert shared.data_s([10, 20, 0, 0, 5]) == pytest.approx(0.3), (
            "node 0 loads 30 images, one after the other"
        )
        assert each.step_s(1.0, [20]) == pytest.approx(1.2)
        over = made(data_s_per_image=0.01, data_overlaps=True, step_overhead_s=0.1)
        assert over.step_s(1.0, [20]) == pytest.approx(1.1) and over.step_s(1.0, [200]) == pytest.approx(2.0)

    def test_grows_by_nodes(self) -> None:
        assert made().resized(9).nodes == 3
        assert made().resized(2).nodes == 1, "fewer workers are put on fewer nodes"
        slow = made(nodes=1, workers_per_node=2, speeds=(1.0, 0.5))
        assert slow.resized(1) is slow
        with pytest.raises(ValueError, match="cannot grow because its nodes or workers differ"):
            slow.resized(3)
        with pytest.raises(
            ValueError, match="workers=9 is more than the 4 of cluster made.*no link `between`"
        ):
            made(nodes=1, between=None).resized(9)

    def test_a_calibrated_one_does_not_grow(self) -> None:
        cluster = made(machine={"cores": "2"})
        assert cluster.resized(2).nodes == 2
        with pytest.raises(
            ValueError, match="workers=9 is more than the 8 that cluster made was calibrated with"
        ):
            cluster.resized(9)

    def test_fingerprint(self) -> None:
        assert made().fingerprint == made().fingerprint != made(nodes=3).fingerprint
        machine = {"cores": "2"}
        assert (
            made(machine=machine).fingerprint
            == made(machine=machine, nodes=3).fingerprint
            == fingerprint_of(machine)
        ), "of the machine alone"

    def test_digest(self) -> None:
        machine = {"cores": "2"}
        cluster = made(machine=machine)
        assert cluster.digest == made(machine=machine).digest
        changes: list[dict[str, Any]] = [
            {"nodes": 3},
            {"speeds": (1.0,) * 7 + (0.5,)},
            {"compute": Roofline({"fp32": 2e9}, {}, 1e9, 0.0)},
            {"all_reduce": AllReduce(Link(0.0, ((1.0, 1e9),)), 0.5)},
            {"collectives": True},
        ]
        digests = {dataclasses.replace(cluster, **change).digest for change in changes}
        assert len(digests - {cluster.digest}) == len(changes)

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"nodes": 0}, "nodes=0"),
            ({"between": None}, "between=None must be given"),
            ({"overlap_slowdown": 1.5}, "overlap_slowdown=1.5"),
            ({"data_s_per_image": -1.0}, "data_s_per_image=-1.0"),
            ({"memory_bytes": 0}, "memory_bytes=0"),
        ],
    )
    def test_refusals(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            made(**changes)


class TestRoofline:
    """A convolution by hand: 1 sample, conv1 of the small tower, 3×17×17 → 7×9×9, kernel 5,
    fp32."""

    op = graph_of("tower")["conv1"]
    part = whole_part(op, 1)
    multiply_adds, inputs, outputs, parameters = 7 * 81 * 75, 3 * 289, 7 * 81, 7 * 75 + 7

    def test_bound_by_memory(self) -> None:
        nbytes = 4 * (self.inputs + self.outputs + self.parameters)
        slow = dataclasses.replace(ROOFLINE, memory_bandwidth=1e10)
        assert slow.forward_s(self.op, self.part, "fp32") == pytest.approx(nbytes / 1e10 + 1e-6)

    def test_bound_by_arithmetic(self) -> None:
        fast = dataclasses.replace(ROOFLINE, memory_bandwidth=1e15)
        once = 2 * self.multiply_adds / 0.5e12 + 1e-6
        assert fast.forward_s(self.op, self.part, "fp32") == pytest.approx(once)
        assert fast.backward_s(self.op, self.part, "fp32", True) == pytest.approx(2 * once)
        assert fast.backward_s(self.op, self.part, "fp32", False) == pytest.approx(once)

    def test_updates(self) -> None:
        assert ROOFLINE.update_s(1000, "fp32") == pytest.approx(5 * 4000 / 1e11 + 1e-6)
        assert ROOFLINE.update_s(0, "fp32") == 0.0
        assert ROOFLINE.add_s(1000, "fp32") == pytest.approx(3 * 4000 / 1e11 + 1e-6)
        assert ROOFLINE.copy_s(1000, "bf16") == pytest.approx(2 * 2000 / 1e11 + 1e-6)

    def test_without_weights_there_is_one_backward_pass(self) -> None:
        relu = graph_of("tower")["relu1"]
        part = whole_part(relu, 1)
        assert ROOFLINE.backward_s(relu, part, "fp32", True) == pytest.approx(4 * 3 * 567 / 1e11 + 1e-6)
        assert ROOFLINE.backward_s(relu, part, "fp32", False) == 0.0

    def test_a_precision_without_a_peak(self) -> None:
        with pytest.raises(
            ValueError, match="trainer.precision=fp64 has no peak in this cluster; it has fp32, bf16"
        ):
            ROOFLINE.forward_s(self.op, self.part, "fp64")

    def test_what_does_nothing_costs_nothing(self) -> None:
        pool = graph_of("tower")["avgpool"]
        assert ROOFLINE.forward_s(pool, whole_part(pool, 4), "fp32") == 0.0


class TestFiles:
    def test_round_trip(self) -> None:
        for cluster in (made(), made(nodes=1, between=None, sources={}), made(data_shared=True)):
            again = read_cluster(write_cluster(cluster))
            assert again == cluster and again.fingerprint == cluster.fingerprint

    def test_round_trip_of_core_contention(self) -> None:
        cluster = made(
            workers_per_node=3, core_contention=(0.975, 1.0, 1.5), sources={"core_contention": "measured"}
        )
        assert read_cluster(write_cluster(cluster)) == cluster
        assert read_cluster(write_cluster(cluster)).sources == cluster.sources
        assert [cluster.contention_factor(count) for count in (0.5, 1, 2.5, 3, 9)] == [
            0.975,
            0.975,
            1.25,
            1.5,
            1.5,
        ]

    @pytest.mark.parametrize(
        "workers, words",
        [
            ({1: "100 %"}, "workers_per_node=3 values"),
            ({0: "100 %"}, "must be counts from 1 on"),
            ({1: "100 %", 2: "90 %", 3: "100 %"}, "never fall"),
            ({1: 1, 2: "100 %", 3: "100 %"}, "has no unit"),
        ],
    )
    def test_refusals_of_core_contention(self, workers: dict[int, object], words: str) -> None:
        data = yaml.safe_load(write_cluster(made(workers_per_node=3)))
        with pytest.raises(ValueError, match=words):
            cluster_of({**data, "core_contention": {"workers": workers}})

    def test_round_trip_of_nodes_and_workers_that_differ(self) -> None:
        cluster = made(node_workers=(4, 1), speeds=(1.0, 1.0, 1.0, 0.25, 0.5), sources={"speeds": "measured"})
        again = read_cluster(write_cluster(cluster))
        assert again == cluster and again.sources == cluster.sources
        assert cluster.workers == 5 and not cluster.even
        assert [cluster.node_of(worker) for worker in range(5)] == [0, 0, 0, 0, 1]
        assert [list(cluster.workers_of(node)) for node in range(2)] == [[0, 1, 2, 3], [4]]
        with pytest.raises(ValueError, match="worker=5 is outside the cluster's 5 workers"):
            cluster.node_of(5)

    def test_a_slow_worker_loads_slowly(self) -> None:
        cluster = made(nodes=1, workers_per_node=2, speeds=(1.0, 0.5), data_s_per_image=1.0)
        assert cluster.data_s([3, 2]) == 4.0
        assert dataclasses.replace(cluster, data_shared=True).data_s([3, 2]) == 7.0

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"workers_per_node": []}, "must list the workers of each node"),
            ({"workers_per_node": [4, 0]}, r"workers_per_node.\[1\]=0 must be a whole number"),
            ({"workers_per_node": [4]}, "must have nodes=2 values"),
            ({"speeds": {"workers": "50 %"}}, "must list a share for each worker"),
            ({"speeds": {"workers": ["50 %"]}}, "must have a value for each of the 8 workers"),
            ({"speeds": {"workers": ["0 %"] * 8}}, "must be from 0.1 %"),
            ({"speeds": {"workers": [1] * 8}}, "has no unit"),
        ],
    )
    def test_refusals_of_nodes_and_workers_that_differ(self, changes: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            cluster_of({**yaml.safe_load(write_cluster(made())), **changes})

    def test_names_of_earlier_versions_are_refused_with_what_to_do(self) -> None:
        written = write_cluster(made(workers_per_node=2, core_contention=(1.0, 2.0)))
        with pytest.raises(
            ValueError, match="is now called core_contention: in a calibrated file, run parallel.calib"
        ):
            read_cluster(written.replace("core_contention:", "crowding:"))
        curve = {"fp32": Curve(((1000, 1e-6),))}
        key = OpKey("Linear", "bias=True", ((1, 2),), (1, 2), 4, 4)
        table = Table({"fp32": {(key, FORWARD): Timing(1e-3, 1e-3, 2e-3, 5)}}, curve, curve, curve)
        written = write_cluster(made(compute=Measured(table)))
        assert "1000 elements: 1 us" in written
        with pytest.raises(
            ValueError, match="1000 numbers was written by an earlier version.*calibrate.fresh=true"
        ):
            read_cluster(written.replace("1000 elements", "1000 numbers"))

    def test_round_trip_of_measured_times(self) -> None:
        graph, ops = graph_of("towers"), {}
        for i, op in enumerate(graph):
            key = OpKey.of(op, whole_part(op, 4))
            for name in (FORWARD, BACKWARD, PARAMETERS):
                ops[key, name] = Timing(1e-3 + i * 1e-7, 1e-3, 2e-3, 5)
        curves = {"fp32": Curve(((1000, 1e-6), (10**6, 1.234567e-3)))}
        cluster = made(
            compute=Measured(Table({"fp32": ops}, curves, curves, curves)),
            machine={"cores": "2"},
            sources={"memory": "measured"},
        )
        again = read_cluster(write_cluster(cluster))
        assert again == cluster
        assert isinstance(again.compute, Measured) and again.compute.table.ops["fp32"] == ops

    @pytest.mark.parametrize("name", SHIPPED)
    def test_every_number_of_a_shipped_file_has_its_source(self, name: str) -> None:
        config = compose_config([f"cluster={name}"]).cluster
        cluster = open_cluster(config, 1)
        assert cluster.name == name and config.hardware is not None
        numbers = set(paths_of_numbers(config.hardware, ""))
        assert len(numbers) >= 10 and numbers - set(cluster.sources) == set()
        assert read_cluster((CONF / "cluster" / f"{name}.yaml").read_text()) == cluster_of(config.hardware)
        graph = graph_of("tower")
        for op in graph:
            assert cluster.compute.forward_s(op, whole_part(op, 4), "fp32") >= 0

    def test_the_issue_s_clusters_are_shipped(self) -> None:
        assert {
            *("two_p100", "k20", "dgx1", "a100", "h100", "h100_infiniband", "h200"),
            *("ethernet_1g", "ethernet_10g"),
        } <= set(SHIPPED)

    @pytest.mark.parametrize("name", ["a100", "h100", "h100_infiniband", "h200"])
    def test_tensor_cores_are_priced_by_precision(self, name: str) -> None:
        cluster = read_cluster((CONF / "cluster" / f"{name}.yaml").read_text())
        fc6 = model_graph(compose_config([]).model, 10)["fc6"]
        times = [
            cluster.compute.forward_s(fc6, whole_part(fc6, 4096), precision)
            for precision in ("bf16", "tf32", "fp32", "fp64")
        ]
        assert times[0] < times[1] < times[2] < times[3]

    @pytest.mark.parametrize("name", ["k20", "two_p100", "dgx1"])
    def test_older_gpus_have_no_tf32(self, name: str) -> None:
        cluster = read_cluster((CONF / "cluster" / f"{name}.yaml").read_text())
        with pytest.raises(
            ValueError, match=f"trainer.precision=tf32 has no times in cluster {name}; it has"
        ):
            CostModel(graph_of("tower"), 4, cluster, "tf32")

    def test_convolutions_may_exceed_the_peak(self) -> None:
        """Winograd's algorithm needs fewer multiplications than the direct one."""
        graph = graph_of("tower")
        conv = next(op for op in graph if type(op).__name__ == "Conv2d")
        direct, winograd = (
            dataclasses.replace(
                ROOFLINE, efficiency={"Conv2d": share}, memory_bandwidth=1e20, op_overhead_s=0
            )
            for share in (1.0, 2.25)
        )
        whole = whole_part(conv, 4)
        assert direct.forward_s(conv, whole, "fp32") == pytest.approx(
            2.25 * winograd.forward_s(conv, whole, "fp32")
        )

    @pytest.mark.parametrize(
        "path, value, words",
        [
            ("inside__latency", 5, "cluster made: inside.latency=5 has no unit"),
            ("inside__latency", ABSENT, "inside.latency=None is missing"),
            ("memory", "-16 GB", "memory=-16 GB must not be negative"),
            ("memory", {"value": "16", "source": "x"}, "memory=16 has no unit"),
            ("memory", {"value": "16 GB", "from": "x"}, "memory=from is not a key here"),
            (
                "compute__roofline__peak__fp32",
                "1 GB/s",
                r"compute.roofline.peak.fp32=1 GB/s has the unit GB/s",
            ),
            ("compute__roofline__peak__fp8", "1 TFLOP/s", "peak=fp8 is not known"),
            (
                "compute__roofline__efficiency__Conv2d",
                "1010 %",
                "efficiency.Conv2d=10.1 must be .* at most 10",
            ),
            ("compute__roofline__efficiency__Linear", "101 %", "efficiency.Linear=1.01 must be .* at most 1"),
            ("compute__other", 1, "compute=other is not a key here"),
            (
                "between__bandwidth__points",
                {"1 MB": "1 GB/s", "1 kB": "1 GB/s"},
                "between.bandwidth.*must rise",
            ),
            ("nodes", "two", "nodes=two must be a whole number"),
            ("nodes", ABSENT, "nodes=None is missing"),
            ("data__shared", "perhaps", "data.shared=perhaps must be true or false"),
            ("colour", "red", "cluster=colour is not a key here"),
            ("inside", ABSENT, "inside=None is missing"),
            ("inside", "fast", "inside=fast must be a mapping"),
        ],
    )
    def test_refusals(self, path: str, value: object, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            cluster_of(written(**{path: value}))

    @pytest.mark.parametrize("text_of, words", [("a: [", "is not valid YAML"), ("- a", "must be a mapping")])
    def test_text_that_is_not_a_cluster(self, text_of: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            read_cluster(text_of)


def paths_of_numbers(data: dict[str, Any], where: str) -> list[str]:
    """Return the paths of all numbers but counts: those in `{value: …}`, and strings that begin
    with a digit."""
    found = []
    for key, value in data.items():
        name = f"{where}.{key}" if where else key
        if isinstance(value, dict) and "value" not in value:
            found += paths_of_numbers(value, name)
        elif isinstance(value, dict) or (isinstance(value, str) and value[:1].isdigit()):
            found.append(name)
    return found


class TestOpen:
    def config(self, folder: Path, **changes: Any) -> ClusterConfig:
        return ClusterConfig(**{"device": "cpu", "cache": str(folder), **changes})

    def write(self, folder: Path, workers: int, **changes: str) -> None:
        config = self.config(folder)
        machine = machine_of(config, [workers]) | changes
        cluster = made(nodes=1, workers_per_node=workers, machine=machine, name=f"of {workers}")
        calibration_path(config, machine).write_text(write_cluster(cluster))

    def test_this_machine_is_not_calibrated(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError,
            match=r"not calibrated for workers=2, cluster.threads=1.*"
            r"python -m parallel.torchrun --nproc-per-node 2 -m parallel.calibrate",
        ):
            open_cluster(self.config(tmp_path), 2)

    def test_the_smallest_calibration_that_is_enough(self, tmp_path: Path) -> None:
        for workers in (1, 3, 4):
            self.write(tmp_path, workers)
        self.write(tmp_path, 2, cores="999")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_cluster(self.config(tmp_path), 2).name == "of 3"
        with pytest.raises(ValueError, match="not calibrated for workers=5"):
            open_cluster(self.config(tmp_path), 5)
        with pytest.raises(ValueError, match=r"not calibrated .*cluster.threads=7"):
            open_cluster(self.config(tmp_path, threads=7), 2)

    def write_nodes(self, folder: Path, *node_workers: int) -> None:
        config = self.config(folder)
        machine = machine_of(config, node_workers)
        name = " + ".join(map(str, node_workers))
        cluster = made(
            nodes=len(node_workers),
            workers_per_node=max(node_workers),
            node_workers=node_workers if len(set(node_workers)) > 1 else (),
            machine=machine,
            name=name,
        )
        calibration_path(config, machine).write_text(write_cluster(cluster))

    def test_the_calibration_of_these_hosts(self, tmp_path: Path) -> None:
        for node_workers in ((3,), (2, 1), (1, 2), (1, 1, 1), (2, 2)):
            self.write_nodes(tmp_path, *node_workers)
        config = self.config(tmp_path)
        assert len(list(tmp_path.iterdir())) == 5, "each has a fingerprint of its own"
        for node_workers in ((3,), (2, 1), (1, 2), (1, 1, 1), (2, 2)):
            name = " + ".join(map(str, node_workers))
            assert open_cluster(config, sum(node_workers), node_workers).name == name
        assert open_cluster(config, 3).name == "3", "the fewest hosts"
        with pytest.raises(ValueError, match=r"not calibrated for workers=4 on hosts with 3 \+ 1, "):
            open_cluster(config, 4, (3, 1))

    @pytest.mark.parametrize("nodes", ["1 + 1", "2 + x", "0", "", "2, 1", "9" * 5000])
    def test_damaged_nodes(self, tmp_path: Path, nodes: str) -> None:
        self.write(tmp_path, 3, nodes=nodes)
        with pytest.raises(ValueError, match=r"is damaged .machine.nodes=.*: delete it"):
            open_cluster(self.config(tmp_path), 3)

    def test_an_emulated_cluster_has_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(EMULATED, '{"hosts": 2, "rate": "1gbit"}')
        self.write(tmp_path, 2)
        assert open_cluster(self.config(tmp_path), 2).name == "of 2"
        monkeypatch.setenv(EMULATED, '{"hosts": 2, "rate": "5gbit"}')
        with pytest.raises(ValueError, match="not calibrated"):
            open_cluster(self.config(tmp_path), 2)
        monkeypatch.delenv(EMULATED)
        with pytest.raises(ValueError, match="not calibrated"):
            open_cluster(self.config(tmp_path), 2)

    def test_another_machine_s_file_is_warned_of(self, tmp_path: Path) -> None:
        self.write(tmp_path, 2, cores="999")
        (path,) = tmp_path.glob("*.yaml")
        with pytest.warns(UserWarning, match="of 2 was calibrated on another machine: cores 999 instead of"):
            assert open_cluster(self.config(tmp_path, file=str(path)), 2).name == "of 2"

    def test_a_file_goes_before_hardware(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(write_cluster(made(name="mine")))
        config = self.config(tmp_path, file=str(tmp_path / "mine.yaml"), hardware=written())
        assert open_cluster(config, 12).name == "mine"
        assert open_cluster(config, 12).nodes == 3
        assert open_cluster(dataclasses.replace(config, file=None), 1).name == "made"

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cluster.file=.*none.yaml can't be read: No such file"):
            open_cluster(self.config(tmp_path, file=str(tmp_path / "none.yaml")), 1)
        (tmp_path / "bad.yaml").write_text("name: bad")
        with pytest.raises(ValueError, match="cluster.file=.*bad.yaml: .*data=None is missing"):
            open_cluster(self.config(tmp_path, file=str(tmp_path / "bad.yaml")), 1)


class TestMeasured:
    """Times that follow a law, so that missing ones can be predicted."""

    graph = graph_of("tower")

    def law(self, key: OpKey, name: str) -> float:
        passes = {FORWARD: 1.0, BACKWARD: 2.1, PARAMETERS: 1.1}[name]
        return 1e-6 + passes * (key.multiply_adds * 1e-10 + (key.elements_in + key.elements_out) * 1e-9)

    def table(self, samples: tuple[int, ...]) -> Table:
        ops = {}
        for op in self.graph:
            for n in samples:
                for layout in (Layout(on=(0,)), *([Layout(on=(0, 1), c=2)] if "c" in op.dims else [])):
                    key = OpKey.of(op, layout.part(op, layout.on[-1], (0, n)))
                    for name in (FORWARD, PARAMETERS if op.name == "conv1" else BACKWARD):
                        ops[key, name] = Timing(self.law(key, name), 0.0, 1.0, 3)
        curve = {"fp32": Curve(((1000, 1e-6), (2000, 3e-6)))}
        return Table({"fp32": ops}, curve, curve, curve)

    def test_what_was_measured_is_looked_up(self) -> None:
        compute = Measured(self.table((4, 8)))
        conv1, conv2 = self.graph["conv1"], self.graph["conv2"]
        part = Layout(on=(0, 1), c=2).part(conv2, 0, (0, 8))
        key = OpKey.of(conv2, part)
        assert compute.is_measured(conv2, part, "fp32")
        assert compute.forward_s(conv2, part, "fp32") == self.law(key, FORWARD)
        assert compute.backward_s(conv2, part, "fp32", True) == self.law(key, BACKWARD)
        whole = whole_part(conv1, 8)
        assert compute.backward_s(conv1, whole, "fp32", False) == self.law(OpKey.of(conv1, whole), PARAMETERS)
        relu = self.graph["relu1"]
        assert compute.backward_s(relu, whole_part(relu, 8), "fp32", False) == 0.0

    def test_what_was_not_is_predicted(self) -> None:
        compute = Measured(self.table((2, 4, 8, 16, 32)))
        questions, expected = [], []
        for op in self.graph:
            part = whole_part(op, 11)
            assert not compute.is_measured(op, part, "fp32")
            if op.name != "avgpool":
                questions.append((op, part, FORWARD, True))
                expected.append(self.law(OpKey.of(op, part), FORWARD))
        found = compute.predict_many(questions, "fp32")
        assert found == pytest.approx(expected, rel=0.1)
        assert found == [compute.forward_s(op, part, "fp32") for op, part, _, _ in questions]

    def test_predictions_do_not_change(self) -> None:
        fc3, tables = self.graph["fc3"], [self.table((2, 4, 8)) for _ in range(2)]
        a, b = (Measured(table).forward_s(fc3, whole_part(fc3, 5), "fp32") for table in tables)
        assert a == b

    def test_counts(self) -> None:
        compute = Measured(self.table((4,)))
        assert [compute.update_s(n, "fp32") for n in (0, 10, 1000, 1500, 2000, 4000)] == pytest.approx(
            [0.0, 1e-6, 1e-6, 2e-6, 3e-6, 6e-6]
        )

    def test_a_precision_that_was_not_calibrated(self) -> None:
        with pytest.raises(
            ValueError, match="trainer.precision=bf16 was not calibrated on this cluster; it has fp32"
        ):
            Measured(self.table((4,))).update_s(10, "bf16")


class TestOpKey:
    def test_text(self) -> None:
        for name in ("tower", "towers", "odd"):
            for op in graph_of(name):
                key = OpKey.of(op, whole_part(op, 3))
                assert OpKey.parse(key.head, key.shapes) == key

    def test_equal_wherever_it_lies(self) -> None:
        conv2 = graph_of("tower")["conv2"]  # 7×4×4 → 10×4×4, kernel 3, padding 1
        halves = [OpKey.of(conv2, Layout(on=(0, 1), h=2).part(conv2, worker, (0, 4))) for worker in (0, 1)]
        assert halves[0] == halves[1] != OpKey.of(conv2, whole_part(conv2, 4))
        sums = [
            OpKey.of(conv2, Layout(on=(0, 1, 2), k=3).part(conv2, worker, (0, 4))) for worker in (0, 1, 2)
        ]
        assert sums[0] == sums[1], "the bias makes no difference"
        assert sums[2].inputs[0][1] == 3, "seven channels are cut into 2, 2 and 3"


class TestNodesOfAMachine:
    @pytest.mark.parametrize("node_workers", [(1,), (4,), (2, 2), (2, 1), (1, 2, 3)])
    def test_back_and_forth(self, node_workers: tuple[int, ...]) -> None:
        machine = machine_of(ClusterConfig(device="cpu"), node_workers)
        assert node_workers_of(machine) == node_workers
        assert machine["workers"] == str(sum(node_workers))

    @pytest.mark.parametrize(
        "there, here, same",
        [
            ((2, 2), (2, 1), True),
            ((2, 2), (2,), True),
            ((2, 2), (1, 1), False),
            ((2, 1), (3,), False),
            ((3,), (2, 1), False),
            ((2,), (2, 1), False),
            ((4,), (2,), True),
        ],
    )
    def test_first_workers(self, there: tuple[int, ...], here: tuple[int, ...], same: bool) -> None:
        assert on_same_nodes(there, here) is same
