"""Section `prediction`: calibrate this machine, then compare predicted and measured steps.

The calibration measures one of the batch sizes. With one GPU, plans differ only in their micro-batches; with
several, every worker has one, and all kinds of plans are compared.
"""

from __future__ import annotations

import torch

from gpu_sections.machine import clocks_text
from gpu_sections.section import Ending, Setting, code_block, markdown_row, run_command, table_head
from parallel.results.validation import ValidatedPlan, read_validation, statistics

TARGET = 0.05
"""Mean relative error of predicted steps."""
MOST_WORKERS = 8
COLUMNS = ("plan", "batch", "predicted", "measured", "error")


def run(setting: Setting) -> Ending:
    """Calibrate and validate."""
    gpus = 0 if setting.tiny else torch.cuda.device_count()
    workers = max(1, min(gpus, MOST_WORKERS))
    precision = "tf32" if gpus and torch.cuda.is_tf32_supported() else "fp32"
    batch, others, side = (
        (8, (4,), 64) if setting.tiny else (512 * workers, (256 * workers, 384 * workers), 224)
    )
    budget_s = 2 if setting.tiny else max(20, round(setting.left_s / 4))
    shared = [
        f"workers={workers}",
        "data=synthetic",
        f"model.image_size={side}",
        f"trainer.precision={precision}",
        f"cluster.device={setting.device}",
        f"cluster.cache={setting.folder}",
    ]
    run_of = ("-m", "parallel.torchrun", "--nproc-per-node", str(workers), "-m")
    measured = (f"trainer.batch_size={batch}", f"calibrate.budget_s={budget_s}")
    done = run_command(setting, *run_of, "parallel.calibrate", *shared, *measured)
    setting.write(*code_block(done.stdout))
    if done.returncode:
        return Ending.FAILED
    sizes = ",".join(map(str, (batch, *others)))
    blocks, random = (1, 0) if setting.tiny else (5, 3)
    options = (
        f"validate.batch_sizes={sizes}",
        f"validate.blocks={blocks}",
        f"validate.random={random}",
        "validate.runners_up=2",
        f"validate.steps={1 if setting.tiny else 10}",
        f"validate.out={setting.folder}",
    )
    done = run_command(setting, *run_of, "parallel.validate", *shared, *options)
    clocks = clocks_text(torch.device(setting.device))
    if done.returncode:
        setting.write(*code_block(done.stdout))
        return Ending.FAILED
    validation = read_validation(setting.folder / f"validation-{workers}.json")
    mean = statistics(validation.rows).mean
    setting.write(
        *rows_of(validation.rows), "", f"Mean error {mean:.1%}; target: at most {TARGET:.0%}.", "", *clocks
    )
    return Ending.PASSED if mean <= TARGET or setting.tiny else Ending.MISSED


def rows_of(rows: tuple[ValidatedPlan, ...]) -> list[str]:
    """Return a table of predicted and measured steps."""
    cells = (
        (
            f"{row.name}{' (held out)' * row.held_out}",
            str(row.batch_size),
            f"{1000 * row.predicted_s:.3g} ms",
            f"{1000 * row.measured_s:.3g} ms",
            f"{row.error:+.1%}",
        )
        for row in rows
    )
    return [*table_head(COLUMNS), *map(markdown_row, cells)]
