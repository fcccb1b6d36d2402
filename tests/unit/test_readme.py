"""The commands of README.md name modules and settings that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex

import pytest

from parallel.cli.combinations import combinations
from parallel.cli.compose import compose_config
from tests.support.commands import ROOT

OWN_KEYS = ("steps=", "clusters=", "epoch_s=", "calibrate.", "--svg", "--trace", "step.svg", "step.json")
"""Arguments of commands that are not part of the configuration."""


def commands() -> list[str]:
    """The commands of the page, without what they are started with: `parallel.train strategy=single`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    .*?-m (parallel\..*)$", text, re.MULTILINE)
    return [re.sub(r"^parallel\.(torchrun|emulate) .*-m (?=parallel)", "", line) for line in lines]


def test_the_page_has_commands_of_all_kinds() -> None:
    modules = {command.split()[0] for command in commands()}
    assert len(commands()) > 15 and {"parallel.train", "parallel.compare", "parallel.simulate"} <= modules


@pytest.mark.parametrize("command", [command for command in commands() if "…" not in command])
def test_a_command_is_valid(command: str) -> None:
    module, *arguments = shlex.split(command)
    assert importlib.util.find_spec(module) is not None
    if module in ("parallel.compare", "parallel.evaluate"):
        return
    own = (*OWN_KEYS, "workers=") if module == "parallel.recommend" else OWN_KEYS
    overrides = [word for word in arguments if not word.startswith(own)]
    if "-m" not in overrides:
        compose_config(overrides)
        return
    overrides.remove("-m")
    reasons = {combination.reason for combination in combinations(overrides)[1]}
    assert reasons == {""}
