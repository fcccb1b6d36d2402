"""parallel.train with one thing changed, as ALTER says.

    fail       rank 1 raises in the second step: the others wait for it in a gradient sync
    fullgraph  torch.compile refuses to leave a graph, and needs no C++ compiler
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from parallel import trainer
from parallel.config import Config
from parallel.launch import hydra_app
from parallel.runtime.runtime import Runtime


class Failing(Runtime):
    def train_step(self, *args: Any, step: int, lr: float) -> Any:
        if step == 1 and os.environ["RANK"] == "1":
            raise RuntimeError("boom in step 1")
        return super().train_step(*args, step=step, lr=lr)


def train(config: Config, run_dir: Path) -> None:
    if os.environ["ALTER"] == "fail":
        trainer.Runtime = Failing  # type: ignore[misc]
    else:
        torch.compile = partial(torch.compile, backend="aot_eager", fullgraph=True)
    trainer.train(config, run_dir)


if __name__ == "__main__":
    hydra_app.main(train)
