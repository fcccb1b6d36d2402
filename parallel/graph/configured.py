"""Graphs of configured models, traced on the meta device without allocating weights."""

from __future__ import annotations

import torch

from parallel.config import Config, ModelConfig
from parallel.data import known_classes
from parallel.graph.graph import Graph
from parallel.graph.tracing import trace
from parallel.models import build_model


def model_graph(model: ModelConfig, num_classes: int) -> Graph:
    """Return the graph of a model for `num_classes` classes."""
    with torch.device("meta"):
        return trace(build_model(model, num_classes, seed=0), (3, model.image_size, model.image_size))


def classes_of(config: Config) -> int:
    """Return the configured number of classes, or else that of the data set."""
    return config.model.num_classes or known_classes(config.data)


def graph_of(config: Config) -> Graph:
    """Return the graph of the configured model without opening the data set."""
    return model_graph(config.model, classes_of(config))
