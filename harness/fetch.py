"""Downloads public speech corpora from their own sites, so that they can be loaded by name.

A dataset's folder holds a ``dataset.json`` only once everything in it has arrived whole: what was broken off is taken up again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from harness.corpus import CorpusError, datasets_folder
from harness.corpus.catalogue import CACHE, CARD

OPENSLR = "https://www.openslr.org"
HUGGING_FACE = "https://huggingface.co"
FRUITLESS_ATTEMPTS = 5  # in a row without one new byte, then we give up
LONGEST_WAIT_SECONDS = 30.0
TIMEOUT = httpx.Timeout(30.0)
MAX_UNPACKED_BYTES = 32 << 30
MAX_UNPACKED_FILES = 1_000_000

_LANGUAGES = (
    "af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb da_dk de_de el_gr"
    " en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu hy_am id_id ig_ng is_is"
    " it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke lv_lv mi_nz mk_mk"
    " ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl ps_af pt_br ro_ro ru_ru"
    " sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao ur_pk uz_uz vi_vn wo_sn xh_za"
    " yo_ng yue_hant_hk zu_za"
)
FLEURS_LANGUAGES = _LANGUAGES.split()  # the subsets of google/fleurs, as its folders are called


class FetchError(CorpusError):
    """A download failed for good; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """``stage`` is "download" or "unpack"; ``total_bytes`` is None where the server does not say."""

    file: str
    stage: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Checksum:
    """``algorithm`` is a name that hashlib knows."""

    algorithm: str
    hexdigest: str


@dataclass(frozen=True, slots=True)
class Download:
    """``into`` is relative to the dataset's folder: the file itself, or, for an archive, the folder it is unpacked into.

    Without a ``checksum`` of ours the one that the server states is used, if it states one (Hugging Face does for large files).
    """

    url: str
    into: str
    unpack: bool = False
    checksum: Checksum | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Files, and the card that makes them a dataset once they are there."""

    name: str
    downloads: tuple[Download, ...]
    card: dict[str, str]


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the corpora are had; a mirror can stand in for either."""

    openslr: str = OPENSLR
    hugging_face: str = HUGGING_FACE
    hugging_face_token: str = ""

    @classmethod
    def from_environment(cls) -> Origins:
        """``EARMARK_OPENSLR`` and ``HF_ENDPOINT`` name mirrors, ``HF_TOKEN`` is sent to Hugging Face alone."""
        return cls(
            os.environ.get("EARMARK_OPENSLR") or OPENSLR,
            os.environ.get("HF_ENDPOINT") or HUGGING_FACE,
            os.environ.get("HF_TOKEN", ""),
        )


def fetchable() -> list[str]:
    """Every name that ``fetch`` knows."""
    return [
        "librispeech-test-clean",
        "librispeech-test-other",
        *(f"fleurs-{language}" for language in FLEURS_LANGUAGES),
    ]


def recipe(name: str, origins: Origins | None = None) -> Recipe:
    """How the dataset of that name is had. Raises FetchError for a name nobody knows."""
    origins = origins or Origins.from_environment()
    match name.partition("-"):
        case "librispeech", _, ("test-clean" | "test-other") as split:
            return _librispeech(split, origins)
        case "fleurs", _, language if language in FLEURS_LANGUAGES:
            return _fleurs(language, origins)
        case "fleurs", _, language:
            near = [known for known in FLEURS_LANGUAGES if known.startswith(language[:2])] or FLEURS_LANGUAGES
            raise FetchError(f"FLEURS has no language {language!r}; perhaps fleurs-{', fleurs-'.join(near[:6])}")
    raise FetchError(
        f"{name!r} cannot be fetched; there are librispeech-test-clean, librispeech-test-other and fleurs-LANG"
    )


def fetch(
    name: str,
    *,
    into: Path | None = None,
    origins: Origins | None = None,
    progress: Callable[[Progress], None] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """The dataset's folder, downloaded unless it is there: ``into``/NAME, by default datasets/.cache/NAME.

    Proxies are taken from the usual variables. Raises FetchError when a file is not to be had or not what it should be.
    """
    found = recipe(name, origins)
    return follow(found, into or datasets_folder() / CACHE, progress=progress, wait=wait)


def follow(
    steps: Recipe,
    into: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Downloads, verifies and unpacks what the recipe lists and has not yet arrived; ``wait`` is called between attempts."""
    folder = into / steps.name
    if (folder / CARD).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda _: None)
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"}) as client:
        for item in steps.downloads:
            _obtain(client, item, folder, report, wait)
    finished = folder / f"{CARD}.part"
    finished.write_text(json.dumps({"name": steps.name, **steps.card}, indent=2) + "\n", "utf-8")
    finished.replace(folder / CARD)
    return folder


# ---- the recipes ---------------------------------------------------------------------------------------------------------


def _librispeech(split: str, origins: Origins) -> Recipe:
    # The sums are those of https://www.openslr.org/resources/12/md5sum.txt
    md5 = {"test-clean": "32fa31d27d2e1cad72775fee3f4849a9", "test-other": "fb5a50374b501bb3bac4815ee91d3135"}[split]
    url = f"{origins.openslr.rstrip('/')}/resources/12/{split}.tar.gz"
    return Recipe(
        name=f"librispeech-{split}",
        downloads=(Download(url, into="corpus", unpack=True, checksum=Checksum("md5", md5)),),
        card={
            "description": f"LibriSpeech {split}: read English from LibriVox, about 5 hours",
            "language": "en",
            "licence": "CC BY 4.0, V. Panayotov, G. Chen, D. Povey, S. Khudanpur, 2015",
            "source": url,
            "format": "librispeech",
            "path": f"corpus/LibriSpeech/{split}",
        },
    )


def _fleurs(language: str, origins: Origins) -> Recipe:
    base = f"{origins.hugging_face.rstrip('/')}/datasets/google/fleurs/resolve/main/data/{language}"
    headers = {"Authorization": f"Bearer {origins.hugging_face_token}"} if origins.hugging_face_token else {}
    code = language.partition("_")[0]
    return Recipe(
        name=f"fleurs-{language}",
        downloads=(
            Download(f"{base}/test.tsv", into=f"{language}/test.tsv", headers=headers),
            Download(f"{base}/audio/test.tar.gz", into=f"{language}/audio", unpack=True, headers=headers),
        ),
        card={
            "description": f"FLEURS {language}, test split: sentences of Wikipedia read aloud",
            "language": {"cmn": "zh"}.get(code, code),
            "licence": "CC BY 4.0, A. Conneau et al., 2022",
            "source": base,
            "format": "fleurs",
            "path": language,
            "split": "test",
        },
    )


# ---- one file ------------------------------------------------------------------------------------------------------------

Report = Callable[[Progress], None]


def _obtain(client: httpx.Client, item: Download, folder: Path, report: Report, wait: Callable[[float], None]) -> None:
    target = folder / item.into
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = folder / f"{item.url.rpartition('/')[2]}.part"
    stated = _download(client, item, part, report, wait)
    checksum = item.checksum or stated
    if checksum is not None:
        _verify(part, item.url, checksum)
    if item.unpack:
        _unpack(part, target, item.url, report)
        part.unlink()
    else:
        part.replace(target)
    _validator(part).unlink(missing_ok=True)


def _download(
    client: httpx.Client, item: Download, part: Path, report: Report, wait: Callable[[float], None]
) -> Checksum | None:
    """Fills ``part``, going on where it ends; gives the checksum that the server states, if it states one."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(client, item, part, report)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise FetchError(f"{item.url}: {error}") from error
        except httpx.TransportError as error:
            why = f"{type(error).__name__}: {error}"
        except _Again as again:
            why = str(again)
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
        if fruitless >= FRUITLESS_ATTEMPTS:
            raise FetchError(
                f"{item.url}: gave up after {fruitless} attempts without a new byte ({why}). What has arrived is kept in {part};"
                " run the same command again to go on. Behind a proxy set HTTPS_PROXY"
            )
        wait(min(2.0**fruitless, LONGEST_WAIT_SECONDS))


class _Again(Exception):  # noqa: N818 - a signal, not a fault
    """This attempt has failed in a way that another may not."""


def _attempt(client: httpx.Client, item: Download, part: Path, report: Report) -> Checksum | None:
    have = part.stat().st_size if part.exists() else 0
    validator = _validator(part)
    headers = dict(item.headers)
    if have and (
        validator.exists() or item.checksum
    ):  # else the halves of two versions could end up in one file unnoticed
        headers["Range"] = f"bytes={have}-"
        if validator.exists():  # the rest is only sent if the file is still the one that we have the beginning of
            headers["If-Range"] = validator.read_text("ascii")
    with client.stream("GET", item.url, headers=headers) as response:
        status = response.status_code
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("content-range") == f"bytes */{have}":
                return _stated_checksum(response)
            part.unlink()
            raise _Again("the part that had arrived is longer than the file; starting again")
        if status >= 500 or status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS):
            raise _Again(f"the server answered {status}")
        if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise FetchError(_refused(item.url, status))
        start, total = _span(response, item.url)
        if status == httpx.codes.OK:
            _remember_validator(validator, response)
        elif start != have:
            part.unlink()
            raise _Again(f"asked for the file from byte {have}, got it from {start}; starting again")
        _require_room(part, total, start)
        with part.open("ab" if start else "wb") as file:
            for chunk in response.iter_raw():  # as it arrives: nothing is lost when the connection breaks
                file.write(chunk)
                report(Progress(part.stem, "download", file.tell(), total))
        done = part.stat().st_size
        if total is not None and done != total:
            raise _Again(f"the connection ended at {done} of {total} bytes")
        return _stated_checksum(response)


def _span(response: httpx.Response, url: str) -> tuple[int, int | None]:
    """First byte that the body holds, and length of the whole file if it is said."""
    if response.status_code == httpx.codes.OK:
        length = response.headers.get("content-length")
        return 0, int(length) if length and length.isdecimal() else None
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if span is None:
        raise FetchError(f"{url}: answered 206 with the Content-Range {response.headers.get('content-range')!r}")
    return int(span[1]), None if span[2] == "*" else int(span[2])


def _stated_checksum(response: httpx.Response) -> Checksum | None:
    """Hugging Face names the SHA-256 of a large file when it sends us on to where the file lies."""
    for step in (*response.history, response):
        digest = step.headers.get("x-linked-etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return Checksum("sha256", digest)
    return None


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember_validator(path: Path, response: httpx.Response) -> None:
    etag = response.headers.get("etag", "")
    if etag.isascii() and etag.startswith('"'):  # a weak one (W/"...") may not be used with a range
        path.write_text(etag, "ascii")
    else:
        path.unlink(missing_ok=True)


def _require_room(part: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - have:
        raise FetchError(f"{part.parent}: {(total - have) >> 20} MiB are still to come and {free >> 20} MiB are free")


def _refused(url: str, status: int) -> str:
    match status:
        case 401 | 403:
            advice = "the server wants to know who asks: set HF_TOKEN, or look whether a proxy stands in between"
        case 404 | 410:
            advice = "the corpus is no longer there; a mirror can be named by EARMARK_OPENSLR or HF_ENDPOINT"
        case _:
            advice = "an answer that we cannot use"
    return f"{url}: {status} {httpx.codes.get_reason_phrase(status)}; {advice}"


def _verify(part: Path, url: str, checksum: Checksum) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, checksum.algorithm).hexdigest()
    if found != checksum.hexdigest:
        part.unlink()
        _validator(part).unlink(missing_ok=True)
        raise FetchError(
            f"{url}: its {checksum.algorithm} is {found}, and should be {checksum.hexdigest}. The file has been removed; run the"
            " same command again to download it afresh"
        )


# ---- unpacking -----------------------------------------------------------------------------------------------------------


def _unpack(archive: Path, target: Path, url: str, report: Report) -> None:
    """Into a folder of another name first, so that ``target`` never stands half full."""
    fresh = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    size = archive.stat().st_size
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            _extract(tar, file, fresh, Progress(archive.stem, "unpack", 0, size), report)
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise FetchError(f"{url}: the archive {archive} cannot be unpacked: {error}") from error
    fresh.replace(target)


def _extract(tar: tarfile.TarFile, file: IO[bytes], fresh: Path, begun: Progress, report: Report) -> None:
    unpacked_bytes = 0
    for number, member in enumerate(tar, 1):
        unpacked_bytes += member.size
        if unpacked_bytes > MAX_UNPACKED_BYTES or number > MAX_UNPACKED_FILES:
            raise tarfile.TarError(f"more than {MAX_UNPACKED_BYTES >> 30} GiB or {MAX_UNPACKED_FILES} files in it")
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
        tar.extract(member, fresh, filter="data")  # refuses whatever would land outside the folder
        report(Progress(begun.file, begun.stage, file.tell(), begun.total_bytes))
