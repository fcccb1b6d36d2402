"""The options of parallel.torchrun."""

from __future__ import annotations

import pytest

from parallel.cli.torchrun import torchrun


@pytest.mark.parametrize("stated", ["--standalone", "--rdzv-backend=c10d", "--rdzv-backend=etcd-v2"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_another_rendezvous_is_refused(
    stated: str, by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if by == "environment":
        name, _, value = stated.removeprefix("--").partition("=")
        monkeypatch.setenv(f"PET_{name.replace('-', '_').upper()}", value or "1")
    with pytest.raises(SystemExit) as ended:
        torchrun([*([stated] if by == "argument" else []), "--nproc-per-node=2", "-m", "parallel.train"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {stated} must be left out: ")
