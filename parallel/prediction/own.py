"""A run's prediction of itself: what its record and its step.json hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.cluster import Cluster, Measured, open_cluster
from parallel.config import Config
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.prediction.engines import require_cost_model
from parallel.prediction.predict import predict_step
from parallel.results.formatting import seconds
from parallel.results.predicted import Predicted
from parallel.results.step_timeline import Span
from parallel.results.validation import kept_validation, read_error
from parallel.simulator.step_spans import step_spans


@dataclass(frozen=True)
class OwnPrediction:
    """The predicted times of a run, and one step of it."""

    predicted: Predicted
    spans: tuple[Span, ...]
    doubt: str
    """Why it may be wrong: what was not calibrated. "" for nothing."""
    cluster: str
    """The cluster with its fingerprint."""

    @property
    def line(self) -> str:
        """One line about it."""
        found = self.predicted
        basis = "calibrated" if found.calibrated else "not calibrated for this run"
        return (
            f"predicted: {seconds(found.epoch_s)} s an epoch, {1000 * found.step_s:.4g} ms a step "
            f"({basis}: cluster {self.cluster})"
        )


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """What is about to run."""

    config: Config
    graph: Graph
    plan: Plan | None
    steps: int
    """Steps of an epoch."""
    node_workers: Sequence[int]
    """Workers of each host."""
    hosts: Sequence[int]
    """Host of each worker."""


def predict_own(run: OwnRun) -> OwnPrediction:
    """Return the prediction of a run on its cluster: the configured one, or this machine's calibration.

    Raises `ValueError` if there is neither, if the strategy has no cost model, or if workers share a GPU.
    """
    config, workers = run.config, len(run.hosts)
    if workers > 1:
        config.cluster.require_own_gpus("a prediction")
    if run.plan is None:
        require_cost_model(config)  # before it is said that a calibration is missing
    cluster = open_cluster(
        config.cluster, workers, run.node_workers, channels_last=config.trainer.channels_last
    )
    timeline, doubt = predict_step(config, run.graph, run.plan, cluster, run.hosts)
    doubt = doubt or _other_loading(config, cluster) or _other_treatment(config)
    split, steps = timeline.split, run.steps
    validation = kept_validation(config.cluster.cache, cluster.digest)
    predicted = Predicted(
        epoch_s=steps * timeline.loaded_step_s,
        step_s=timeline.loaded_step_s,
        compute_s=steps * float(split.compute_s.mean()),
        communication_s=steps * float(split.exposed_s.mean()),
        idle_s=steps * float(split.idle_s.mean()),
        data_wait_s=max(0.0, steps * timeline.data_wait_s),
        cluster=cluster.name,
        calibrated=isinstance(cluster.compute, Measured) and not doubt,
        error=read_error(validation) if validation.is_file() else None,
    )
    return OwnPrediction(
        predicted, tuple(step_spans(timeline)), doubt, f"{cluster.name} {cluster.fingerprint}"
    )


def _other_loading(config: Config, cluster: Cluster) -> str:
    """Return a sentence if the loading that was calibrated is that of other images."""
    source = cluster.sources.get("data.per_image", "")
    images = f"{config.data.name} at {config.model.image_size} px"
    if source.startswith("measured: ") and not source.startswith(f"measured: {images}"):
        return f"cluster {cluster.name} was calibrated with the loading of other images than {images}"
    return ""


def _other_treatment(config: Config) -> str:
    """Return a sentence if ops run in another way than calibration measures them."""
    for name in ("compile", "graphs", "check_finite"):
        if getattr(config.trainer, name):
            return f"calibration measures ops without trainer.{name}=true"
    return ""
