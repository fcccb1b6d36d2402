"""Validation: after each epoch of a run, and again with weights from disk; and classes of single
images."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parallel.config import Searched
from parallel.data import ArrayImages
from parallel.data.decode import decode
from parallel.data.loader import Loader, LoaderOptions
from parallel.models import build_model
from parallel.program.precision import DTYPES
from parallel.results.json_files import naming
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.training.engines import open_engine
from parallel.training.job import Job
from parallel.training.plan_resolution import resolve_plan
from parallel.training.saved_weights import SavedWeights, refuse_other_model

TOP = 5
"""Classes that `classify` returns for an image."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Results on the validation images."""

    loss: float
    """Mean over the images."""
    top1: float
    """Fraction, 0 to 1."""
    top5: float


def open_loader(job: Job, engine: Engine, world: World, *, train: bool) -> Loader:
    """Return the loader of the training or validation images that a worker needs."""
    config, data = job.config, job.data
    return Loader(
        data.train if train else data.val,
        LoaderOptions.from_config(config, data, DTYPES[config.trainer.precision]),
        train=train,
        image_positions=engine.image_positions,
        label_positions=engine.label_positions,
        device=world.device,
        arrived=engine.clock.arrived,
    )


def validate(engine: Engine, world: World, loader: Loader) -> Scores:
    """Return the scores on all images of a validation loader. Call it on all workers."""
    world.watch.at("the validation")
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in loader.epoch(0):
        sums += engine.evaluate_step(batch.images, batch.labels)
    loss, top1, top5, images = world.sum(sums).tolist()
    return Scores(loss / images, top1 / images, top5 / images)


def evaluate(job: Job, weights: SavedWeights) -> Scores:
    """Return the scores of a model from disk, on the workers that torchrun started.

    Raises `ValueError` if the weights are of another model, or the plan does not fit.
    """
    refuse_other_model(weights, job)
    strategy = job.config.strategy
    with open_world(job.config.cluster, precision=job.config.trainer.precision) as world:
        if isinstance(strategy, Searched):
            job = dataclasses.replace(job, plan=resolve_plan(job.config, strategy, job.graph, world))
        trainer = dataclasses.replace(job.config.trainer, graphs=False)  # no training step is captured
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, trainer=trainer))
        engine = open_engine(job, world)
        engine.load(weights.read)
        world.started()
        return validate(engine, world, open_loader(job, engine, world, train=False))


def classify(job: Job, weights: SavedWeights, paths: Sequence[Path]) -> list[list[tuple[str, float]]]:
    """Return the most probable classes of each image file and their probabilities, on one worker.

    Images are prepared as those of the validation. Raises `ValueError` if the weights are of
    another model, and that names the file if it is missing or no image.
    """
    refuse_other_model(weights, job)
    config, data = job.config, job.data
    pixels = np.stack([_read_image(path, data.val.size) for path in paths])
    dtype = DTYPES[config.trainer.precision]
    options = LoaderOptions.from_config(config, data, dtype)
    options = dataclasses.replace(options, batch_size=min(len(paths), options.batch_size))
    rows = range(options.batch_size)
    with open_world(config.cluster, precision=config.trainer.precision) as world:
        loader = Loader(
            ArrayImages(pixels, np.zeros(len(paths), dtype=np.int64)),
            options,
            train=False,
            image_positions=rows,
            label_positions=rows,
            device=world.device,
        )
        model = build_model(config.model, data.num_classes, config.trainer.seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in weights.shapes:
                    tensor.copy_(weights.tensor(name))
        model = model.to(world.device, dtype).eval()
        autocast = torch.autocast(
            world.device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16"
        )
        with torch.no_grad(), autocast:
            logits = torch.cat([model(batch.images) for batch in loader.epoch(0)])
    return [_most_probable(row, data.class_names) for row in logits[: len(paths)].double().cpu()]


def _read_image(path: Path, side: int) -> np.ndarray:
    """Return the pixels of an image file as data sets store them: uint8 [side, side, 3]."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    with naming(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data, which is not used
        return decode(content, side)


def _most_probable(logits: Tensor, names: Sequence[str]) -> list[tuple[str, float]]:
    top = logits.softmax(dim=0).topk(min(TOP, len(names)))
    return [(names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
