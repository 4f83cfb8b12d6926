"""The live page as files: who gets it, with which headers, and that nothing in it comes from elsewhere."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
import urllib.error
import urllib.request
from email.message import Message

import pytest

from server.endpoints.page import wants_html
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import ROOT, RunningServer

FILES = ROOT / "server" / "page"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


def get(server: RunningServer, path: str, **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.mark.spec("http-16")
def test_a_browser_gets_the_page(server: RunningServer) -> None:
    status, headers, body = get(server, "/", Accept=BROWSER)
    assert (status, headers["Content-Type"], headers["Vary"]) == (200, "text/html; charset=utf-8", "Accept")
    assert body == (FILES / "index.html").read_bytes()


@pytest.mark.spec("http-04")
@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/json, text/html;q=0.5", "text/html;q=0", "text/plain"]
)
def test_everybody_else_gets_json(server: RunningServer, accept: str) -> None:
    status, headers, body = get(server, "/", Accept=accept)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    answer = json.loads(body)
    assert (answer["name"], answer["surfaces"], answer["require_key"]) == (
        "Earmark",
        ["yap", "realtime", "rest", "openai", "sessions"],
        False,
    )


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML ; q=0.3", True),
        ("text/html;level=1;q=0.4, application/json;q=0.4", True),
        ("text/html;q=nonsense", False),
        ("text/html;q=", False),
        ("", False),
        (",;,", False),
        ("text/html;q=0.4, application/json", False),
    ],
)
def test_html_is_for_those_who_name_it(accept: str, html: bool) -> None:
    assert wants_html(accept) is html


@pytest.mark.parametrize(
    "file", sorted(path.name for path in FILES.iterdir() if path.suffix in TYPES and path.name != "index.html")
)
def test_a_file_has_its_type_and_is_asked_for_again_only_by_its_tag(server: RunningServer, file: str) -> None:
    status, headers, body = get(server, f"/page/{file}")
    assert (status, body) == (200, (FILES / file).read_bytes())
    assert headers["Content-Type"].startswith(TYPES["." + file.rpartition(".")[2]])
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-cache", "nosniff")
    tag = headers["ETag"]
    assert get(server, f"/page/{file}", **{"If-None-Match": f'"other", W/{tag}'})[0::2] == (304, b"")
    assert get(server, f"/page/{file}", **{"If-None-Match": '"other"'})[0] == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html"]
)
def test_nothing_else_is_below_the_page(server: RunningServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_the_policy_lets_nothing_in_from_elsewhere_and_no_script_into_the_page(server: RunningServer) -> None:
    policy = get(server, "/", Accept=BROWSER)[1]["Content-Security-Policy"]
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives.pop("default-src") == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert set(directives.values()) <= {"'self'", "'none'"}


def test_every_file_that_is_named_is_there_and_is_packaged() -> None:
    named = set()
    for file in FILES.iterdir():
        text = file.read_text()
        named |= set(re.findall(r'"(?:/page/|\./)([\w.]+)"', text))
        assert not re.search(r"(?:src|href|url|from|import)\W{1,3}(?:https?:)?//", text), file
    there = {file.name for file in FILES.iterdir()}
    assert named | {"index.html"} == there
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["server"]
    assert all(any(fnmatch.fnmatch(f"page/{name}", pattern) for pattern in patterns) for name in there)


def test_the_page_can_be_switched_off(serve: Serve) -> None:
    server = serve("--no-page")
    assert get(server, "/", Accept=BROWSER)[1]["Content-Type"] == "application/json"
    assert get(server, "/page/page.js")[0] == 404
