"""The shipped configuration, overrides, and the messages of errors in them."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from parallel.cli import compose
from parallel.cli.application import claim_run_dir, fit_world, one_worker_line
from parallel.cli.choices import CHOICES
from parallel.cli.stored import evaluation_config
from parallel.cli.swept_options import refuse_options_of_some
from parallel.config import Config, DataConfig, ImageFilesConfig, TrainerConfig
from parallel.models.alexnet import AlexNetConfig
from parallel.strategies import DataParallel, FromFile, ModelParallel, Single


def test_the_default_configuration_is_that_of_the_dataclasses() -> None:
    assert compose.compose_config([]) == Config(AlexNetConfig(), DataConfig("digits"), Single())


def options(group: str) -> set[str]:
    return {path.stem for path in (compose.CONF / group).glob("*.yaml")} | {*CHOICES.get(group, ())}


@pytest.mark.parametrize(
    "group, name",
    [(group, name) for group in (*compose.GROUPS, "experiment") for name in sorted(options(group))],
)
def test_every_choice_composes(group: str, name: str) -> None:
    config = compose.compose_config([f"{group}={name}"])
    if group in ("data", "model", "tracker"):
        assert getattr(config, group).name == name
    if name in CHOICES.get(group, ()):
        assert getattr(config, group) == CHOICES[group][name]


@pytest.mark.parametrize("preset", ["model_parallel_tensor", "one_weird_trick_b", "one_weird_trick_c"])
def test_a_preset_is_a_strategy_with_a_scheme(preset: str) -> None:
    strategy = compose.compose_config([f"strategy={preset}"]).strategy
    assert f"{strategy.name}_{strategy.scheme}" == preset


@pytest.mark.parametrize(
    "name, data, image_size, batch_size",
    [
        ("digits", "digits", 64, 32),
        ("tiny_imagenet", "tiny_imagenet", 64, 128),
        ("imagenet", "imagenet", 224, 128),
        ("dogs_vs_cats", "dogs_vs_cats", 224, 128),
        ("speed", "synthetic", 224, 128),
    ],
)
def test_an_experiment_is_a_diff(name: str, data: str, image_size: int, batch_size: int) -> None:
    config = compose.compose_config([f"experiment={name}", "strategy=ddp", "trainer.epochs=7"])
    assert (config.data.name, config.model.image_size, config.trainer.batch_size) == (
        data,
        image_size,
        batch_size,
    )
    assert (config.strategy.name, config.trainer.epochs) == ("ddp", 7), "the command line has the last word"
    default = compose.compose_config([])
    assert config.trainer.momentum == default.trainer.momentum, "what it does not name is the default"


def test_the_documented_keys_exist() -> None:
    config = compose.compose_config(
        [
            "strategy=from_file",
            "strategy.path=plan.yaml",
            "workers=4",
            "model=alexnet",
            "model.num_classes=200",
            "model.image_size=224",
            "data=tiny_imagenet",
            "data.root=/data",
            "trainer.epochs=2",
            "trainer.batch_size=64",
            "trainer.precision=bf16",
            "trainer.seed=3",
        ]
    )
    assert isinstance(config.strategy, FromFile) and isinstance(config.data, ImageFilesConfig)
    assert (config.strategy.path, config.workers, config.data.root, config.trainer.precision) == (
        "plan.yaml",
        4,
        "/data",
        "bf16",
    )


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["strategy=nope"],
            [
                "strategy=nope",
                *(
                    "accelerate",
                    "data_parallel",
                    "ddp",
                    "ddp_ours",
                    "deepspeed",
                    "fabric",
                    "from_file",
                    "fsdp2",
                ),
                *("model_parallel", "model_parallel_tensor", "one_weird_trick", "one_weird_trick_b"),
                *("one_weird_trick_c", "searched", "single"),
            ],
        ),
        (["data=nope"], ["data=nope", "digits, dogs_vs_cats"]),
        (["model=nope"], ["model=nope", "alexnet"]),
        (["experiment=nope"], ["experiment=nope", "tiny_imagenet"]),
        (["hydra/launcher=nope"], ["hydra/launcher=nope", "basic, emulated, submitit_slurm, torchrun"]),
        (
            ["strategy.name=ddp"],
            ["strategy.name=ddp is not possible: use strategy= with one of single, data_parallel"],
        ),
        (
            ["strategy.scheme=a"],
            ["strategy.scheme=a does not belong to strategy=single; its options are: none"],
        ),
        (
            ["strategy=one_weird_trick", "strategy.micro_batches=2"],
            [
                "strategy.micro_batches=2 does not belong to strategy=one_weird_trick; its options are: scheme, update"
            ],
        ),
        (
            ["+strategy.scheme=a"],
            ["strategy.scheme=a does not belong to strategy=single; its options are: none"],
        ),
        (
            ["strategy=model_parallel", "strategy.micro_batches=two"],
            ["strategy.micro_batches", "'two'", "Integer"],
        ),
        (["data=digits", "data.root=/data"], ["data.root=/data does not belong to data=digits"]),
        (["strategy=3"], ["strategy=3", "single, data_parallel"]),
        (["trainer=3"], ["trainer=3", "conf/trainer/"]),
        (["trainer.epoch=3"], ["trainer.epoch", "not a known key", "epochs"]),
        (["+trainer.epoch=3"], ["trainer.epoch", "not a known key", "epochs"]),
        (["+nonsense=3"], ["nonsense", "not a known key", "workers"]),
        (["trainer.epochs=three"], ["trainer.epochs", "'three'", "Integer"]),
        (["trainer.lr=[1,2]"], ["trainer.lr", "Float"]),
        (["trainer.compile=maybe"], ["trainer.compile", "maybe", "bool"]),
        (["trainer.epochs=0"], ["trainer.epochs=0", "at least 1"]),
        (["model.image_size=32"], ["model.image_size=32", "63"]),
        (["model=vgg16", "model.image_size=31"], ["model.image_size=31", "VGG-16's five poolings", "32"]),
        (["model.variant=nope"], ["model.variant=nope", "owt, original, ungrouped"]),
        (
            ["model=vgg16", "model.variant=owt"],
            ["model.variant=owt does not belong to model=vgg16; its options are: num_classes"],
        ),
        (["model=resnet18", "model.dropout=0.1"], ["model.dropout=0.1 does not belong to model=resnet18"]),
        (["model=resnet18", "model.init=paper"], ["model.init=paper", "kaiming, torch"]),
        (["trainer.lr=${oc.env:NO_SUCH_VARIABLE}"], ["trainer.lr", "NO_SUCH_VARIABLE"]),
        (["trainer.epochs=1,2"], ["trainer.epochs=1,2", "--multirun"]),
        (["two words"], ["'two words'", "key=value"]),
        (["trainer=[1]"], ["trainer=[1] must name a file of conf/trainer/"]),
        (["trainer.lr=" + "9" * 400], ["override cannot be applied", "too large"]),
        (["workers=" + "9" * 5000], ["cannot be read as key=value", "5000 digits"]),
        (["trainer.lr=" + "[" * 1000 + "]" * 1000], ["nested too deeply"]),
        (["cluster.hardware={a: inf}"], ["override cannot be applied", "cluster.hardware"]),
        (
            ["cluster=dgx1", "cluster.hardware.nodes=inf"],
            ["cluster.hardware.nodes=inf must be a finite number"],
        ),
        (["trainer.lr=[1"], ["'trainer.lr=[1'", "key=value"]),
    ],
)
def test_bad_input_is_one_sentence(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        compose.compose_config(overrides)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "+_target_=os.getcwd",
        "+trainer._target_=os.getcwd",
        "+hydra.callbacks.mine._target_=os.getcwd",
        "+hydra.callbacks={mine: {_target_: os.getcwd}}",
        "hydra.launcher._target_=os.getcwd",
    ],
)
def test_no_target_from_the_command_line(override: str) -> None:
    with pytest.raises(ValueError, match="_target_.*never code to run"):
        compose.compose_config([override])


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\ntrainer:\n  _target_: os.getcwd\n",
        "# @package _global_\nhydra:\n  callbacks:\n    mine:\n      _target_: os.getcwd\n",
    ],
)
def test_no_target_from_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="_target_ is not allowed|'_target_' not in"):
        compose.compose_config([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])


def test_a_file_is_checked_against_the_schema(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("epochs: many\n")
    with pytest.raises(ValueError, match=r"trainer\.epochs.*'trainer/mine'.*'many'.*Integer"):
        compose.compose_config([f"hydra.searchpath=[file://{tmp_path}]", "trainer=mine"])


def test_a_file_of_one_s_own_may_start_from_a_choice(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("defaults: [model_parallel]\nmicro_batches: 4\n")
    own = f"hydra.searchpath=[file://{tmp_path}]"
    assert compose.compose_config([own, "strategy=mine"]).strategy == ModelParallel(micro_batches=4)
    (tmp_path / "strategy" / "mine.yaml").write_text("name: model_parallel\nmicro_batches: 2\n")
    assert compose.compose_config([own, "strategy=mine"]).strategy == ModelParallel(micro_batches=2)
    (tmp_path / "strategy" / "mine.yaml").write_text("name: single\nscheme: a\n")
    with pytest.raises(ValueError, match="^strategy.scheme=a does not belong to strategy=single; its"):
        compose.compose_config([own, "strategy=mine"])


def test_the_batch_per_worker_sets_the_global_batch() -> None:
    wide = compose.compose_config(["trainer.batch_per_worker=16", "strategy=ddp", "workers=4"])
    assert wide.trainer.batch_size == 64
    assert dataclasses.replace(wide, workers=2).trainer.batch_size == 32, "it follows the workers"
    assert dataclasses.replace(wide, strategy=Single()).trainer.batch_size == 16
    started = compose.compose_config(["trainer.batch_per_worker=16", "strategy=ddp"])
    assert fit_world(started, 3, launched=True).trainer.batch_size == 48, "by the processes of torchrun"
    compare = compose.compose_config(["experiment=compare", "trainer.batch_per_worker=16"])
    assert compare.trainer.batch_size == 16, "the batch of an experiment is replaced"


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            ["trainer.batch_per_worker=16", "trainer.batch_size=32"],
            "^trainer.batch_size=32 and .*=16 exclude",
        ),
        (["experiment=weak_scaling", "trainer.batch_size=8"], "^trainer.batch_size=8 and .*=32 exclude each"),
        (["trainer.batch_per_worker=0"], "^trainer.batch_per_worker=0 must be at least 1"),
    ],
)
def test_two_batches_exclude_each_other(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compose.compose_config(overrides)


def test_the_batch_per_worker_of_an_experiment_can_be_ended() -> None:
    config = compose.compose_config(
        ["experiment=weak_scaling", "trainer.batch_per_worker=null", "trainer.batch_size=8", "workers=2"]
    )
    assert config.trainer.batch_size == 8


def test_the_shared_part_of_a_sweep_has_no_options_of_what_is_swept() -> None:
    parsed = compose.parse_overrides(
        ["strategy=one_weird_trick,model_parallel", "strategy.scheme=a", "workers=2"]
    )
    assert compose.shared_overrides(parsed) == ["workers=2"]


@pytest.mark.parametrize(
    "overrides, lacking",
    [
        (["strategy=single,model_parallel", "strategy.scheme=tensor"], "strategy=single"),
        (
            ["strategy=one_weird_trick,model_parallel", "strategy.micro_batches=1,2"],
            "strategy=one_weird_trick",
        ),
        (["strategy.scheme=a", "strategy=one_weird_trick,ddp"], "strategy=ddp"),
        (["model=alexnet,vgg16", "model.variant=owt"], "model=vgg16"),
        (["strategy=one_weird_trick,model_parallel", "strategy.scheme=a"], None),
        (["strategy=mine,model_parallel", "strategy.scheme=tensor"], None),
        (["strategy=single,model_parallel_tensor", "model=alexnet,vgg16", "model.dropout=0.1"], None),
    ],
)
def test_a_swept_choice_without_an_option_is_named(overrides: list[str], lacking: str | None) -> None:
    parsed = compose.parse_overrides([*overrides, "workers=2"])
    if lacking is None:
        return refuse_options_of_some(parsed)
    with pytest.raises(
        ValueError, match=f"does not belong to {lacking}, .*model_parallel_tensor, or run two"
    ):
        refuse_options_of_some(parsed)


def sweep(*overrides: str) -> list[str]:
    parsed = compose.parse_overrides(overrides)
    return compose.sweep_overrides(parsed, compose.compose_node(compose.shared_overrides(parsed)))


def test_the_same_sweep_gets_the_same_name() -> None:
    name = sweep("strategy=single,ddp", "workers=2")[0]
    assert name.startswith("sweep=sweep-")
    assert sweep("workers=2", "strategy=single,ddp", "hydra/launcher=torchrun")[0] == name
    assert sweep("workers=3", "strategy=single,ddp")[0] != name


def test_a_named_sweep_keeps_its_name() -> None:
    assert not any(line.startswith("sweep=") for line in sweep("strategy=single,ddp", "sweep=mine"))
    assert sweep("experiment=weak_scaling", "workers=4", "trainer.epochs=2") == [
        "hydra.job.config.override_dirname.exclude_keys=[sweep,experiment,trainer.epochs]"
    ], "workers is swept by the experiment"


def test_job_folders_are_named_by_what_varies() -> None:
    assert sweep("strategy=single,ddp", "workers=2", "sweep=mine") == [
        "hydra.job.config.override_dirname.exclude_keys=[sweep,workers]"
    ]


@pytest.mark.parametrize(
    "strategy, workers, world, fitted",
    [("single", None, 1, 1), ("single", 2, 1, 1), ("ddp", None, 3, 3), ("ddp", 4, 4, 4), ("ddp", None, 1, 1)],
)
def test_a_fitting_world(strategy: str, workers: int | None, world: int, fitted: int) -> None:
    config = compose.compose_config(
        [f"strategy={strategy}", f"workers={'null' if workers is None else workers}"]
    )
    assert fit_world(config, world, launched=world > 1).workers == fitted


@pytest.mark.parametrize(
    "strategy, workers, world, launched, words",
    [
        ("single", None, 2, True, ["strategy=single", "needs 1 process,", "started 2"]),
        ("ddp", 4, 2, True, ["workers=4", "needs 4 processes", "started 2", "--nproc-per-node"]),
        (
            "ddp",
            2,
            1,
            False,
            ["workers=2", "python -m parallel.torchrun --nproc-per-node 2", "hydra/launcher=torchrun"],
        ),
    ],
)
def test_a_world_of_the_wrong_size(
    strategy: str,
    workers: int | None,
    world: int,
    launched: bool,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Xdist's has none.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("parallel.train", None))
    config = compose.compose_config(
        [f"strategy={strategy}", f"workers={'null' if workers is None else workers}"]
    )
    with pytest.raises(ValueError) as caught:
        fit_world(config, world, launched)
    for word in words:
        assert word in str(caught.value)


def test_a_parallel_strategy_on_one_worker_is_told_what_starts_two() -> None:
    arguments = ["strategy=data_parallel", "workers=1", "hydra.run.dir=my runs"]
    line = one_worker_line(compose.compose_config(arguments), arguments, slurm=False)
    assert line is not None and line.endswith(
        "python -m parallel.torchrun --nproc-per-node 2 -m parallel.train strategy=data_parallel "
        "'hydra.run.dir=my runs'"
    )
    slurm = one_worker_line(compose.compose_config(arguments), arguments, slurm=True)
    assert slurm is not None and "for two: srun --ntasks 2 python -m parallel.train " in slurm
    for single in (["strategy=single"], ["strategy=from_file", "strategy.path=plan.yaml"]):
        assert one_worker_line(compose.compose_config(single), single, slurm=False) is None


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = [claim_run_dir(tmp_path / "runs" / "now", explicit=False) for _ in range(3)]
    assert [folder.name for folder in folders] == ["now", "now-2", "now-3"]
    assert all(folder.is_dir() for folder in folders)


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = claim_run_dir(tmp_path / "run", explicit=True)
    assert claim_run_dir(folder, explicit=True) == folder, "an unfinished one may be used again"
    (folder / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="contains a finished run"):
        claim_run_dir(folder, explicit=True)


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"hydra\.run\.dir=.*cannot be created"):
        claim_run_dir(tmp_path / "file" / "run", explicit=True)


@pytest.mark.parametrize(
    "text", ["plain", "strategy=single,trainer.lr=0.1", "it's", "back\\slash", "end\\", "\\'", "with space"]
)
def test_quoted_values_survive_hydra(text: str) -> None:
    assert compose.parse_overrides([f"hydra.run.dir={compose.quote(text)}"])[0].value() == text


def test_a_run_is_evaluated_with_its_own_model_and_data() -> None:
    run = Config(
        dataclasses.replace(AlexNetConfig(), variant="original", dropout=0.25),
        ImageFilesConfig(
            "tiny_imagenet", root="/a ${b} \\${c}'s \\", stored_size=300, val_images=5, cache_limit_gb=1e-05
        ),
        ModelParallel(micro_batches=4),
        trainer=TrainerConfig(
            batch_size=7, precision="bf16", seed=3, channels_last=False, lr=9.0, trace=True
        ),
        workers=4,
    )
    stored = json.loads(json.dumps(dataclasses.asdict(run)))
    default = compose.compose_config([])
    config = evaluation_config(Path("record.json"), stored, [], 1)
    assert (config.model, config.data) == (run.model, run.data)
    options = {"batch_size": 7, "precision": "bf16", "seed": 3, "channels_last": False}
    assert config.trainer == dataclasses.replace(default.trainer, **options)
    assert config.strategy == Single() and config.cluster == default.cluster and config.workers is None
    assert evaluation_config(Path("record.json"), stored, [], 2).strategy == DataParallel()
    overrides = ["data=digits", "data.val_images=4", "trainer.precision=fp64", "strategy=model_parallel"]
    config = evaluation_config(Path("record.json"), stored, overrides, 1)
    assert (config.model, config.data) == (run.model, DataConfig("digits", val_images=4))
    assert config.trainer == dataclasses.replace(default.trainer, **{**options, "precision": "fp64"})
    assert config.strategy == ModelParallel()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None}, "record.json: model=None must be a mapping of options"),
        ({"model": {"name": "lenet"}}, "record.json: model=lenet is not known; it must be one of alexnet, "),
        ({"trainer": {"batch_sise": 3}}, "record.json: trainer.batch_sise is not a known key; trainer has "),
        (
            {"data": {"name": "digits", "val_images": "x"}},
            "record.json: data.val_images: Value 'x' of type 'str' ",
        ),
        ({"data": {"name": "digits", "val_images": 0}}, "record.json: data.val_images=0 must be at least 1"),
    ],
)
def test_a_stored_configuration_that_is_not_valid(change: dict[str, Any], sentence: str) -> None:
    stored = {**dataclasses.asdict(compose.compose_config([])), **change}
    with pytest.raises(ValueError) as caught:
        evaluation_config(Path("record.json"), stored, [], 1)
    assert str(caught.value).startswith(sentence)
