"""Evaluate the weights of a run: on its validation images again, or on single images.

    python -m parallel.evaluate RUN [override …]
    python -m parallel.evaluate RUN image.jpg [image.png …] [override …]

    python -m parallel.evaluate runs/compare/strategy=one_weird_trick
    python -m parallel.torchrun --nproc-per-node 2 -m parallel.evaluate runs/mine strategy=model_parallel
    python -m parallel.evaluate runs/mine/checkpoints/step-00000132 trainer.batch_size=8
    python -m parallel.evaluate runs/mine cat.jpg dog.jpg

RUN is a run directory, a checkpoint or a .safetensors file beside a record. A run directory stands
for its newest whole checkpoint or, without one, for its model.safetensors. Model, data, batch size
and precision are those of the run; overrides replace them. The strategy is single on one worker and
data_parallel on several, whatever the run had. Prints the loss and the top-1 and top-5 accuracy on
the validation images, and those that the run had. With images, prints the five most probable
classes of each; this takes one worker.

Exit code 2 for invalid input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from parallel.cli.agreement import agree
from parallel.cli.application import fit_world
from parallel.cli.command import HELP, Command, open_console
from parallel.cli.ranked import run_ranked
from parallel.cli.ranks import Ranks
from parallel.cli.slurm_ranks import in_slurm
from parallel.cli.stored import evaluation_config
from parallel.cli.tables import add_row, plain_table, print_lines
from parallel.config import require
from parallel.results.formatting import count, number, percent
from parallel.training.evaluation import classify, evaluate
from parallel.training.job import Job, prepare
from parallel.training.saved_weights import SavedWeights, find_weights, open_weights

COMMAND = Command(__doc__)


def run(ranks: Ranks) -> None:
    """Evaluate; worker 0 prints the results."""
    named = COMMAND.read(sys.argv[1:]).rest
    require(len(named) > 0, "RUN", None, "must be a run directory, a checkpoint or a .safetensors file")
    run_path, *others = named
    images = [Path(other) for other in others if "=" not in other or Path(other).is_file()]
    overrides = [other for other in others if Path(other) not in images]
    found = ranks.share("weights", lambda: str(find_weights(Path(run_path))))
    weights = open_weights(Path(found))
    config = evaluation_config(weights.described_in, weights.config, overrides, ranks.world)
    config = fit_world(config, ranks.world, ranks.launched, sweeps=False, slurm=in_slurm(ranks.environment))
    require(
        not images or config.workers == 1, "workers", config.workers, "must be 1 to classify single images"
    )
    agree(ranks, config)
    job = prepare(config, verbose=ranks.rank == 0)
    console = open_console(COMMAND.width)
    if images:
        print_classes(job, weights, images, console)
    else:
        print_scores(job, weights, ranks.rank, console)


def print_scores(job: Job, weights: SavedWeights, rank: int, console: Console) -> None:
    """Print the scores, and those that the run had with these weights."""
    scores = evaluate(job, weights)
    if rank > 0:
        return
    print_lines(
        console, str(weights.path), f"{job.label}, {count(job.workers, 'worker')}, data={job.data.name}"
    )
    table = plain_table(("", "images", "loss", "top-1", "top-5"), words=("",))
    images = f"{len(job.data.val):,}"
    add_row(table, ("now", images, f"{scores.loss:.4f}", percent(scores.top1), percent(scores.top5)))
    before = weights.epoch
    if before is not None:
        cells = number(before.val_loss, ".4f"), percent(before.val_top1), percent(before.val_top5)
        add_row(table, (f"after epoch {before.epoch}", "", *cells))
    console.print(table)


def print_classes(job: Job, weights: SavedWeights, images: Sequence[Path], console: Console) -> None:
    """Print the most probable classes of each image."""
    for image, classes in zip(images, classify(job, weights, images), strict=True):
        print_lines(console, str(image), *(f"  {percent(p):>8}  {name}" for name, p in classes))


if __name__ == "__main__":
    if set(HELP) & set(sys.argv[1:]):
        print(__doc__, end="")
    else:
        run_ranked(run)
