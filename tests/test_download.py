"""Downloads from a server on this machine that has every bad habit."""
import errno
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from xraycap import downloads
from xraycap.files import find_archive
from xraycap.reports import load_reports
from xraycap.studies import load_studies

DATA = np.random.default_rng(0).bytes(300_000)


class Server:
    "Serves `data`; the switches say how badly"

    def __init__(self):
        self.data, self.asked = DATA, []
        self.cut = None  # bytes after which it hangs up
        self.ranges = True
        self.announce = 0  # bytes added to the Content-Length
        self.length = True  # whether to say the length at all
        self.chunked = False  # to send in chunks instead
        self.status = []  # answers to give first; None: as usual
        self.headers = {}  # to send along
        self.version = None  # the file's ETag
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *args): pass
            def do_GET(self): outer.answer(self)

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/file.tgz"
        threading.Thread(target=self.httpd.serve_forever, args=[.02], daemon=True).start()

    def answer(self, h):
        h.close_connection = True
        asked = h.headers.get("Range")
        self.asked.append(asked)
        if self.status and (code := self.status.pop(0)):
            h.send_response(code)
            for name, value in self.headers.items(): h.send_header(name, value)
            h.send_header("Content-Length", "0")
            return h.end_headers()
        same = h.headers.get("If-Range") in (None, self.version)
        begin = int(asked[6:-1]) if asked and self.ranges and same else 0
        if begin >= len(self.data) and begin:
            h.send_response(416)
            h.send_header("Content-Range", f"bytes */{len(self.data)}")
            h.send_header("Content-Length", "0")
            return h.end_headers()
        h.send_response(206 if begin else 200)
        if self.version: h.send_header("ETag", self.version)
        if begin: h.send_header("Content-Range", f"bytes {begin}-{len(self.data) - 1}/{len(self.data) + self.announce}")
        if self.chunked:
            h.send_header("Transfer-Encoding", "chunked")
            h.end_headers()
            for i in range(0, len(self.data), 50_000):
                if self.cut and i >= self.cut: return
                chunk = self.data[i:i + 50_000]
                h.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            return h.wfile.write(b"0\r\n\r\n")
        if self.length: h.send_header("Content-Length", str(len(self.data) - begin + self.announce))
        h.end_headers()
        h.wfile.write(self.data[begin:][:self.cut])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    s = Server()
    yield s
    s.httpd.shutdown()


def begun(server, path, url=None, **kw):
    "Fetch 100,000 bytes; then the address is dead for a moment."
    server.cut, server.status = 100_000, [None, 404]
    with pytest.raises(FileNotFoundError, match="404"): downloads.fetch(url or server.url, path, **kw)
    assert path.with_name(path.name + ".part").stat().st_size == 100_000
    server.asked.clear()


def fetched(server, path, **kw):
    downloads.fetch(server.url, path, **kw)
    assert not path.with_name(path.name + ".part").exists()
    return path.read_bytes()


# --- one file

def test_plain(server, tmp_path):
    assert fetched(server, tmp_path / "new" / "x", sha256=hashlib.sha256(DATA).hexdigest()) == DATA
    assert server.asked == [None]


def test_cut_connections_are_resumed(server, tmp_path):
    server.cut = 100_000
    assert fetched(server, tmp_path / "x") == DATA
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_many_cuts_are_fine_as_long_as_something_comes(server, tmp_path):
    server.cut = 10_000
    assert fetched(server, tmp_path / "x") == DATA
    assert len(server.asked) == 30


def test_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA[:123_456])
    assert fetched(server, tmp_path / "x") == DATA
    assert server.asked == ["bytes=123456-"]


def test_an_earlier_run_that_was_complete_but_not_renamed(server, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA)
    assert fetched(server, tmp_path / "x") == DATA


def test_an_earlier_file_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA + b"more")
    assert fetched(server, tmp_path / "x") == DATA


def test_no_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "x.part").write_bytes(b"junk" * 1000)
    assert fetched(server, tmp_path / "x") == DATA


def test_no_ranges_and_always_cut_gives_up(server, tmp_path):
    server.ranges, server.cut = False, 100_000
    with pytest.raises(FileNotFoundError, match="4 attempts in a row .* 100,000 of 300,000 bytes") as e:
        downloads.fetch(server.url, tmp_path / "x")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "x").exists() and (tmp_path / "x.part").stat().st_size == 100_000


def test_cut_without_a_known_length(server, tmp_path):
    "Chunks end with an empty one; without it, the file is not whole"
    server.chunked, server.ranges = True, False
    assert fetched(server, tmp_path / "x") == DATA
    server.cut = 100_000
    with pytest.raises(FileNotFoundError, match="unknown number of bytes"): downloads.fetch(server.url, tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_too_long_an_announcement_never_makes_a_file(server, tmp_path):
    server.announce = 1000
    with pytest.raises(FileNotFoundError, match="300,000 of 301,000 bytes"): downloads.fetch(server.url, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_too_short_an_announcement_is_found_by_the_checksum(server, tmp_path):
    server.announce = -1000
    with pytest.raises(ValueError, match="wrong checksum"):
        downloads.fetch(server.url, tmp_path / "x", sha256=hashlib.sha256(DATA).hexdigest())
    assert list(tmp_path.iterdir()) == []


def test_unknown_length(server, tmp_path):
    server.length = False
    assert fetched(server, tmp_path / "x") == DATA


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = [503, 429]
    assert fetched(server, tmp_path / "x") == DATA


@pytest.mark.parametrize("code", [404, 403, 410])
def test_dead_address_is_not_asked_twice(server, tmp_path, code):
    server.status = [code] * 9
    with pytest.raises(FileNotFoundError, match=f"answers {code}: that address is dead"):
        downloads.fetch(server.url, tmp_path / "x")
    assert len(server.asked) == 1 and list(tmp_path.iterdir()) == []


def test_nobody_there(server, tmp_path):
    server.httpd.shutdown()
    server.httpd.server_close()
    with pytest.raises(FileNotFoundError, match="could not be fetched.*ConnectionError"):
        downloads.fetch(server.url, tmp_path / "x")


@pytest.mark.parametrize("page", [
    b"<html>Please sign in</html>", b"\n  <!DOCTYPE html>", b'{"error": "sign in"}', b"hello", b"", b"\x1f"])
def test_a_page_in_the_place_of_the_file(server, tmp_path, page):
    server.data = page
    for chunked in (False, True):
        server.chunked = chunked
        with pytest.raises(FileNotFoundError, match="gives .* in the place of the file; open the address"):
            downloads.fetch(server.url, tmp_path / "x.tgz", begins=(b"\x1f\x8b",))
    assert list(tmp_path.iterdir()) == []


def test_a_page_does_not_destroy_what_came_before(server, tmp_path):
    server.data = b"\x1f\x8b" + DATA
    begun(server, tmp_path / "x", begins=(b"\x1f\x8b",))
    whole, server.data, server.ranges = server.data, b"<html>Please sign in</html>", False
    with pytest.raises(FileNotFoundError, match="a page or a text"):
        downloads.fetch(server.url, tmp_path / "x", begins=(b"\x1f\x8b",))
    assert (tmp_path / "x.part").stat().st_size == 100_000
    server.data, server.ranges = whole, True
    assert fetched(server, tmp_path / "x", begins=(b"\x1f\x8b",)) == whole
    assert "bytes=100000-" in server.asked


@pytest.mark.parametrize("code,headers", [(204, {}), (301, {}), (302, {}), (300, {})])
def test_answers_that_bring_no_file(server, tmp_path, code, headers):
    server.status = [code] * 9
    with pytest.raises(FileNotFoundError, match=f"answers {code}, which brings no file"):
        downloads.fetch(server.url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_another_version_is_not_put_behind(server, tmp_path):
    server.version = '"one"'
    begun(server, tmp_path / "x")
    server.version, server.data = '"two"', bytes(reversed(DATA))
    assert fetched(server, tmp_path / "x") == server.data
    assert server.asked[0] == "bytes=100000-" and [o.name for o in tmp_path.iterdir()] == ["x"]


def test_a_part_from_another_address_is_thrown_away(server, tmp_path):
    begun(server, tmp_path / "x", server.url + "?mirror")
    assert fetched(server, tmp_path / "x") == DATA and server.asked[0] is None


# --- archives

def tgz(members):
    "A tar.gz of {name: bytes, or the target of a link}"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str): info.type, info.linkname = tarfile.SYMTYPE, content
            else: info.size = len(content)
            tar.addfile(info, None if isinstance(content, str) else io.BytesIO(content))
    return out.getvalue()


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in members.items(): z.writestr(name, content)
    return out.getvalue()


def png(size, mode="L"):
    out = io.BytesIO()
    Image.new(mode, size, 100 if mode == "L" else (100,) * 3).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("make", [tgz, zipped])
def test_extract(tmp_path, make):
    (tmp_path / "a").write_bytes(make({"one": b"1", "deep/er/two": b"22"}))
    downloads.extract(tmp_path / "a", tmp_path / "out")
    out = tmp_path / "out"
    assert {str(o.relative_to(out)): o.read_bytes() for o in out.rglob("*") if o.is_file()} == {
        "one": b"1", os.path.join("deep", "er", "two"): b"22"}


@pytest.mark.parametrize("make,members", [
    (tgz, {"good": b"1", "../evil": b"2"}), (tgz, {"good": b"1", "a/../../evil": b"2"}),
    (tgz, {"/tmp/xraycap-evil": b"2"}),
    (tgz, {"../out.part-evil": b"2"}), (tgz, {"link": "..", "link/evil": b"2"}), (tgz, {"evil": "/etc/hostname"}),
    (zipped, {"good": b"1", "../evil": b"2"}), (zipped, {"/tmp/xraycap-evil": b"2"})])
def test_archives_that_want_out_are_refused_whole(tmp_path, make, members):
    room = tmp_path / "room"
    room.mkdir()
    (room / "a").write_bytes(make(members))
    with pytest.raises(ValueError, match="was not unpacked"): downloads.extract(room / "a", room / "out")
    assert sorted(o.name for o in tmp_path.rglob("*")) == ["a", "room"]
    assert not os.path.exists("/tmp/xraycap-evil")


def flipped(content, *, at, inside=gzip.decompress):
    "A .tgz in which one bit of the header of the member `at` is another one; its gzip checksum fits."
    plain = bytearray(inside(content))
    plain[plain.index(at)] ^= 1
    return gzip.compress(plain)


def test_a_flipped_bit_in_a_header_does_not_end_the_archive(tmp_path):
    whole = tgz({f"{i}.png": png((40, 50)) for i in range(5)})
    (tmp_path / "a").write_bytes(flipped(whole, at=b"3.png"))
    with tarfile.open(tmp_path / "a") as tar: assert len(tar.getnames()) == 3  # Python's own reading says nothing
    with pytest.raises(ValueError, match="cannot be unpacked .*the archive is not whole"):
        downloads.extract(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    reports = {o.name: b"" for o in tarfile.open(find_archive()) if o.isfile()}
    with tarfile.open(find_archive()) as tar: reports = {o: tar.extractfile(o).read() for o in sorted(reports)[:5]}
    (tmp_path / "r.tgz").write_bytes(tgz(reports))
    assert len(load_reports(tmp_path / "r.tgz")) == 5
    (tmp_path / "r.tgz").write_bytes(flipped(tgz(reports), at=sorted(reports)[2].encode()))
    with pytest.raises(ValueError, match="the archive is not whole"): load_reports(tmp_path / "r.tgz")


@pytest.mark.parametrize("make", [tgz, zipped])
def test_folders_in_folders_and_empty_archives(tmp_path, make):
    (tmp_path / "a").write_bytes(make({"a/" * 1500 + "x": b"1"}))
    with pytest.raises(ValueError, match="than 64 folders deep"): downloads.extract(tmp_path / "a", tmp_path / "out")
    (tmp_path / "a").write_bytes(make({"a/" * 60 + "x": b"1"}))
    downloads.extract(tmp_path / "a", tmp_path / "out")
    (tmp_path / "a").write_bytes(make({}))
    with pytest.raises(ValueError, match="there is no file in it"): downloads.extract(tmp_path / "a", tmp_path / "out2")
    assert sorted(o.name for o in tmp_path.iterdir()) == ["a", "out"]


def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(tgz({"x": DATA}))
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(downloads.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left on device; make room there or choose another place.*out"):
        downloads.extract(tmp_path / "a", tmp_path / "out")
    assert [o.name for o in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("content", [b"hello", b"", tgz({"x": DATA})[:100_000], zipped({"x": DATA})[:100_000]])
def test_damaged_archives(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be unpacked"): downloads.extract(tmp_path / "a", tmp_path / "out")
    assert [o.name for o in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_made_small(tmp_path, monkeypatch):
    deep = io.BytesIO()
    Image.fromarray((np.arange(64 * 64) % 4096).reshape(64, 64).astype("u2")).save(deep, "PNG")
    (tmp_path / "a").write_bytes(tgz({"deep.png": deep.getvalue()}))
    downloads.extract(tmp_path / "a", tmp_path / "out", side=32)
    assert (tmp_path / "out" / "deep.png").read_bytes() == deep.getvalue()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        downloads.extract(tmp_path / "a", tmp_path / "out2", side=32)


# --- the command

def test_images_end_to_end(server, tmp_path, monkeypatch, capsys):
    server.data = tgz({"CXR1_1_IM-0001-3001.png": png((2048, 2496)), "CXR1_1_IM-0001-4001.png": png((600, 520), "RGB"),
                       "small.png": png((40, 50))})
    server.cut = len(server.data) // 3
    monkeypatch.setenv("XRAYCAP_URL_IMAGES", server.url)
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path))
    folder = downloads.download("images")
    said = capsys.readouterr().out
    assert "CC BY-NC-ND 4.0" in said and "1.27 GB" in said
    sizes = {o.name: Image.open(o).size for o in folder.iterdir()}
    assert sizes == {
        "CXR1_1_IM-0001-3001.png": (512, 624), "CXR1_1_IM-0001-4001.png": (591, 512), "small.png": (40, 50)}
    assert np.asarray(Image.open(folder / "CXR1_1_IM-0001-3001.png")).mean() == 100
    assert load_studies("openi").uid.tolist() == [1]
    n = len(server.asked)
    assert downloads.download("images") == folder and len(server.asked) == n  # a second time there is nothing to do
    assert "Already there" in (said := capsys.readouterr().out) and "3 files of the 7,470: delete the folder" in said


TWICE = """
import sys, time
from xraycap import downloads
shrink = downloads._shrink
def slowly(*args):
    time.sleep(.02)
    shrink(*args)
downloads._shrink = slowly
downloads.download("images", sys.argv[1])
"""


def test_twice_at_once(tmp_path):
    "The second one waits for the first, and both end with all the images."
    names = [f"CXR{i}_1_IM-0001-3001.png" for i in range(30)]
    (tmp_path / "NLMCXR_png.tgz").write_bytes(tgz({name: png((40, 50)) for name in names}))
    command = [sys.executable, "-c", TWICE, tmp_path]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [o.communicate() for o in both]
    assert [o.returncode for o in both] == [0, 0], said
    assert sorted(o.name for o in (tmp_path / "openi").iterdir()) == sorted(names)
    assert sorted("Already there" in out for out, _ in said) == [False, True]


def test_vectors_end_to_end(server, tmp_path, monkeypatch):
    server.data = zipped({"wiki-news-300d-1M-subword.vec": b"1 2\nlung 0 1\n"})
    monkeypatch.setenv("XRAYCAP_URL_VECTORS", server.url)
    assert downloads.download("vectors", tmp_path).read_bytes() == b"1 2\nlung 0 1\n"


def test_weights_and_reports_end_to_end(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_URL_WEIGHTS", server.url)
    server.data = b"\x80" + DATA
    assert downloads.download("weights", tmp_path).read_bytes() == server.data
    server.data = find_archive().read_bytes()
    monkeypatch.setenv("XRAYCAP_URL_REPORTS", server.url)
    assert len(load_reports(downloads.download("reports", tmp_path))) == 3955
    assert hashlib.sha256(server.data).hexdigest() == downloads.DOWNLOADS["reports"].sha256


def test_wrong_content(server, tmp_path, monkeypatch):
    server.data = zipped({"other.vec": b""})
    monkeypatch.setenv("XRAYCAP_URL_VECTORS", server.url)
    with pytest.raises(FileNotFoundError, match="does not hold wiki-news"): downloads.download("vectors", tmp_path)


def test_dead_address_says_what_to_do(server, tmp_path, monkeypatch):
    server.status = [404]
    monkeypatch.setenv("XRAYCAP_URL_IMAGES", server.url)
    with pytest.raises(FileNotFoundError, match="set XRAYCAP_URL_IMAGES to its new address") as e:
        downloads.download("images", tmp_path)
    assert "\n" not in str(e.value)


def test_unknown_name():
    with pytest.raises(ValueError, match="choose one of reports, images, weights, vectors"):
        downloads.download("everything")
