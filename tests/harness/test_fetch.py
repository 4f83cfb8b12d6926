"""Downloads arrive whole from servers that break off, refuse, change or lie; each test talks to a real one on the loopback."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness import corpus, fetch

NOISE = np.random.default_rng(5).bytes(1_000_000)


@dataclass
class Site:
    """What the server holds and how it behaves; requests are noted as (path, Range, If-Range, Authorization)."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    say_length: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, one entry a request
    statuses: list[int] = field(default_factory=list)  # answers given before the file is, one a request
    moved: dict[str, tuple[str, str]] = field(default_factory=dict)  # path -> (where to, sha256 stated)
    requests: list[tuple[str, str | None, str | None, str | None]] = field(default_factory=list)
    url: str = ""


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard = self.headers.get
            site.requests.append((self.path, heard("range"), heard("if-range"), heard("authorization")))
            if site.statuses:
                self.answer(site.statuses.pop(0), b"")
            elif self.path in site.moved:
                where, digest = site.moved[self.path]
                self.answer(302, b"", {"Location": where, "X-Linked-Etag": f'"{digest}"'})
            elif (content := site.files.get(self.path)) is None:
                self.answer(404, b"no such file")
            else:
                self.send_file(content)

        def send_file(self, content: bytes) -> None:
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            tags = {"ETag": etag} if site.etags else {}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")) if site.ranges else None
            if wanted is None or self.headers.get("if-range", etag) != etag:
                self.answer(200, content, tags)
            elif (start := int(wanted[1])) >= len(content):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            else:
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.answer(206, content[start:], {"Content-Range": span, **tags})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if site.say_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            limit = site.break_after.pop(0) if site.break_after and status in (200, 206) else len(body)
            self.wfile.write(body[:limit])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(site)) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HF_TOKEN",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)


def one_file(site: Site, checksum: fetch.Checksum | None = None) -> fetch.Recipe:
    return fetch.Recipe("one", (fetch.Download(f"{site.url}/noise.bin", "noise.bin", checksum=checksum),), {})


def sha256(content: bytes) -> fetch.Checksum:
    return fetch.Checksum("sha256", hashlib.sha256(content).hexdigest())


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def tone(hertz: float, kind: str) -> bytes:
    packed = io.BytesIO()
    soundfile.write(packed, 0.3 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000), 16_000, format=kind)
    return packed.getvalue()


class Waits(list[float]):
    """In place of sleeping between attempts: notes for how long it would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


# ---- one file ----------------------------------------------------------------------------------------------------------


def test_a_file_arrives_with_progress_and_leaves_nothing_else_behind(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE
    seen: list[fetch.Progress] = []
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, progress=seen.append)
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "noise.bin"]
    assert seen[-1] == fetch.Progress("noise.bin", "download", len(NOISE), len(NOISE))
    assert [step.done_bytes for step in seen] == sorted({step.done_bytes for step in seen})


def test_what_is_there_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE
    for _ in range(2):
        fetch.follow(one_file(site), tmp_path)
    assert len(site.requests) == 1


def test_a_broken_download_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"], site.break_after = NOISE, [300_000, 200_000]
    waits = Waits()
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=waits)
    assert (folder / "noise.bin").read_bytes() == NOISE
    etag = f'"{hashlib.md5(NOISE).hexdigest()}"'
    asked = [(span, condition) for _, span, condition, _ in site.requests]
    assert asked[0] == (None, None)
    assert [condition for _, condition in asked[1:]] == [etag, etag]
    starts = [int(re.sub(r"\D", "", span or "0")) for span, _ in asked]
    assert 0 < starts[1] <= 300_000
    assert starts[1] < starts[2] <= 500_000
    assert waits == [1.0, 1.0]  # each attempt had brought something


def test_a_later_run_goes_on_where_the_first_gave_up(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"], site.break_after = NOISE, [400_000, 0, 0, 0, 0, 0]
    waits = Waits()
    with pytest.raises(
        fetch.FetchError, match=r"gave up after 5 attempts .* kept in .*noise\.bin\.part; run the same command again"
    ):
        fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=waits)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert not (tmp_path / "one" / "dataset.json").exists()
    kept = (tmp_path / "one" / "noise.bin.part").read_bytes()
    assert 0 < len(kept) <= 400_000
    assert NOISE.startswith(kept)
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=waits)
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert site.requests[-1][1] == f"bytes={len(kept)}-"


def test_a_server_without_ranges_starts_again_and_still_arrives(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"], site.break_after, site.ranges = NOISE, [300_000], False
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=Waits())
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert len(site.requests) == 2


def test_a_server_that_states_no_length_is_believed_to_the_end(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"], site.say_length = NOISE, False
    seen: list[fetch.Progress] = []
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, progress=seen.append)
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert {step.total_bytes for step in seen} == {None}


def test_a_file_that_changed_in_between_is_not_patched_together(site: Site, tmp_path: Path) -> None:
    newer = NOISE[::-1]
    site.files["/noise.bin"], site.break_after = NOISE, [300_000]

    def replaced_meanwhile(_: float) -> None:
        site.files["/noise.bin"] = newer

    folder = fetch.follow(one_file(site), tmp_path, wait=replaced_meanwhile)
    assert (folder / "noise.bin").read_bytes() == newer


def test_a_part_of_unknown_origin_is_not_built_upon(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "noise.bin.part").write_bytes(b"of another version")
    folder = fetch.follow(one_file(site), tmp_path)
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert site.requests == [("/noise.bin", None, None, None)]


def test_a_part_that_is_already_whole_is_taken(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "noise.bin.part").write_bytes(NOISE)
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path)
    assert (folder / "noise.bin").read_bytes() == NOISE


def test_a_part_that_is_longer_than_the_file_is_dropped(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "noise.bin.part").write_bytes(NOISE + b"more")
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=Waits())
    assert (folder / "noise.bin").read_bytes() == NOISE


def test_a_wrong_checksum_is_said_and_the_file_removed(site: Site, tmp_path: Path) -> None:
    site.files["/noise.bin"] = NOISE[:-1] + b"\0"
    with pytest.raises(
        fetch.FetchError, match=rf"its sha256 is .* should be {sha256(NOISE).hexdigest}.*download it afresh"
    ):
        fetch.follow(one_file(site, sha256(NOISE)), tmp_path)
    assert list((tmp_path / "one").iterdir()) == []
    site.files["/noise.bin"] = NOISE
    assert (fetch.follow(one_file(site, sha256(NOISE)), tmp_path) / "noise.bin").read_bytes() == NOISE


@pytest.mark.parametrize(
    ("status", "advice"),
    [(404, "404 Not Found.*a mirror"), (403, "403 Forbidden.*HF_TOKEN"), (401, "HF_TOKEN"), (400, "400")],
)
def test_a_refusal_is_final_and_says_what_to_do(site: Site, tmp_path: Path, status: int, advice: str) -> None:
    site.statuses = [status]
    with pytest.raises(fetch.FetchError, match=rf"{site.url}/noise\.bin: .*{advice}"):
        fetch.follow(one_file(site), tmp_path, wait=Waits())
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_a_passing_trouble_is_waited_out(site: Site, tmp_path: Path, status: int) -> None:
    site.files["/noise.bin"], site.statuses = NOISE, [status, status]
    waits = Waits()
    folder = fetch.follow(one_file(site, sha256(NOISE)), tmp_path, wait=waits)
    assert (folder / "noise.bin").read_bytes() == NOISE
    assert waits == [2.0, 4.0]


def test_nobody_listening_ends_in_advice(tmp_path: Path) -> None:
    gone = fetch.Recipe("one", (fetch.Download("http://127.0.0.1:9/noise.bin", "noise.bin"),), {})
    with pytest.raises(fetch.FetchError, match=r"gave up after 5 attempts .*HTTPS_PROXY"):
        fetch.follow(gone, tmp_path, wait=Waits())


def test_an_address_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    wrong = fetch.Recipe("one", (fetch.Download("mirror.example/noise.bin", "noise.bin"),), {})
    with pytest.raises(fetch.FetchError, match=r"mirror\.example/noise\.bin: .*missing"):
        fetch.follow(wrong, tmp_path, wait=Waits())


def test_the_proxy_of_the_environment_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    site.files["http://corpora.invalid/noise.bin"] = NOISE
    through = fetch.Recipe("one", (fetch.Download("http://corpora.invalid/noise.bin", "noise.bin"),), {})
    assert (fetch.follow(through, tmp_path) / "noise.bin").read_bytes() == NOISE


# ---- archives ----------------------------------------------------------------------------------------------------------


def packed_recipe(site: Site) -> fetch.Recipe:
    return fetch.Recipe("packed", (fetch.Download(f"{site.url}/all.tar.gz", "corpus", unpack=True),), {})


def test_an_archive_is_unpacked_with_progress_and_removed(site: Site, tmp_path: Path) -> None:
    site.files["/all.tar.gz"] = archive({"a/b.txt": b"inside", "c.txt": b"beside"})
    seen: list[fetch.Progress] = []
    folder = fetch.follow(packed_recipe(site), tmp_path, progress=seen.append)
    assert (folder / "corpus" / "a" / "b.txt").read_bytes() == b"inside"
    assert sorted(path.name for path in folder.iterdir()) == ["corpus", "dataset.json"]
    assert [step.stage for step in seen][-1] == "unpack"


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt"])
def test_an_archive_cannot_write_outside_its_folder(site: Site, tmp_path: Path, name: str) -> None:
    site.files["/all.tar.gz"] = archive({"good.txt": b"good", name: b"evil"})
    with pytest.raises(fetch.FetchError, match=r"cannot be unpacked: .*outside"):
        fetch.follow(packed_recipe(site), tmp_path)
    assert list(tmp_path.rglob("outside.txt")) == []
    assert not (tmp_path / "packed" / "corpus").exists()


def test_an_absolute_name_in_an_archive_lands_inside(site: Site, tmp_path: Path) -> None:
    site.files["/all.tar.gz"] = archive({f"{tmp_path}/outside.txt": b"evil"})
    folder = fetch.follow(packed_recipe(site), tmp_path / "here")
    assert not (tmp_path / "outside.txt").exists()
    assert [path.read_bytes() for path in folder.rglob("outside.txt")] == [b"evil"]


def test_an_archive_with_a_link_is_refused(site: Site, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        link = tarfile.TarInfo("passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    site.files["/all.tar.gz"] = packed.getvalue()
    with pytest.raises(fetch.FetchError, match="'passwords' is neither a file nor a folder"):
        fetch.follow(packed_recipe(site), tmp_path)
    assert not (tmp_path / "packed" / "corpus").exists()


def test_a_damaged_archive_leaves_no_half_of_a_corpus(site: Site, tmp_path: Path) -> None:
    site.files["/all.tar.gz"] = archive({"a.bin": NOISE, "b.bin": NOISE})[:1_200_000]
    with pytest.raises(fetch.FetchError, match="cannot be unpacked"):
        fetch.follow(packed_recipe(site), tmp_path)
    assert not (tmp_path / "packed" / "corpus").exists()
    assert not (tmp_path / "packed" / "dataset.json").exists()


# ---- the corpora themselves --------------------------------------------------------------------------------------------


def test_librispeech_is_fetched_checked_and_loaded_by_name(site: Site, tmp_path: Path) -> None:
    members = {
        "LibriSpeech/README.TXT": b"about",
        "LibriSpeech/test-clean/61/70968/61-70968-0000.flac": tone(300, "FLAC"),
        "LibriSpeech/test-clean/61/70968/61-70968.trans.txt": b"61-70968-0000 HE BEGAN\n",
    }
    site.files["/resources/12/test-clean.tar.gz"] = content = archive(members)
    origins = fetch.Origins(openslr=site.url)
    real = fetch.recipe("librispeech-test-clean", origins)
    with pytest.raises(fetch.FetchError, match=r"its md5 is .* should be 32fa31d27d2e1cad72775fee3f4849a9"):
        fetch.follow(real, tmp_path / ".cache")
    checksum = fetch.Checksum("md5", hashlib.md5(content).hexdigest())
    ours = replace(real, downloads=(replace(real.downloads[0], checksum=checksum),))
    fetch.follow(ours, tmp_path / ".cache")
    loaded = corpus.load("librispeech-test-clean", datasets=tmp_path)
    assert [(u.id, u.text, u.speaker, u.seconds) for u in loaded.utterances] == [
        ("61-70968-0000", "HE BEGAN", "61", 1.0)
    ]
    assert loaded.licence.startswith("CC BY 4.0")


def fleurs_site(site: Site, language: str = "cmn_hans_cn") -> bytes:
    content = archive({"test/111.wav": tone(300, "WAV"), "test/222.wav": tone(400, "WAV")})
    base = f"/datasets/google/fleurs/resolve/main/data/{language}"
    rows = [
        f"{number}\t{name}.wav\t你好{number}\t你 好\t你 | 好\t16000\tFEMALE\n"
        for number, name in enumerate(("111", "222"))
    ]
    site.files[f"{base}/test.tsv"] = "".join(rows).encode()
    site.files["/blobs/1"] = content
    site.moved[f"{base}/audio/test.tar.gz"] = ("/blobs/1", hashlib.sha256(content).hexdigest())
    return content


def test_fleurs_is_fetched_by_its_stated_checksum_and_loaded_by_name(site: Site, tmp_path: Path) -> None:
    fleurs_site(site)
    origins = fetch.Origins(hugging_face=f"{site.url}/", hugging_face_token="secret")
    folder = fetch.fetch("fleurs-cmn_hans_cn", into=tmp_path / ".cache", origins=origins)
    loaded = corpus.load("fleurs-cmn_hans_cn", datasets=tmp_path)
    assert [(u.id, u.text, u.language, u.seconds) for u in loaded.utterances] == [
        ("111", "你好0", "zh", 1.0),
        ("222", "你好1", "zh", 1.0),
    ]
    assert corpus.check("fleurs-cmn_hans_cn", datasets=tmp_path).problems == ()
    assert [dataset.folder for dataset in corpus.available(tmp_path)] == [folder]
    assert {authorization for _, _, _, authorization in site.requests} == {"Bearer secret"}


def test_a_checksum_that_the_server_states_is_held_against_the_file(site: Site, tmp_path: Path) -> None:
    content = fleurs_site(site)
    site.files["/blobs/1"] = content[:-1] + b"\1"
    with pytest.raises(fetch.FetchError, match=f"should be {hashlib.sha256(content).hexdigest()}"):
        fetch.fetch("fleurs-cmn_hans_cn", into=tmp_path, origins=fetch.Origins(hugging_face=site.url))


def test_the_token_is_not_sent_on_to_another_host(site: Site, tmp_path: Path) -> None:
    fleurs_site(site)
    path = next(iter(site.moved))
    where, digest = site.moved[path]
    site.moved[path] = (site.url.replace("127.0.0.1", "localhost") + where, digest)
    fetch.fetch(
        "fleurs-cmn_hans_cn", into=tmp_path, origins=fetch.Origins(hugging_face=site.url, hugging_face_token="secret")
    )
    assert {path: authorization for path, _, _, authorization in site.requests}["/blobs/1"] is None


def test_mirrors_and_token_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.Origins.from_environment() == fetch.Origins("https://www.openslr.org", "https://huggingface.co", "")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HF_TOKEN", "abc")
    monkeypatch.setenv("EARMARK_OPENSLR", "https://us.openslr.org/")
    (download,) = fetch.recipe("librispeech-test-other").downloads
    assert (download.url, download.headers) == ("https://us.openslr.org/resources/12/test-other.tar.gz", {})
    table, sound = fetch.recipe("fleurs-en_us").downloads
    assert table.url == "https://mirror.example/datasets/google/fleurs/resolve/main/data/en_us/test.tsv"
    assert sound.url == "https://mirror.example/datasets/google/fleurs/resolve/main/data/en_us/audio/test.tar.gz"
    assert sound.headers == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fleurs-en", "no language 'en'; perhaps fleurs-en_us"),
        ("fleurs-zh", "no language 'zh'; perhaps fleurs-"),
        ("librispeech-train", "'librispeech-train' cannot be fetched; there are librispeech-test-clean"),
        ("ted", "'ted' cannot be fetched"),
    ],
)
def test_an_unknown_corpus_is_told_from_the_known(name: str, why: str) -> None:
    with pytest.raises(fetch.FetchError, match=why):
        fetch.recipe(name)


def test_every_name_that_is_offered_has_a_recipe() -> None:
    assert [fetch.recipe(name).name for name in fetch.fetchable()] == fetch.fetchable()
