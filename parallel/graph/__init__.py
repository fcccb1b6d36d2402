"""The traced network: its ops, their shapes, and for each op the input box that an output box
needs."""

from __future__ import annotations

from parallel.graph.graph import INPUT, LOSS, Edge, Graph, whole_part
from parallel.graph.tracing import trace

__all__ = ["INPUT", "LOSS", "Edge", "Graph", "trace", "whole_part"]
