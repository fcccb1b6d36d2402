"""`python -m parallel.recommend`: choices by hand and on a small cluster, reasons, the page,
invalid input."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parallel.cli.clusters import shipped_clusters
from parallel.prediction.recommendation.choose import best_of_each, choose
from parallel.prediction.recommendation.listing import reasons, sentences
from parallel.prediction.recommendation.options import STRATEGIES, Option
from parallel.recommend import COMMAND, main, question
from tests.support.html import Tags

TINY = """
name: tiny
nodes: 1
workers_per_node: {workers}
memory: {{value: {memory}, source: made up}}
inside:
  shared: false
  latency: {{value: 0 s, source: made up}}
  bandwidth: {{value: {bandwidth}, source: made up}}
compute:
  roofline:
    peak: {{fp32: {{value: 1 TFLOP/s, source: made up}}}}
    efficiency: {{Conv2d: {{value: 100 %, source: made up}}, Linear: {{value: 100 %, source: made up}}}}
    memory_bandwidth: {{value: 100000 GB/s, source: made up}}
    op_overhead: {{value: 0 s, source: made up}}
step_overhead: {{value: 0 s, source: made up}}
overlap_slowdown: {{value: 0 %, source: made up}}
data: {{per_image: {{value: {data}, source: made up}}, shared: true, overlaps: true}}
"""
WORKLOAD = ("data=synthetic", "data.num_classes=10", "data.train_images=1280", "trainer.batch_size=128")


def option(cluster: str, workers: int, strategy: str, epoch_s: float | None, reason: str = "") -> Option:
    prediction: Any = None if epoch_s is None else SimpleNamespace(epoch_s=epoch_s)
    return Option(cluster, workers, 128, strategy, prediction, reason)


FOUND = [
    option("a", 1, "single", 100.0),
    option("a", 2, "data_parallel", 60.0),
    option("a", 2, "searched", 55.0),
    option("a", 4, "data_parallel", 54.9),
    option("a", 4, "searched", 20.0, "a worker needs 2 GB of memory and has 1 GB"),
    option("a", 8, "data_parallel", None, "too small"),
    option("b", 1, "single", 10.0),
    option("c", 1, "", None, "is not calibrated"),
]


def chosen(target_s: float | None) -> list[tuple[str, int, str, str]]:
    return [(c.option.cluster, c.option.workers, c.option.strategy, c.mark) for c in choose(FOUND, target_s)]


def test_the_fewest_workers_that_reach_the_time_and_of_these_the_fastest() -> None:
    assert chosen(60.0) == [("a", 2, "searched", "enough"), ("b", 1, "single", "enough")]
    assert chosen(100.0)[0] == ("a", 1, "single", "enough")


def test_the_closest_where_nothing_reaches_it() -> None:
    """Options that do not fit the memory are skipped; a tie goes to fewer workers."""
    assert chosen(30.0) == [("a", 2, "searched", "closest"), ("b", 1, "single", "enough")]


def test_without_a_time_the_fastest_and_the_cheapest() -> None:
    assert chosen(None) == [
        ("a", 2, "searched", "fastest"),
        ("a", 1, "single", "cheapest"),
        ("b", 1, "single", "fastest"),
        ("b", 1, "single", "cheapest"),
    ]


def test_best_of_each_number_of_workers() -> None:
    assert [(o.cluster, o.workers, o.strategy) for o in best_of_each(FOUND)] == [
        ("a", 1, "single"),
        ("a", 2, "searched"),
        ("a", 4, "data_parallel"),
        ("b", 1, "single"),
    ]


def test_reasons_and_recommendations_in_words() -> None:
    assert reasons([*FOUND, option("b", 8, "data_parallel", None, "too small")]) == [
        "searched on a with 4 workers: a worker needs 2 GB of memory and has 1 GB",
        "data_parallel on a, b with 8 workers: too small",
        "c with 1 worker: is not calibrated",
    ]
    assert sentences(FOUND, choose(FOUND, 30.0), 30.0) == [
        "a: no option reaches 30 s; closest: 2 workers with searched, batch 128: 55 s an epoch",
        "b: 1 worker with single, batch 128: 10 s an epoch, within 30 s",
        "c: no option is possible",
    ]


def cluster_file(
    folder: Path,
    name: str = "tiny",
    workers: int = 4,
    memory: str = "16 GB",
    bandwidth: str = "1000000 GB/s",
    data: str = "0 s/image",
) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(TINY.format(workers=workers, memory=memory, bandwidth=bandwidth, data=data))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*WORKLOAD, *arguments]) == 0
    return capsys.readouterr().out


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.startswith(("tiny ", "slow "))]


def test_a_network_that_costs_nothing_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without communication costs, half the batch takes half the time except for updates; a slow
    network is worse than one worker."""
    fast = cluster_file(tmp_path)
    slow = cluster_file(tmp_path, "slow", bandwidth="0.001 GB/s")
    out = run(capsys, f"clusters={fast},{slow}", "workers=1,2,4,8", "strategies=data_parallel")
    table = {(row[0], int(row[1])): float(row[5].replace(",", "")) for row in rows(out)}
    assert table["tiny", 2] == pytest.approx(table["tiny", 1] / 2, rel=0.05)
    assert table["tiny", 4] == pytest.approx(table["tiny", 1] / 4, rel=0.05)
    assert table["slow", 2] > 10 * table["slow", 1]
    assert ("tiny", 8) not in table
    assert (
        "not possible: tiny, slow with 8 workers: workers=8 is more than the 4 of cluster tiny"
        in " ".join(out.split())
    )
    assert "tiny, fastest: 4 workers with data_parallel" in out
    assert "slow, fastest: 1 worker with single" in out and "slow, cheapest: 1 worker with single" in out


def test_an_epoch_that_loading_sets_needs_one_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 steps of 128 images at 10 ms each take 12.8 s with any number of workers."""
    name = cluster_file(tmp_path, data="10 ms/image")
    out = run(capsys, f"clusters={name}", "workers=1,2", "strategies=data_parallel", "epoch_s=13")
    assert [row[5] for row in rows(out)] == ["12.8", "12.8"]
    assert "tiny: 1 worker with single, batch 128: 12.8 s an epoch, within 13 s" in out
    out = run(capsys, f"clusters={name}", "workers=1,2", "strategies=data_parallel", "epoch_s=12")
    assert "tiny: no option reaches 12 s; closest: 1 worker with single" in out


def test_memory_and_batches_that_do_not_fit_have_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = cluster_file(tmp_path, memory="900 MB")
    out = run(
        capsys, f"clusters={name}", "workers=1,2", "strategies=one_weird_trick", "batch_sizes=2,128", "--all"
    )
    told = [" ".join(row[3:]) for row in rows(out)]
    assert any(
        line.startswith("single") and "a worker needs" in line and "has 900 MB" in line for line in told
    )
    assert any(line.startswith("one_weird_trick c") and "is too small" in line for line in told)
    assert not any("◀" in line and "needs" in line for line in told)


def test_page_is_well_formed_and_has_a_curve_for_each_strategy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.html"
    run(
        capsys,
        f"clusters={cluster_file(tmp_path)}",
        "workers=1,2,4",
        "strategies=data_parallel,one_weird_trick a",
        "epoch_s=1",
        "--html",
        str(path),
    )
    html = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.requests == []
    assert "data_parallel, workers 4:" in html and "one_weird_trick a, workers 2:" in html
    assert "Epoch on tiny, s" in html and "Dashed: 1 s." in html


def test_a_first_word_means_all_of_its_kind() -> None:
    found = question(COMMAND.read(["strategies=one_weird_trick,model_parallel tensor", "clusters=dgx1"]))
    assert found.strategies == [
        "one_weird_trick a",
        "one_weird_trick b",
        "one_weird_trick c",
        "model_parallel tensor",
    ]
    assert question(COMMAND.read([])).strategies == list(STRATEGIES)
    assert list(question(COMMAND.read([])).configs) == shipped_clusters()
    assert "two_p100" in shipped_clusters() and "local" not in shipped_clusters()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["workers=0"], "workers=0 must be a whole number of at least 1"),
        (["workers=1,x"], "workers=x must be a whole number"),
        (["workers="], "workers= must be words"),
        (["workers=1", "workers=2"], "workers=2 is given twice; the first was 1"),
        (["batch_sizes=1.5"], "batch_sizes=1.5 must be a whole number"),
        (["epoch_s=soon"], "epoch_s=soon must be a positive number"),
        (["epoch_s=-1"], "epoch_s=-1 must be a positive number"),
        (["strategies=ddp"], "strategies=ddp is not known; there are single, data_parallel"),
        (["strategy=single"], "strategy=single is chosen here: give strategies="),
        (["cluster=dgx1"], "cluster=dgx1 is chosen here: give clusters="),
        (["clusters=nowhere"], "cluster=nowhere is not known"),
        (["clusters=nowhere.yaml"], "clusters=nowhere.yaml is not a file"),
        (["--html"], "--html= must name the file"),
        (["--html", "nowhere/page.html"], "lies in a folder that does not exist"),
        (["--fast"], "flag=--fast is not known"),
        (["model.size=3", "clusters=dgx1"], "model.size=3 does not belong to model=alexnet"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_no_possible_option_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORKLOAD, f"clusters={cluster_file(tmp_path)}", "workers=64"]) == 2
    assert "tiny: no option is possible" in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m parallel.recommend" in capsys.readouterr().out
