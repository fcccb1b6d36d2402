"""Public data sets: downloads that break off, archives that are damaged or hostile, and the command."""

from __future__ import annotations

import hashlib
import importlib
import random
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parallel.config import ImageFilesConfig
from parallel.data import open_data
from parallel.data.download.archives import Limits, unpack
from parallel.data.download.obtain import Obtained, obtain
from parallel.data.download.published_sets import PUBLISHED_SETS, Checksum, PublishedSet
from parallel.data.download.resumable import Unreachable, download
from scripts.write_image_layouts import LAYOUTS, Variety, digit_pictures, write_stand_in

ROOT = Path(__file__).parents[2]
LIMITS = Limits(files=300, bytes=10**7)
LAYOUT_OF = {"tiny_imagenet": ("tiny_imagenet", "tiny-imagenet-200"), "dogs_vs_cats": ("petimages", "")}
"""Layout that the publisher's archive has, and the folder at its top."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Return main() of scripts/get_data.py, which imports another script of its folder."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    main: Callable[[list[str]], int] = importlib.import_module("get_data").main
    return main


def ignored(done: int) -> None:
    pass


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return archives with real images in the layout of each set."""
    folder = tmp_path_factory.mktemp("archives")
    pictures = digit_pictures()
    for name, (layout, top) in LAYOUT_OF.items():
        LAYOUTS[layout](folder / name / top, pictures, 40, 20, Variety())
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((folder / name).rglob("*")):
                archive.write(file, file.relative_to(folder / name))
    return {name: (folder / f"{name}.zip").read_bytes() for name in LAYOUT_OF}


@dataclass
class Server:
    """A server of one file, with faults."""

    content: bytes
    address: str = ""
    break_after: int | None = None
    """Bytes after which each connection is closed."""
    ranges: bool = True
    requests: list[str | None] = field(default_factory=list)
    """Range of each request."""
    status: int | None = None


@pytest.fixture
def server(archives: dict[str, bytes]) -> Iterator[Server]:
    served = Server(archives["tiny_imagenet"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            served.requests.append(asked)
            if served.status:
                self.send_error(served.status)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and served.ranges else 0
            total = len(served.content)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = total if served.break_after is None else start + served.break_after
            self.wfile.write(served.content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{http.server_port}/tiny-imagenet-200.zip"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield served
    http.shutdown()
    thread.join()
    http.server_close()


def published(content: bytes, address: str = "http://127.0.0.1:1/tiny-imagenet-200.zip") -> PublishedSet:
    """Return a set whose archive is `content`."""
    digest = hashlib.md5(content).hexdigest()
    return PublishedSet(
        address=address,
        size=len(content),
        checksum=Checksum(algorithm="md5", digest=digest, source="the test"),
        limits=LIMITS,
    )


def obtained(name: str, of: PublishedSet, root: Path, archive: Path | None = None) -> Obtained:
    return obtain(name, of, root, archive=archive, downloaded=ignored, unpacked=ignored)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_becomes_a_data_set_that_opens(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "data" / "tiny_imagenet"
    got = obtained("tiny_imagenet", published(server.content, server.address), root)
    assert (got.train_images, got.val_images, got.is_whole) == (40, 20, False)
    assert got.sha256 == hashlib.sha256(server.content).hexdigest()
    assert files_in(root.parent) == ["tiny_imagenet"]  # neither the archive nor a temporary folder is left
    data = open_data(
        ImageFilesConfig("tiny_imagenet", root=str(root), cache=str(tmp_path / "cache"), decoders=1), 16, 0
    )
    assert (data.name, len(data.train), len(data.val)) == ("tiny_imagenet", 40, 20)
    again = obtained("tiny_imagenet", published(server.content, server.address), root)
    assert (again.train_images, again.sha256, len(server.requests)) == (40, None, 1)


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = len(server.content) // 3
    seen: list[int] = []
    download(server.address, tmp_path / "a.zip", len(server.content), seen.append, wait_s=0)
    assert (tmp_path / "a.zip").read_bytes() == server.content and seen == sorted(seen)
    assert server.requests[:2] == [None, f"bytes={server.break_after}-"] and len(server.requests) in (3, 4)


def test_a_download_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    half = len(server.content) // 2
    (tmp_path / "a.zip.part").write_bytes(server.content[:half])
    download(server.address, tmp_path / "a.zip", len(server.content), ignored)
    assert server.requests == [f"bytes={half}-"] and (tmp_path / "a.zip").read_bytes() == server.content


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.zip.part").write_bytes(b"other" * 100)
    download(server.address, tmp_path / "a.zip", len(server.content), ignored)
    assert (tmp_path / "a.zip").read_bytes() == server.content


def test_a_server_that_sends_nothing_more_is_given_up(server: Server, tmp_path: Path) -> None:
    server.break_after = 0
    (tmp_path / "a.zip.part").write_bytes(server.content[:10])
    with pytest.raises(Unreachable, match=r"10 of [\d,]+ bytes are here, and the same command continues"):
        download(server.address, tmp_path / "a.zip", len(server.content), ignored, wait_s=0)
    assert len(server.requests) == 2 and files_in(tmp_path) == ["a.zip.part"]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_of_another_size_is_refused(more: int, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes instead of the"):
        download(server.address, tmp_path / "a.zip", len(server.content) + more, ignored, wait_s=0)
    assert not (tmp_path / "a.zip").exists()


def test_errors_of_a_server(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(ValueError, match="answers 404 Not Found"):
        download(server.address, tmp_path / "a.zip", 10, ignored, wait_s=0)
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(Unreachable, match="503 Service Unavailable"):
        download(server.address, tmp_path / "a.zip", 10, ignored, wait_s=0)
    for address in ("file:///etc/passwd", "/etc/passwd"):
        with pytest.raises(ValueError, match="must be http"):
            download(address, tmp_path / "a.zip", 10, ignored)


def test_an_altered_download_is_named_and_removed(server: Server, tmp_path: Path) -> None:
    true = published(server.content, server.address)
    server.content = server.content[:-1] + b"x"
    with pytest.raises(ValueError, match=r"altered: its md5 is \w+ instead of \w+ \(stated by the test\)"):
        obtained("tiny_imagenet", true, tmp_path / "tiny_imagenet")
    assert files_in(tmp_path) == []


def test_a_local_archive_stays_where_it_is(archives: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_bytes(archives["dogs_vs_cats"])
    of = PUBLISHED_SETS["dogs_vs_cats"]
    got = obtained("dogs_vs_cats", of, tmp_path / "dogs", archive)
    assert (got.train_images + got.val_images, got.published_images) == (60, 22_500) and archive.exists()
    with pytest.raises(ValueError, match="is altered: its sha256 is"):
        obtain(
            "dogs_vs_cats",
            of,
            tmp_path / "other",
            archive=archive,
            sha256="0" * 64,
            downloaded=ignored,
            unpacked=ignored,
        )
    named = tmp_path / of.file_name
    named.write_bytes(archive.read_bytes())
    with pytest.raises(ValueError, match=r"is truncated: it has [\d,]+ bytes, and the published kaggle"):
        obtained("dogs_vs_cats", of, tmp_path / "other", named)
    named.rename(tmp_path / "nested.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(tmp_path / "nested.zip", "train.zip")
    with pytest.raises(ValueError, match="holds no dogs_vs_cats.*it holds train.zip: unpack that one"):
        obtained("dogs_vs_cats", of, tmp_path / "other", tmp_path / "outer.zip")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("cut", [1, 30, 2000])
def test_a_truncated_archive(cut: int, archives: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_bytes(archives["tiny_imagenet"][:-cut])
    with pytest.raises(ValueError, match="mine.zip is truncated or altered, or no ZIP archive"):
        obtained("tiny_imagenet", published(b""), tmp_path / "tiny", archive)
    assert files_in(tmp_path) == ["mine.zip"]


def test_altered_bytes_are_found_and_raise_nothing_else(archives: dict[str, bytes], tmp_path: Path) -> None:
    """Each file has its CRC-32; its name, date and attributes may have changed."""
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(archives["dogs_vs_cats"])
    with zipfile.ZipFile(archive) as opened:
        true = {opened.read(info) for info in opened.infolist()}
    random_ = random.Random(0)
    refused = 0
    for _ in range(100):
        content = bytearray(archives["dogs_vs_cats"])
        for _ in range(random_.choice((1, 1, 10))):
            # The list of entries is at the end.
            at = random_.choice((random_.randrange(len(content)), -1 - random_.randrange(4000)))
            content[at] = random_.randrange(256)
        archive.write_bytes(content)
        out.mkdir()
        try:
            unpack(archive, out, LIMITS, ignored)
            assert {file.read_bytes() for file in out.rglob("*") if file.is_file()} <= true
        except ValueError as error:
            refused += "a.zip" in str(error)
        shutil.rmtree(out)
        assert files_in(tmp_path) == ["a.zip"]
    assert refused > 50


def entry(name: str, mode: int = 0, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("/etc/passwd")], "has an absolute path"),
        ([entry("C:\\windows")], "has an absolute path"),
        ([entry("\\\\host\\share")], "has an absolute path"),
        ([entry("a/../../b")], "leads out of the folder"),
        ([entry("a\\..\\..\\b")], "leads out of the folder"),
        ([entry("a", stat.S_IFLNK | 0o777)], "is a link"),
        ([entry("a", stat.S_IFBLK | 0o666)], "is a device or a pipe"),
        ([entry("a", stat.S_IFIFO | 0o666)], "is a device or a pipe"),
        ([entry("\x1b[2J")], "has no printable name"),
        ([entry("x" * 300)], "has a name of more than 255 bytes"),
        ([entry("a"), entry("a")], "has the path of another entry"),
        ([entry("a"), entry("a/b")], "has the path of another entry"),
        ([entry("a/b"), entry("a")], "has the path of another entry"),
        ([entry("a", compress_type=zipfile.ZIP_LZMA)], "is not stored or deflated"),
        ([entry(f"{i}") for i in range(301)], "has 302 entries: at most 300"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_is_refused(entries: list[zipfile.ZipInfo], said: str, tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("good", b"good")
        for info in entries:
            written.writestr(info, b"bad")
    with pytest.raises(ValueError, match=said):
        unpack(archive, out, LIMITS, ignored)
    assert files_in(tmp_path) == ["a.zip", "out"] and files_in(out) == []


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("zeros", bytes(LIMITS.bytes + 1))
    with pytest.raises(ValueError, match="unpacks to 10,000,001 bytes: at most 10,000,000 are expected"):
        unpack(archive, tmp_path, LIMITS, ignored)
    understated = archive.read_bytes().replace((LIMITS.bytes + 1).to_bytes(4, "little"), b"\1\0\0\0")
    archive.write_bytes(understated)
    with pytest.raises(ValueError, match="truncated or altered"):
        unpack(archive, tmp_path, LIMITS, ignored)
    assert (tmp_path / "zeros").stat().st_size <= 1
    archive.write_bytes(bytes(LIMITS.bytes + 1))
    with pytest.raises(ValueError, match="even unpacked"):
        unpack(archive, tmp_path, LIMITS, ignored)


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("secret", b"text")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack(archive, tmp_path, LIMITS, ignored)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagenet"], "needs an account: https://image-net.org/download-images"),
        (["digits"], "digits: nothing to download; there are tiny_imagenet, dogs_vs_cats, imagenet"),
        (["mnist"], "mnist: unknown; there are"),
        (["tiny_imagenet", "dogs_vs_cats", "--archive", "a.zip"], "--archive belongs to one data set"),
        (["tiny_imagenet", "--digits", "--address", "http://a/b"], "--address has no use with --digits"),
        (["tiny_imagenet", "--archive", "a.zip", "--address", "http://a/b"], "--address has no use with"),
        (["tiny_imagenet", "--archive", "missing.zip"], "missing.zip: No such file"),
        (["tiny_imagenet", "--digits", "--images", "0"], "must be from 1 to a million"),
    ],
)
def test_the_command_says_what_is_wrong(
    command: Callable[[list[str]], int],
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command([*arguments, "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_the_command_without_a_network(
    command: Callable[[list[str]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    address = "http://127.0.0.1:1/tiny-imagenet-200.zip"
    assert command(["tiny_imagenet", "--out", str(tmp_path), "--address", address]) == 2
    error = capsys.readouterr().err
    assert "cannot be reached" in error and "--archive FILE" in error and "--digits" in error


def test_digits_in_the_layout_say_what_they_are(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--digits", "--images", "60", "--val-images", "20", "--out", str(tmp_path)]
    assert command(["tiny_imagenet", "dogs_vs_cats", *few]) == 0
    for name in ("tiny_imagenet", "dogs_vs_cats"):
        options = ImageFilesConfig(name, root=str(tmp_path / name), cache=str(tmp_path / "cache"), decoders=1)
        assert open_data(options, 16, 0).name == f"{name} (digits)"
    capsys.readouterr()
    assert command(["tiny_imagenet", "--out", str(tmp_path)]) == 2
    assert "holds digits in the layout of tiny_imagenet: remove it" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "\x1b[2J", "<b>bold</b>", "x" * 200, "Digits"])
def test_a_stand_in_that_does_not_name_itself(words: str, tmp_path: Path) -> None:
    write_stand_in("petimages", tmp_path, digit_pictures(), 20, 10, Variety())
    (tmp_path / "PetImages" / "stand_in.txt").write_text(words)
    options = ImageFilesConfig("dogs_vs_cats", root=str(tmp_path), cache=str(tmp_path / "cache"), decoders=1)
    with pytest.raises(ValueError, match="must be up to 32 letters and spaces"):
        open_data(options, 16, 0)
