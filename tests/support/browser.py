"""Pages in a headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
FRAME = """<!doctype html><meta charset="utf-8">
<iframe style="width:{width}px;height:2000px;border:0" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, width = frame.clientWidth;
  let found;
  try {{ found = (() => {{ {script} }})(); }} catch (error) {{ found = {{ error: String(error) }}; }}
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def in_browser(page: str, width: int, script: str, folder: Path) -> Any:
    """Return what `script`, the body of a function, returns in a page that is `width` pixels wide.

    The script has `page`, the document, and `width`. Skips the test without Chromium.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"needs Chromium: none of {', '.join(NAMES)} is installed")
    file = folder / "frame.html"
    # `Markup` would escape what `escape` replaces.
    file.write_text(FRAME.format(width=width, page=escape(str(page)), script=script), encoding="utf-8")
    command = [browser, *OFFLINE, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(unescape(dom.partition('<pre id="found">')[2].partition("</pre>")[0]))
    assert not (isinstance(found, dict) and "error" in found), found
    return found
