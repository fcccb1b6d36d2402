"""Train one model with one strategy, or sweep over several.

python -m parallel.train strategy=single
python -m parallel.torchrun --nproc-per-node 2 -m parallel.train strategy=one_weird_trick data=digits trainer.epochs=2
python -m parallel.train -m strategy=single,data_parallel hydra/launcher=torchrun workers=2
"""

from __future__ import annotations

from pathlib import Path

from parallel.cli import application
from parallel.config import Config


def train(config: Config, run_dir: Path) -> None:
    """Train one run. The engines are imported only after the configuration has been validated."""
    from parallel.training.trainer import train as run

    run(config, run_dir)


if __name__ == "__main__":
    application.main(train)
