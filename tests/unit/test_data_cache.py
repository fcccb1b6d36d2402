import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parallel.config import ImageFilesConfig
from parallel.data import build
from parallel.data import cache as caching
from parallel.data.cache import CachedImages, FileImages, ImageFiles, open_images
from parallel.data.decode import decode
from scripts.write_image_layouts import Variety, digit_pictures, encode_train

COUNT, SIZE = 300, 24


def write_files(root: Path, variety: Variety | None = None) -> ImageFiles:
    root.mkdir(parents=True)
    labels = np.empty(COUNT, dtype=np.int64)
    for row, (data, label) in enumerate(
        encode_train(digit_pictures(), COUNT, variety or Variety(sides=(24, 40)))
    ):
        (root / f"{row}.jpg").write_bytes(data)
        labels[row] = label
    return ImageFiles(root, tuple(f"{row}.jpg" for row in range(COUNT)), labels)


@pytest.fixture
def source(tmp_path: Path) -> ImageFiles:
    return write_files(tmp_path / "images")


@pytest.fixture
def data(tmp_path: Path) -> ImageFilesConfig:
    return ImageFilesConfig(name="imagenet", cache=str(tmp_path / "cache"), decoders=2)


def opened(source: ImageFiles, data: ImageFilesConfig, size: int = SIZE) -> CachedImages | FileImages:
    return open_images("set-train", source, size, data, verbose=True)


def caches(data: ImageFilesConfig) -> set[str]:
    return {path.name for path in Path(data.cache).iterdir() if path.is_dir()}


def expected(source: ImageFiles, rows: np.ndarray) -> np.ndarray:
    return np.stack([decode((source.root / source.files[row]).read_bytes(), SIZE) for row in rows])


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def test_reads_the_decoded_files_in_any_order(source: ImageFiles, data: ImageFilesConfig) -> None:
    images = opened(source, data)
    rows = np.array([299, 0, 64, 63, 0])
    assert isinstance(images, CachedImages) and len(images) == COUNT and images.size == SIZE
    assert (images.read(rows) == expected(source, rows)).all()
    assert (images.labels == source.labels).all()


def test_is_built_once(source: ImageFiles, data: ImageFilesConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(source, data)
    monkeypatch.setattr(caching, "decode_all", None)  # would be called
    rows = np.arange(COUNT)
    assert (opened(source, data).read(rows) == first.read(rows)).all()


def test_other_settings_or_other_files_make_another_cache(source: ImageFiles, data: ImageFilesConfig) -> None:
    opened(source, data)
    opened(source, data, size=SIZE + 1)
    assert len(caches(data)) == 2
    changed = source.root / "7.jpg"
    changed.write_bytes((source.root / "8.jpg").read_bytes())
    images = opened(source, data)
    assert len(caches(data)) == 3
    assert (images.read(np.array([7])) == images.read(np.array([8]))).all()
    part = source.take(np.arange(0, COUNT, 2))
    assert len(opened(part, data)) == COUNT // 2 and len(caches(data)) == 4


def test_broken_images_are_skipped_and_listed(
    tmp_path: Path, data: ImageFilesConfig, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_files(tmp_path / "images", Variety(sides=(24, 40), broken=3))
    with caplog.at_level(logging.WARNING):
        images = opened(source, data)
    (folder,) = caches(data)
    path = Path(data.cache) / folder / "cache.json"
    assert [entry["file"] for entry in json.loads(path.read_text())["broken"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        f"set-train: 3 of 300 images are broken and skipped; {path} lists them"
    ]
    assert len(images) == COUNT - 3 and (images.labels == source.labels[3:]).all()
    assert (images.read(np.array([0, 296])) == expected(source, np.array([3, 299]))).all()


@pytest.mark.parametrize("limit", [64.0, 0.0])
def test_more_than_one_percent_broken_is_an_error(
    limit: float, tmp_path: Path, data: ImageFilesConfig
) -> None:
    source = write_files(tmp_path / "images", Variety(sides=(24, 40), broken=4))
    data = dataclasses.replace(data, cache_limit_gb=limit)
    with pytest.raises(
        ValueError, match=r"data.root=.* too many broken images: at least 4 of 300 .*; one is 0.jpg \("
    ):
        opened(source, data)
    assert caches(data) == set()


def test_too_large_a_set_stays_jpeg(
    tmp_path: Path, data: ImageFilesConfig, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_files(tmp_path / "images", Variety(sides=(24, 40), broken=3))
    data = dataclasses.replace(data, cache_limit_gb=COUNT * SIZE * SIZE * 3 / 1e9)
    assert isinstance(opened(source, data), CachedImages)  # just fits
    data = dataclasses.replace(data, cache_limit_gb=0.999 * data.cache_limit_gb)
    with caplog.at_level(logging.WARNING):
        images = opened(source, data)
    assert isinstance(images, FileImages)
    assert (
        sum(
            "the images stay JPEG and are decoded by batch" in record.getMessage()
            for record in caplog.records
        )
        == 1
    )
    assert len(images) == COUNT - 3 and (images.labels == source.labels[3:]).all()
    assert (images.read(np.array([296, 0, 0])) == expected(source, np.array([299, 3, 3]))).all()
    (source.root / "299.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="299.jpg is broken, but was not when the cache was built"):
        images.read(np.array([296]))


@pytest.mark.parametrize("offset", [130, COUNT * SIZE * SIZE * 3 // 2, -1])
def test_altered_pixels_are_refused(offset: int, source: ImageFiles, data: ImageFilesConfig) -> None:
    opened(source, data)
    (folder,) = caches(data)
    path = Path(data.cache) / folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"the cache .* is damaged \(the checksum of images.npy is not the one"
    ):
        opened(source, data)


def test_one_process_of_a_host_checks_the_pixels(
    source: ImageFiles, data: ImageFilesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(source, data)
    monkeypatch.setattr(caching, "checksum", lambda path: "another")
    monkeypatch.setenv("LOCAL_RANK", "1")
    opened(source, data)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="the checksum of images.npy"):
        opened(source, data)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1001, 5000])
def test_the_checksum_covers_length_and_order(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "CHUNK_BYTES", chunk)
    content = bytes(range(250)) * 4 + b"\0"
    contents = [content, content[:-1], content + b"\0", content[1:] + content[:1], b""]
    found = set()
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        found.add(caching.checksum(tmp_path / "file"))
    assert len(found) == len(contents)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": COUNT + 1}, "images=301 must be 300"),
        ({"checksum": None}, "checksum of images.npy"),
        ({"checksum": 3}, "checksum=3 must be text or null"),
        ({"broken": [{"row": COUNT, "file": "x", "reason": "y"}]}, "broken.row=300 must be"),
        ({"broken": [3]}, r"broken\[0\]=3 must be a mapping"),
        ({"surprise": 1}, "has unknown surprise"),
    ],
)
def test_altered_metadata_is_refused(
    change: dict[str, object], said: str, source: ImageFiles, data: ImageFilesConfig
) -> None:
    opened(source, data)
    (folder,) = caches(data)
    path = Path(data.cache) / folder / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"the cache .* is damaged .*{said}"):
        opened(source, data)


def test_damaged_cache_is_refused(source: ImageFiles, data: ImageFilesConfig) -> None:
    opened(source, data)
    (folder,) = caches(data)
    os.truncate(Path(data.cache) / folder / "images.npy", 1000)
    with pytest.raises(ValueError, match="the cache .* is damaged .*: remove it"):
        opened(source, data)


def test_errors_leave_nothing_behind(source: ImageFiles, data: ImageFilesConfig, tmp_path: Path) -> None:
    unreadable = source.root / "5.jpg"
    unreadable.unlink()
    unreadable.mkdir()  # can't be read as a file, whoever tries: permissions would not stop root
    with pytest.raises(OSError, match="Is a directory.*5.jpg"):
        opened(source, data)
    assert caches(data) == set()
    data = dataclasses.replace(data, cache=str(tmp_path / "file"))
    Path(data.cache).write_text("")
    with pytest.raises(ValueError, match="data.cache=.* can't be written"):
        opened(source, data)


def test_no_room_on_the_disk(
    source: ImageFiles, data: ImageFilesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": COUNT * SIZE * SIZE * 3 - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="data.cache=.* has 0.0 GB free and the decoded images take"):
        opened(source, data)
    assert caches(data) == set()


def test_a_decoder_that_dies_is_an_error(
    source: ImageFiles, data: ImageFilesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = build.Decoder.decode

    def kill_and_decode(decoder: build.Decoder, start: int, files: list[str]) -> build.Broken:
        if start >= 128:
            decoder._process.kill()
        return decode(decoder, start, files)

    monkeypatch.setattr(build.Decoder, "decode", kill_and_decode)
    with pytest.raises(RuntimeError, match="a decoder process ended with exit code -9"):
        opened(source, data)
    assert caches(data) == set()


def test_decoder_processes_import_no_torch() -> None:
    code = "import sys, parallel.data.decoder; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )


OPEN_IN_A_PROCESS = """
import logging, sys, time
from pathlib import Path
import numpy as np
from parallel.config import ImageFilesConfig
from parallel.data import build, cache
logging.basicConfig(level=logging.INFO)
root, folder, count, size, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
tell = cache._tell_done
def slow(fd, done):
    tell(fd, done)
    time.sleep(float(pause) if done else 0)
cache._tell_done = slow
files = cache.ImageFiles(root, tuple(f"{row}.jpg" for row in range(count)), np.zeros(count, dtype=np.int64))
data = ImageFilesConfig(name="imagenet", cache=folder, decoders=2)
print(cache.open_images("set-train", files, size, data, verbose=True).read(np.arange(count)).sum())
"""


def start(source: ImageFiles, data: ImageFilesConfig, pause: float) -> subprocess.Popen[str]:
    """Start a process that opens the cache and waits `pause` seconds after every chunk that it
    builds."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            OPEN_IN_A_PROCESS,
            str(source.root),
            data.cache,
            str(COUNT),
            str(SIZE),
            str(pause),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_one_builds_and_the_others_wait(
    source: ImageFiles, data: ImageFilesConfig
) -> None:
    processes = [start(source, data, pause=0.15) for _ in range(3)]
    answers = [process.communicate(timeout=300) for process in processes]
    assert len({out for out, _ in answers}) == 1 and all(process.returncode == 0 for process in processes)
    assert sum(f"{COUNT} images into" in said for _, said in answers) == 1
    assert int(answers[0][0]) == expected(source, np.arange(COUNT)).sum()
    assert len(caches(data)) == 1


def half_built(source: ImageFiles, data: ImageFilesConfig) -> subprocess.Popen[str]:
    """Start a process that stops in the middle of a build."""
    process = start(source, data, pause=1000)
    wait_for(
        lambda: any(path.read_text() not in ("", "0") for path in Path(data.cache).glob("*.lock")), "a chunk"
    )
    assert [name.rpartition(".tmp-")[2] for name in caches(data)] == [str(process.pid)]
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Return whether a process runs. A zombie does not: an orphan remains one without an init
    process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_builder_is_replaced(source: ImageFiles, data: ImageFilesConfig) -> None:
    builder = half_built(source, data)
    decoders = children(builder.pid)
    waiter = start(source, data, pause=0)
    assert waiter.stderr is not None and "waiting" in waiter.stderr.readline()
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    out, said = waiter.communicate(timeout=300)
    assert waiter.returncode == 0 and "images into" in said
    assert int(out) == expected(source, np.arange(COUNT)).sum()
    (name,) = caches(data)  # also: the remains of the dead process are removed
    assert ".tmp-" not in name
    assert len(decoders) == 2
    wait_for(lambda: not any(map(is_running, decoders)), "the decoders to end with their parent")


def test_an_interrupted_builder_cleans_up(source: ImageFiles, data: ImageFilesConfig) -> None:
    builder = half_built(source, data)
    builder.send_signal(signal.SIGINT)
    _, said = builder.communicate(timeout=120)
    assert builder.returncode != 0 and "KeyboardInterrupt" in said
    assert caches(data) == set()
