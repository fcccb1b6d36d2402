"""The mutations of `scripts/mutations.py` match the code; a change of such a line must update its
mutation."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_the_text_to_change_is_there_once(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1, mutation
    assert mutation.new != mutation.old
