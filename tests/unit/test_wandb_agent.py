"""The sweep of W&B in docs/scripts, with the command line that W&B's agent makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from parallel.cli.compose import compose_node, to_config
from parallel.cli.hydra_private import parse_arguments
from parallel.cli.sweep import claim_folder

SWEEP = Path(__file__).parents[2] / "docs" / "scripts" / "wandb_sweep.yaml"


def command(parameters: dict[str, object]) -> list[str]:
    """Return the command line as `wandb_agent.Agent._command_run` puts it together."""
    wanted = {"args": {name: {"value": value} for name, value in parameters.items()}}
    values = utils.create_sweep_command_args(wanted) | {"env": ["env"], "interpreter": ["python"]}
    words: list[str] = []
    for word in utils.create_sweep_command(yaml.safe_load(SWEEP.read_text())["command"]):
        words += values[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    return words


def test_the_agents_command_is_a_sweep_of_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agent123")
    words = command({"strategy": "one_weird_trick", "trainer.lr": 0.005, "workers": 2})
    assert words[:4] == ["env", "python", "-m", "parallel.train"]
    arguments = parse_arguments(words[4:])
    assert arguments.multirun
    node = compose_node(arguments.overrides)
    assert node.hydra.sweep.subdir == "agent123"
    config = to_config(node)
    assert (config.strategy.name, config.trainer.lr, config.workers) == ("one_weird_trick", 0.005, 2)


def test_every_parameter_of_the_example_is_an_override() -> None:
    for name, choices in yaml.safe_load(SWEEP.read_text())["parameters"].items():
        for value in choices.get("values", [choices.get("value")]):
            compose_node(command({name: value})[6:])


def test_an_agents_run_has_one_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: set[Path] = set()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    claim_folder(tmp_path / "a", folders)
    with pytest.raises(ValueError, match="WANDB_SWEEP_ID is set"):
        claim_folder(tmp_path / "b", folders)
