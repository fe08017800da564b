"The app as a program meets it: limits, the queue, errors, headers, and what its OpenAPI file promises."
import base64
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from threading import Event, Thread

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid)
from schemathesis import GenerationMode
from typer.testing import CliRunner

from xraycap import app as xapp
from xraycap.app import FILE_LIMIT, PIXEL_LIMIT, create_app, make_server
from xraycap.captioner import Captioner, Report, example_study
from xraycap.cli import app as cli
from xraycap.phantom import study_views
from xraycap.radiographs import open_radiograph, square


class Stub:
    "A captioner that says how bright the views are, when it is let."
    decoder, name, about = None, "stub", dict(encoder="none", images="phantom", split="none")

    def __init__(self, wait=False, attention=True):
        self.go, self.attention, self.busy, self.most = Event(), attention, 0, 0
        if not wait: self.go.set()

    def report(self, frontal, lateral=None, k=3, indication=""):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.go.wait(20)
        self.busy -= 1
        views = frontal, frontal if lateral is None else lateral
        words = f"frontal {views[0].mean():.0f} . lateral {views[1].mean():.0f} .".split()
        attention = np.full((6, 98), 1 / 98, "float32") if self.attention else None
        return Report(words, -2., attention, views, self.name, "phantom", .01)


def test_the_page_says_from_how_many_radiographs_the_model_has_learnt():
    both = Stub()
    both.about = dict(encoder="chest", images="phantom", split="chen", radiographs={"table": "nih", "n": 1034})
    client = create_app(both).test_client()
    page, described = client.get("/").text, client.get("/api/openapi.json").json["info"]["description"]
    for told in page, described: assert "1,034 labelled radiographs of nih; from no real image with its own" in told
    assert "simulated images of chests and 1,034 labelled radiographs of nih (training part" in page


def png(value=100, size=(64, 48)):
    file = BytesIO()
    x = np.full(size[::-1], value - 9, np.uint8)
    x[1::2] += 18  # a picture of one grey shows nothing
    Image.fromarray(x).save(file, format="PNG")
    return file.getvalue()


def dicom(x, syntax=ExplicitVRLittleEndian, **fields):
    meta, file = FileMetaDataset(), BytesIO()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
    ds = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.Rows, ds.Columns = x.shape
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 16, 15, 0
    ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", x.tobytes()
    for k, v in fields.items(): setattr(ds, k, v)
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def form(**files): return {field: (BytesIO(data), name) for field, (data, name) in files.items()}


def post(client, **files): return client.post("/api/report", data=form(**files), content_type="multipart/form-data")


def sentence(response, *codes):
    assert response.status_code in codes, response.data
    assert response.content_type == "application/json" and response.json.keys() == {"error"}
    said = response.json["error"]
    assert said and "\n" not in said and "Traceback" not in said and not re.search(r"\.\s+[A-Z]", said), said
    return said


@pytest.fixture
def client(): return create_app(Stub()).test_client()


# --- what is accepted

def test_one_and_two_images_in_order(client):
    two = post(client, lateral=(png(200), "b.png"), frontal=(png(50), "a.png"))
    assert two.status_code == 200 and two.json["sentences"] == ["Frontal 50.", "Lateral 200."]
    assert np.shape(two.json["attention"]) == (2, 2, 7, 7) and len(two.json["views"]) == 2
    one = post(client, frontal=(png(50), "a.png"))
    assert one.json["sentences"] == ["Frontal 50.", "Lateral 50."]
    assert np.shape(one.json["attention"]) == (2, 1, 7, 7) and len(one.json["views"]) == 1
    for answer in one, two: assert np.allclose(np.sum(answer.json["attention"], axis=(1, 2, 3)), 1, atol=.01)
    assert "Not for diagnosis" in one.json["notice"] and "simulated" in one.json["notice"]


def test_warnings_are_a_list_always(client, monkeypatch):
    assert post(client, frontal=(png(), "a.png")).json["warnings"] == []
    said, report = ["The first picture does not look like a chest radiograph."], Stub.report
    monkeypatch.setattr(Stub, "report", lambda *args, **kwargs: replace(report(*args, **kwargs), warnings=said))
    assert post(client, frontal=(png(), "a.png")).json["warnings"] == said


def test_content_counts_and_not_the_name(client):
    x = np.tile(np.arange(64, dtype=np.uint16) * 1000, (64, 1))
    for name in "scan.dcm", "scan.png", "scan.exe", "scan":
        assert post(client, frontal=(dicom(x), name)).status_code == 200
    assert post(client, frontal=(png(), "scan.dcm")).status_code == 200
    jpeg = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(jpeg, format="JPEG")
    assert post(client, frontal=(jpeg.getvalue(), "x.png")).status_code == 200


def test_a_negative_is_shown_as_it_is_read(client):
    x = np.tile(np.arange(64, dtype=np.uint16) * 1000, (64, 1))
    shown = []
    for kind in "MONOCHROME2", "MONOCHROME1":
        address = post(client, frontal=(dicom(x, PhotometricInterpretation=kind), "x.dcm")).json["views"][0]
        assert address.startswith("data:image/jpeg;base64,")
        with Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            shown.append(np.asarray(picture).mean(0))
    assert shown[0][0] < 10 and shown[0][-1] > 245 and shown[1][0] > 245 and shown[1][-1] < 10


def test_the_model_in_the_package_says_the_same_here():
    captioner, example = Captioner.load("attention"), example_study()
    there = captioner.report(example["frontal"], example["lateral"])
    client = create_app(captioner).test_client()
    files = {v: (example[v].read_bytes(), example[v].name) for v in ("frontal", "lateral")}
    ask = lambda i: post(client.application.test_client(), **files).json
    with ThreadPoolExecutor(4) as pool: answers = list(pool.map(ask, range(4)))
    for here in answers:
        assert here["findings"] == there.findings and here["log_probability"] == round(there.logp, 4)
    page = client.get("/").text
    assert captioner.about["encoder"] in page and "simulated images" in page


def test_a_decoder_without_attention():
    answer = post(create_app(Stub(attention=False)).test_client(), frontal=(png(), "a.png"))
    assert answer.status_code == 200 and answer.json["attention"] is None


# --- what is not

BAD = {
    "text": (b"Dear colleague", 422, "not a PNG, JPEG, TIFF or DICOM"), "empty": (b"", 422, "empty"),
    "half": (png(size=(300, 300), value=9)[:-30], 422, "damaged"), "dot": (png(size=(1, 1)), 422, "1 x 1"),
    "many pixels": (png_header(5001, 5001), 422, "5,001 x 5,001"),
    "a bomb": (png_header(80_000, 80_000), 422, "pixels"),
    "gif": (b"GIF89a" + b"\0" * 500, 422, "not a PNG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "not a PNG"),
    "large": (b"\x89PNG\r\n\x1a\n" + b"\0" * FILE_LIMIT, 413, "20 MB"),
    "DICOM, cut": (dicom(np.zeros((64, 64), "u2"))[:400], 422, "DICOM"),
    "DICOM, no picture": (dicom(np.zeros((64, 64), "u2"), Rows=0), 422, "without a picture"),
    "DICOM, frames": (dicom(np.zeros((64, 64), "u2"), NumberOfFrames=3), 422, "3 frames"),
    "DICOM, too large": (dicom(np.zeros((64, 64), "u2"), Rows=60_000, Columns=60_000), 422, "60,000 x 60,000"),
    "DICOM, only its start": (b"\0" * 128 + b"DICM", 422, "DICOM"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(client, kind):
    data, code, words = BAD[kind]
    said = sentence(post(client, frontal=(data, "bad.png")), code)
    assert words in said and "bad.png" in said
    assert "side.png" in sentence(post(client, frontal=(png(), "good.png"), lateral=(data, "side.png")), code)


STARTS = {"zeros": b"", "JPEG": b"\xff\xd8", "PNG": b"\x89PNG\r\n\x1a\n"}  # what the 128 bytes before DICM hold is free


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_deflated_dicom(client, start):
    file = dicom(np.tile(np.arange(64, dtype="u2"), (64, 1)), DeflatedExplicitVRLittleEndian)
    assert post(client, frontal=(start + file[len(start):], "well.dcm")).status_code == 200


def test_files_are_opened_in_a_process_of_their_own(client, monkeypatch):
    "With limits of memory and time, which `tests/test_radiographs.py` tries."
    monkeypatch.setattr("xraycap.radiographs.open_radiograph", lambda *a, **k: pytest.fail("opened"))
    assert post(client, frontal=(png(), "a.png")).status_code == 200


def test_a_picture_that_shows_nothing_is_refused(client):
    file = BytesIO()
    Image.new("L", (64, 64)).save(file, format="PNG")
    assert "black.png shows nothing" in sentence(post(client, frontal=(file.getvalue(), "black.png")), 422)


def test_words_in_a_dicom_are_no_syntax(client):
    noise = np.random.default_rng(0).integers(0, 65536, (2000, 2000)).astype("u2")
    words = "converted from 1.2.840.10008.1.2.5, before that 1.2.840.10008.1.2.1.99 and 1.2.840.10008.1.2.4.70"
    file = dicom(noise, ImageComments=words)
    assert file.count(b"\xff\xda") > 64 and post(client, frontal=(file, "noise.dcm")).status_code == 200


def test_pixel_limit_leaves_room_for_real_radiographs():
    assert 4280 * 3520 < PIXEL_LIMIT  # 14 x 17 inches at 100 micrometres


def test_names_are_only_names(client):
    said = sentence(post(client, frontal=(b"x", "../../etc/<b>pass\x07wd</b>" + "y" * 500)), 422)
    assert "../" not in said and "\x07" not in said and len(said) < 250


def test_forms_that_are_not_understood(client):
    ask = lambda **kw: client.post("/api/report", **kw)
    multipart = dict(content_type="multipart/form-data")
    sentence(ask(), 415)
    sentence(ask(json={"frontal": "x"}), 415)
    sentence(ask(data=b"x", content_type="image/png"), 415)
    sentence(ask(data=b"nonsense", **multipart), 400)
    assert "'frontal'" in sentence(ask(data={}, **multipart), 400)
    assert "'frontal'" in sentence(ask(data=form(lateral=(png(), "a.png")), **multipart), 400)
    assert "file" in sentence(ask(data={"frontal": "text"}, **multipart), 400)
    sentence(ask(data=form(frontal=(png(), "a.png"), third=(png(), "c.png")), **multipart), 400)
    several = lambda n: {"frontal": [(BytesIO(png()), f"{i}.png") for i in range(n)]}
    assert "Two files" in sentence(ask(data=several(2), **multipart), 400)
    assert "too many fields" in sentence(ask(data=several(40), **multipart), 413)
    assert "too long" in sentence(ask(data={"frontal": "x" * 600_000}, **multipart), 413)
    assert "20 MB" in sentence(ask(data=form(frontal=(b"\0" * (2 * FILE_LIMIT + 2**17), "a.png")), **multipart), 413)


def test_other_addresses(client):
    sentence(client.get("/api/examples/1"), 404)
    sentence(client.get("/api/examples/1/frontal.png"), 404)
    wrong = client.get("/api/report")
    assert wrong.status_code == 405 and "POST" in wrong.headers["Allow"] and wrong.json.keys() == {"error"}
    for address in "/nowhere", "/static/../templates/index.html": assert client.get(address).status_code == 404


def test_a_mistake_of_ours_is_logged_and_not_shown(caplog):
    stub = Stub()
    stub.report = lambda *a, **k: 1 / 0
    client = create_app(stub).test_client()
    said = sentence(post(client, frontal=(png(), "a.png")), 500)
    assert "division" not in said and "ZeroDivisionError" in caplog.text
    assert client.get("/healthz").json["waiting"] == 0


# --- who asks

@pytest.mark.parametrize("host, hosts, right", [
    ("127.0.0.1:8000", (), True), ("localhost", (), True), ("[::1]:8000", (), True), ("evil.example", (), False),
    ("localhost.evil.example:8000", (), False), ("10.0.0.9:8000", (), False), ("[", (), False),
    ("10.0.0.9:8000", ("0.0.0.0",), True), ("[fe80::1]", ("::",), True), ("evil.example", ("0.0.0.0",), False),
    ("xrays.example", ("0.0.0.0", "xrays.example"), True)])
def test_only_the_names_served_are_answered(host, hosts, right):
    client = create_app(Stub(), hosts=hosts).test_client()
    for path in "/", "/healthz", "/static/app.js", "/nowhere":
        answer = client.get(path, headers={"Host": host})
        if right: assert answer.status_code == (404 if path == "/nowhere" else 200)
        else: assert "--allow-host" in sentence(answer, 400)


@pytest.mark.parametrize("origin, right", [
    ("http://localhost", True), (None, True), ("http://evil.example", False), ("http://localhost:81", False),
    ("null", False)])
def test_another_pages_form_is_refused(client, origin, right):
    headers = {"Origin": origin} if origin else {}
    answer = client.post("/api/report", data=form(frontal=(png(), "a.png")), headers=headers)
    if right: assert answer.status_code == 200
    else: assert "Another page" in sentence(answer, 403)


# --- several at once

def test_a_full_queue_says_so_and_recovers():
    stub = Stub(wait=True)
    app = create_app(stub, seats=3)
    ask = lambda value: post(app.test_client(), frontal=(png(value), "a.png"))
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, v) for v in (10, 20, 30)]
        health = lambda: app.test_client().get("/healthz").json
        in_time(lambda: health()["waiting"] == 3)
        full = ask(40)
        assert "Too many studies are waiting" in sentence(full, 503) and int(full.headers["Retry-After"]) >= 1
        assert health() == {"status": "ok", "model": "stub", "waiting": 3}
        stub.go.set()
        assert [w.result().json["sentences"][0] for w in waiting] == ["Frontal 10.", "Frontal 20.", "Frontal 30."]
    assert stub.most == 1 and health()["waiting"] == 0 and ask(40).status_code == 200


def test_who_waits_too_long_is_told():
    stub = Stub(wait=True)
    app = create_app(stub, patience=.3)
    late = post(app.test_client(), frontal=(png(), "a.png"))
    assert "0 seconds" in late.json["error"] and late.status_code == 503 and int(late.headers["Retry-After"]) >= 1
    stub.go.set()
    app.extensions["xraycap"].patience = 60  # a busy machine opens no picture in a third of a second
    assert post(app.test_client(), frontal=(png(), "a.png")).status_code == 200


def test_each_gets_the_answer_to_its_own_question():
    stub = Stub()
    app = create_app(stub, seats=40)
    def ask(v):
        return post(app.test_client(), frontal=(png(v), "a.png"), lateral=(png(255 - v), "b.png")).json["sentences"]

    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(ask, range(10, 50)))
    assert answers == [[f"Frontal {v}.", f"Lateral {255 - v}."] for v in range(10, 50)] and stub.most == 1


# --- the server

@pytest.fixture(scope="module")
def server():
    server = make_server(create_app(Stub()), port=0)
    Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.close()


def test_nothing_touches_the_disk(server, monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 2**16, (2000, 2200), dtype=np.uint16)
    large = dicom(noise)  # 8.8 MB, far above what Flask and waitress keep in memory of their own accord
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError): tempfile.TemporaryFile()
    files = {"frontal": ("a.dcm", large), "lateral": ("b.dcm", large)}
    answer = requests.post(f"{server}/api/report", files=files, timeout=60)
    assert answer.status_code == 200 and answer.json()["views"]


def test_the_largest_files_and_one_byte_more(server):
    grey = png(77)
    most = grey + b"\0" * (FILE_LIMIT - len(grey))  # what follows the last chunk of a PNG is not read

    def send(data):
        files = {"frontal": ("a.png", data), "lateral": ("b.png", most)}
        return requests.post(f"{server}/api/report", files=files, timeout=60)

    assert send(most).status_code == 200
    assert send(most + b"\0").status_code == 413 and "a.png" in send(most + b"\0").json()["error"]
    too_much = b"\0" * (3 * FILE_LIMIT + 1)
    assert requests.post(f"{server}/api/report", data=too_much, timeout=60).status_code == 413


def test_headers_of_every_answer(server):
    asked = [("GET", "/"), ("GET", "/static/app.js"), ("GET", "/nowhere"), ("POST", "/api/report"), ("GET", "/healthz"),
             ("OPTIONS", "/")]
    answers = [requests.request(method, server + path, timeout=60) for method, path in asked]
    for answer in answers:
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and "unsafe" not in str(policy) and "http" not in str(policy)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "no-store" in answer.headers["Cache-Control"] or "/static/" in answer.url
        assert "Access-Control-Allow-Origin" not in answer.headers and "Server" not in answer.headers
    page = answers[0].text
    assert not re.search(r"<script(?! src)|<style|\son\w+=|\sstyle=|https?://(?!127\.0\.0\.1)", page)


def connect(address): return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)


def all_of(connection): return b"".join(iter(lambda: connection.recv(2**16), b""))


def in_time(condition, seconds=30):
    "Wait for a state; a busy machine may take long."
    until = time.monotonic() + seconds
    while not (reached := condition()):
        assert time.monotonic() < until, "never came"
        time.sleep(.01)
    return reached


BODY = b'--b\r\nContent-Disposition: form-data; name="frontal"; filename="a.png"\r\n\r\n' + png(50) + b"\r\n--b--\r\n"
HEAD = (b"POST /api/report HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY))
REFUSED = {
    "no HTTP": (b"hello there\r\n\r\n", 400, "not a request"), "lower case": (b"get / HTTP/1.1\r\n\r\n", 400, "not a"),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400, "not a request"),
    "a long header": (b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", 431, "header"),
    "encoding": (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "encoding"),
    "length": (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "not a request"),
    "a terabyte": (b"POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 10**6, 413, "20 MB"),
    "chunks": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"500000\r\n%b\r\n" % (b"x" * 0x500000) * 9,
               413, "20 MB"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_server_itself_refuses_is_json(server, kind):
    data, code, words = REFUSED[kind]
    with connect(server) as c:
        c.sendall(data)
        head, _, body = all_of(c).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.") and int(head.split()[1]) == code
    assert words in json.loads(body)["error"] and json.loads(body).keys() == {"error"}
    for line in "Content-Type: application/json", "X-Content-Type-Options: nosniff", "Cache-Control: no-store":
        assert line in head.decode().splitlines()


def test_who_sends_too_much_hears_it_after_the_last_byte(server):
    "A closed connection would lose the answer: `requests` reads it when it has sent everything."
    too_much = b"\0" * (4 * FILE_LIMIT)
    for _ in range(5):
        answer = requests.post(f"{server}/api/report", data=too_much, timeout=60)
        assert answer.status_code == 413 and "20 MB" in answer.json()["error"]


def test_slow_uploads_take_no_seat(server):
    slow = [connect(server) for _ in range(20)]  # more than seats, and as many as threads
    for c in slow: c.sendall(HEAD + BODY[:-1])
    assert requests.get(f"{server}/healthz", timeout=60).json()["waiting"] == 0
    answer = requests.post(f"{server}/api/report", files={"frontal": ("a.png", png(200))}, timeout=60)
    assert answer.json()["sentences"][0] == "Frontal 200."
    slow[0].sendall(BODY[-1:])
    assert b"Frontal 50." in all_of(slow[0])
    for c in slow: c.close()


def test_a_slow_sender_is_cut_off_and_a_steady_one_is_not(server, monkeypatch):
    monkeypatch.setattr(xapp, "GRACE", .5)
    with connect(server) as dripping, connect(server) as steady:
        steady.sendall(HEAD.replace(b"Length: %d" % len(BODY), b"Length: 40000000") + b"x" * 8_000_000)  # 500 seconds
        dripping.setblocking(False)

        def cut():
            try:
                dripping.send(b"G")
                return dripping.recv(1) == b""
            except BlockingIOError: return False
            except OSError: return True

        in_time(cut)
        steady.settimeout(1)
        with pytest.raises(TimeoutError): steady.recv(1)  # still listened to


def test_many_slow_connections_shut_nobody_out(server):
    slow = [connect(server) for _ in range(3 * xapp.CONNECTIONS)]
    for c in slow: c.setblocking(False)

    def drip():
        for c in slow:
            try: c.send(b"P")
            except OSError: pass  # cut off

    for _ in range(5):
        drip()
        assert requests.get(f"{server}/healthz", timeout=15).status_code == 200
    answer = requests.post(f"{server}/api/report", files={"frontal": ("a.png", png(200))}, timeout=15)
    assert answer.status_code == 200
    for c in slow: c.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_loses_no_answer(number, tmp_path):
    command = [sys.executable, "-m", "xraycap.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        url = program.stdout.readline().strip()
        view = example_study()["frontal"].read_bytes()
        ask = lambda _: requests.post(f"{url}/api/report", files={"frontal": ("a.png", view)}, timeout=120)
        with connect(url) as half, ThreadPoolExecutor(4) as pool:
            half.sendall(HEAD)
            waiting = [pool.submit(ask, i) for i in range(4)]
            in_time(lambda: requests.get(f"{url}/healthz", timeout=60).json()["waiting"] == 4, 60)
            program.send_signal(number)
            assert all_of(half) == b""
            assert [w.result().status_code for w in waiting] == [200] * 4
        assert program.wait(30) == 0 and program.stderr.read() == ""
    with pytest.raises(requests.ConnectionError): requests.get(f"{url}/healthz", timeout=10)


def test_serve_says_what_is_wrong(server):
    port = server.rpartition(":")[2]
    bad = {("--port", port): f"port {port}", ("--model", "nobody"): "nobody",
           ("--host", "not an address", "--port", "0"): "not an address"}
    for args, words in bad.items():
        result = CliRunner().invoke(cli, ["serve", *args])
        assert result.exit_code == 2 and result.stdout == ""
        assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1


# --- what the OpenAPI file promises

schema = schemathesis.openapi.from_wsgi("/api/openapi.json", create_app(Stub()))
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_the_api_keeps_its_promises(case):
    # a file of random bytes keeps to the schema, and is refused because it is no radiograph
    case.call_and_validate(excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])


def test_a_real_report_keeps_to_the_schema():
    for attention in True, False:
        client = create_app(Stub(attention=attention)).test_client()
        for files in dict(frontal=(png(), "a.png")), dict(frontal=(png(), "a.png"), lateral=(png(9), "b.png")):
            answer = post(client, **files)
            assert answer.status_code == 200
            schema["/api/report"]["POST"].validate_response(answer)


def test_examples_are_simulated_and_unseen():
    client = create_app(Stub()).test_client()
    studies = xapp.example_studies()
    assert {row.split for row in studies.values()} == {"test"}
    about = client.get("/api/examples/379").json
    assert about["images"] == "phantom" and about["findings"] == example_study()["findings"]
    likeness = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for i, view in enumerate(["frontal", "lateral"]):
        drawn = square(open_radiograph(BytesIO(client.get(f"/api/examples/379/{view}.png").data)))
        same, other = study_views(studies[379])[i], study_views(studies[64])[i]
        assert likeness(drawn, same) > max(.97, likeness(drawn, other))
