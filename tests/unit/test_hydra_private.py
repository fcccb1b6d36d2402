"""Private interfaces of Hydra that the command line uses exist and have the same meaning."""

from __future__ import annotations

import warnings

import pytest
from hydra.core.config_store import ConfigStore

from parallel.cli.compose import compose_node
from parallel.cli.hydra_private import parse_arguments
from parallel.cli.schema import register_schema

REFUSED = {
    "config_name": "other",
    "config_path": "folder",
    "config_dir": "folder",
    "experimental_rerun": "job.pickle",
}


def test_flags_are_told_from_overrides() -> None:
    args = parse_arguments(["-m", "strategy=single,ddp", "workers=2"])
    assert args.multirun and args.overrides == ["strategy=single,ddp", "workers=2"]
    plain = parse_arguments(["workers=2"])
    assert not any(
        (plain.multirun, plain.help, plain.hydra_help, plain.cfg, plain.info, plain.shell_completion)
    )
    assert [getattr(plain, name) for name in REFUSED] == [None] * len(REFUSED)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--help", "help", True),
        ("--hydra-help", "hydra_help", True),
        ("--cfg=job", "cfg", "job"),
        ("--info", "info", "all"),
        ("--shell-completion", "shell_completion", True),
        *((f"--{name.replace('_', '-')}={value}", name, value) for name, value in REFUSED.items()),
    ],
)
def test_every_flag_that_is_read(flag: str, name: str, value: object) -> None:
    assert getattr(parse_arguments([flag]), name) == value


def test_an_invalid_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--none-such"])
    assert ended.value.code == 2 and "--none-such" in capsys.readouterr().err


def test_the_launcher_of_another_plugin_with_our_name() -> None:
    theirs = {"_target_": "submitit", "timeout_min": 5}
    ConfigStore.instance().store(
        group="hydra/launcher", name="submitit_slurm", node=theirs, provider="submitit"
    )
    register_schema.cache_clear()  # as in a process that has imported the other plugin first
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Hydra warns if it checks our configuration against theirs
        node = compose_node(["hydra/launcher=submitit_slurm", "hydra.launcher.poll_s=1"])
    assert node.hydra.launcher._target_ == "hydra_plugins.slurm_launcher.launcher.SlurmLauncher"
