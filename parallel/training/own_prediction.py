"""Worker 0 predicts the run before its first step; nothing that goes wrong in it ends the run."""

from __future__ import annotations

import warnings
from pathlib import Path

from parallel.config import Config, PeerConfig, one_line
from parallel.config.stderr import print_to_stderr
from parallel.prediction.basis import calibration_command
from parallel.prediction.own import OwnPrediction, OwnRun, predict_own
from parallel.results import step_timeline
from parallel.results.formatting import seconds
from parallel.results.records import Epoch
from parallel.results.statistics import summarise
from parallel.results.step_timeline import Span, StepTimelines
from parallel.runtime.communication.world import World
from parallel.training.job import Job


def predict_before_training(job: Job, world: World, steps: int) -> OwnPrediction | None:
    """Return the prediction of a run with `steps` steps an epoch, and print it; None, and the reason
    printed, if there is none."""
    run = OwnRun(
        config=job.config,
        graph=job.graph,
        plan=job.plan,
        steps=steps,
        node_workers=world.node_workers,
        hosts=world.host_of,
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = predict_own(run)
    except (ValueError, OSError) as error:
        print(no_prediction(job.config, world.size, error), flush=True)
        return None
    for doubt in dict.fromkeys([*(str(warning.message) for warning in caught), found.doubt]):
        if doubt:
            print_to_stderr(f"warning: prediction: {one_line(ValueError(doubt))}")
    print(found.line, flush=True)
    return found


def no_prediction(config: Config, workers: int, error: Exception) -> str:
    """Return one line: why there is no prediction and, where that would help, how to calibrate."""
    strategy = config.strategy
    no_model = isinstance(strategy, PeerConfig) and strategy.all_reduce_mb is None
    if (
        no_model
        or config.cluster.share_gpu
        or config.cluster.file is not None
        or config.cluster.hardware is not None
    ):
        return f"no prediction: {one_line(error)}"
    reason = one_line(error).partition(": run `")[0]
    return f"no prediction: {reason}; calibrate with: {calibration_command(config, workers)}"


def measured_line(found: OwnPrediction, epochs: tuple[Epoch, ...]) -> str | None:
    """Return the measured time of an epoch beside the predicted one; None if no epoch was timed."""
    times = [epoch.seconds for epoch in epochs if epoch.timed]
    if not times:
        return None
    median = summarise(times).median
    return (
        f"measured: {seconds(median)} s an epoch, predicted {seconds(found.predicted.epoch_s)}: "
        f"{median / found.predicted.epoch_s:.3f} × the prediction"
    )


def write_step(run_dir: Path, measured: tuple[Span, ...], found: OwnPrediction | None) -> None:
    """Write step.json, unless there is neither a measured nor a predicted step. A full disk is told; the
    run goes on."""
    timelines = StepTimelines(measured, () if found is None else found.spans)
    if not timelines.measured and not timelines.predicted:
        return
    try:
        step_timeline.write(run_dir / step_timeline.FILE, timelines)
    except OSError as error:
        print_to_stderr(f"warning: {step_timeline.FILE} was not written: {error.strerror}")
