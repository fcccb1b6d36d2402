"""The traced network: its ops, their shapes, and for each op the input box that an output box needs."""

from __future__ import annotations

from parallel.graph.graph import INPUT, LOSS, Graph, trace, whole_part

__all__ = ["INPUT", "LOSS", "Graph", "trace", "whole_part"]
