"""The fastest plan for a model, a batch and a cluster, with a proof of how good it is."""

from __future__ import annotations

from parallel.search.search import Found, Progress, SearchConfig, search, silent

__all__ = ["Found", "Progress", "SearchConfig", "search", "silent"]
