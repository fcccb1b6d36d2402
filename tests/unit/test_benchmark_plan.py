"""The commands of a benchmark fit the machine: one core, many cores, one GPU, several GPUs."""

from __future__ import annotations

import shlex

import pytest

from parallel.cli.benchmark_plan import Setup, calibration, choose, impossible, trainings
from parallel.runtime.communication.device import Machine


@pytest.mark.parametrize(
    "machine, expected",
    [
        (Machine(1, 0), ("cpu", 2, 1, None)),
        (Machine(2, 0), ("cpu", 2, 1, 2)),
        (Machine(3, 0), ("cpu", 3, 1, 3)),
        (Machine(16, 0), ("cpu", 8, 2, 16)),
        (Machine(12, 1), ("cpu", 8, 1, 12)),
        (Machine(16, 4), ("cuda", 4, 1, None)),
        (Machine(16, 2), ("cuda", 2, 1, None)),
        (Machine(16, 4, nccl=False), ("cpu", 8, 2, 16)),
    ],
)
def test_the_default_fits_the_machine(machine: Machine, expected: tuple[str, int, int, int | None]) -> None:
    setup = choose(machine, None, None)
    assert (setup.device, setup.workers, setup.threads, setup.whole_threads) == expected


def test_what_is_stated_is_taken() -> None:
    setup = choose(Machine(16, 4), 4, "cpu")
    assert (setup.device, setup.workers, setup.threads, setup.whole_threads) == ("cpu", 4, 4, 16)
    assert choose(Machine(16, 4), 2, None).workers == 2


@pytest.mark.parametrize(
    "machine, workers, sentence",
    [
        (Machine(1, 0), None, "2 workers share 1 core, so"),
        (Machine(2, 0), 4, "4 workers share 2 cores, so"),
        (Machine(4, 1), None, "1 GPU: every worker needs one of its own"),
        (Machine(4, 2, nccl=False), None, "2 GPUs: torch was built without NCCL"),
    ],
)
def test_a_note_says_what_the_choice_means(machine: Machine, workers: int | None, sentence: str) -> None:
    (note,) = choose(machine, workers, None).notes
    assert note.startswith(sentence)


@pytest.mark.parametrize(
    "machine, workers, device, sentence",
    [
        (Machine(2, 0), 1, None, "workers=1 must be at least 2"),
        (Machine(2, 0), None, "tpu", "device=tpu is not known; it must be one of cpu, cuda"),
        (Machine(2, 0), None, "cuda", "device=cuda needs two GPUs, .* torch sees 0: use device=cpu"),
        (Machine(2, 1), None, "cuda", "torch sees 1"),
        (Machine(2, 0, missing=" (hidden)"), None, "cuda", r"torch sees 0 \(hidden\): use device=cpu"),
        (Machine(2, 2, nccl=False), None, "cuda", "device=cuda needs NCCL, and torch was built without it"),
        (Machine(16, 4), 8, None, "workers=8 must be at most the 4 GPUs, .*; device=cpu takes more"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    machine: Machine, workers: int | None, device: str | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose(machine, workers, device)


def test_strategies_that_more_workers_cannot_run_are_left_out_with_the_reason() -> None:
    cpu = choose(Machine(2, 0), None, "cpu")
    assert impossible(cpu, ()) == {}
    reasons = impossible(Setup(device="cpu", workers=16, threads=1), ())
    assert set(reasons) == {"model_parallel", "model_parallel_tensor"}
    assert reasons["model_parallel"].startswith("workers=16 are more than the 8 layers")


def test_shared_gpus_are_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match="cluster.share_gpu=true is for checking results, and a benchmark measures"
    ):
        impossible(choose(Machine(16, 4), None, None), ("cluster.share_gpu=true",))


def test_the_commands() -> None:
    setup = choose(Machine(2, 0), None, None)
    assert shlex.join(calibration(setup, ("model=vgg16",))[1:]) == (
        "-m parallel.torchrun --nproc-per-node=2 -m parallel.calibrate calibrate.budget_s=60 workers=2 "
        "experiment=compare cluster.device=cpu cluster.threads=1 model=vgg16"
    )
    first, second = trainings(setup, {"ddp"}, "mine", ("model=vgg16",))
    assert shlex.join(first[1:]) == (
        "-m parallel.train -m experiment=compare cluster.device=cpu strategy=single,data_parallel,model_parallel,"
        "model_parallel_tensor,one_weird_trick,searched 'workers=choice(2)' cluster.threads=1 model=vgg16 "
        "hydra/launcher=torchrun sweep=mine"
    )
    assert shlex.join(second[1:]) == (
        "-m parallel.train -m experiment=compare cluster.device=cpu strategy=single 'cluster.threads=choice(2)' "
        "model=vgg16 hydra/launcher=torchrun sweep=mine"
    )


def test_gpus_train_on_the_images_and_batches_of_the_papers() -> None:
    setup = choose(Machine(16, 4), None, None)
    assert setup.workload == (
        "experiment=speed",
        "trainer.batch_size=512",
        "data.train_images=5120",
        "data.val_images=512",
    )
    assert impossible(setup, ()) == {}
    assert len(trainings(setup, (), "compare", ())) == 1, "a GPU has no second baseline"
