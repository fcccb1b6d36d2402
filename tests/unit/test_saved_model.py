"""The weights of a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parallel.checkpoints.checkpoint import Checkpoint, folder_name
from parallel.checkpoints.piece import Piece, Place
from parallel.config import Config, DataConfig, ModelConfig
from parallel.data import DataSet
from parallel.graph.box import Box
from parallel.graph.memory_order import in_memory_order
from parallel.models import MODELS, Model, build_model
from parallel.models.resnet import ResNet18Config
from parallel.strategies import Single
from parallel.training.checkpointing import write_model
from parallel.training.job import Job
from tests.support.made_checkpoints import STEPS, complete, made_manifest, savers
from tests.support.small_models import CLASSES, tower


def checkpoint_of(model: torch.nn.Module, folder: Path) -> Checkpoint:
    """Save a model as a run on one worker does, without the batches that batch norms count."""
    pieces = []
    kinds = {name: "weights" for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            shape = tuple(tensor.shape)
            last = kinds.get(name) == "weights"
            place = Place(
                kinds.get(name, "buffers"), name, shape, Box.whole(shape).spans, last, 0, tensor.numel()
            )
            pieces.append(Piece(place, in_memory_order(tensor, last).reshape(-1)))
    (one,) = savers(folder, 1)
    one.save(pieces, STEPS, made_manifest())
    assert complete([one]) == [""]
    return Checkpoint(folder / folder_name(STEPS))


@pytest.mark.parametrize("name", ["tower", "resnet18"])
def test_a_plain_model_loads_the_weights_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options: ModelConfig = ResNet18Config(image_size=32)
    if name == "tower":
        options = ModelConfig("tower")
        monkeypatch.setitem(MODELS, "tower", Model(options, lambda _, classes: tower()))
    config = Config(options, DataConfig("digits"), Single())
    data = DataSet("digits", CLASSES, tuple("abcde"), *[None] * 2, (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    job = Job(config, 1, data, None, None)  # type: ignore[arg-type]
    trained = build_model(options, CLASSES, seed=3)
    for buffer in trained.buffers():
        buffer.copy_(torch.rand(buffer.shape) if buffer.is_floating_point() else torch.tensor(STEPS))
    write_model(checkpoint_of(trained, tmp_path), job, tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", folder_name(STEPS)]
    plain = build_model(options, CLASSES, seed=4)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    counts = [name for name, _ in plain.named_buffers() if name.endswith("num_batches_tracked")]
    assert (len(counts) > 0) == (name == "resnet18")
    for key, tensor in trained.state_dict().items():
        assert torch.equal(plain.state_dict()[key], tensor), key
