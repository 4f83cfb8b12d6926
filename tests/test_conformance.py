"""Every promise of docs/protocols/ is proven by a test, and docs/conformance.md says by which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.account import PAGE, Account
from tests.conformance.promises import PageError
from tests.conformance.proofs import MarkError


@pytest.fixture(scope="module")
def account() -> Account:
    return Account.read()


def test_there_are_promises(account: Account) -> None:
    assert account.promises


def test_every_promise_has_a_test(account: Account) -> None:
    assert account.unproven == []


def test_tests_name_promises_that_exist(account: Account) -> None:
    assert account.unknown == []


def test_no_two_promises_have_one_name(account: Account) -> None:
    assert account.repeated == []


def test_the_page_is_what_the_generator_writes(account: Account) -> None:
    assert PAGE.read_text(encoding="utf-8") == account.page(), "run: nox -s docs"


def project(root: Path, page: str = "", test: str = "", name: str = "yap.md") -> Account:
    """The account of a project with one page and one file of tests."""
    (root / "docs" / "protocols").mkdir(parents=True)
    (root / "docs" / "protocols" / name).write_text(page)
    (root / "tests" / "near").mkdir(parents=True)
    (root / "tests" / "near" / "test_it.py").write_text(test)
    return Account.read(root)


def test_a_promise_goes_on_over_indented_lines_and_ends_before_the_next(tmp_path: Path) -> None:
    page = "# Page\n\n- **yap-01** One\n  and more.\n- **yap-02** Two.\nNot part of it.\n\n```\n- **yap-03** an example\n```\n"
    assert [(promise.name, promise.text) for promise in project(tmp_path, page).promises] == [
        ("yap-01", "One and more."),
        ("yap-02", "Two."),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "- **yap-1** One digit.",
        "* **yap-01** A star.",
        "- **YAP-01** Capitals.",
        "- **yap-01**No space.",
        "- **yap-01**",
    ],
)
def test_what_is_nearly_a_promise_is_an_error_that_shows_how_to_write_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(PageError, match=re.escape("yap.md:1: write a promise as '- **yap-07** text'")):
        project(tmp_path, line + "\n")


def test_a_promise_on_another_surfaces_page_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"promises of rest belong to rest\.md"):
        project(tmp_path, "- **rest-01** One.\n")


def test_unproven_unknown_and_repeated_names_are_found(tmp_path: Path) -> None:
    page = "- **yap-01** One.\n- **yap-02** Two.\n- **yap-02** Again.\n"
    account = project(tmp_path, page, "import pytest\n@pytest.mark.spec('yap-02', 'yap-09')\ndef test_two(): ...\n")
    assert account.unproven == ["yap-01"]
    assert [(proof.promise, proof.file, proof.test) for proof in account.unknown] == [
        ("yap-09", "near/test_it.py", "test_two")
    ]
    assert account.repeated == ["yap-02"]


MARKED = """
import pytest
pytestmark = [pytest.mark.timeout(3), pytest.mark.spec("yap-01")]
CASES = [pytest.param(1, marks=pytest.mark.spec("yap-02")), 2]

@pytest.mark.parametrize("n", CASES)
async def test_named_list(n): ...

@pytest.mark.parametrize("n", [pytest.param(1, marks=[pytest.mark.spec("yap-03")])])
def test_list(n): ...

@pytest.mark.spec("yap-04")
class TestThem:
    pytestmark = pytest.mark.spec("yap-05")

    @pytest.mark.spec("yap-06", "yap-04")
    def test_in_class(self): ...
"""


def test_marks_are_found_wherever_pytest_takes_them_from(tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}
    for proof in project(tmp_path, test=MARKED).proofs:
        found.setdefault(proof.test, set()).add(proof.promise)
    assert found == {
        "test_named_list": {"yap-01", "yap-02"},
        "test_list": {"yap-01", "yap-03"},
        "TestThem::test_in_class": {"yap-01", "yap-04", "yap-05", "yap-06"},
    }


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (
            "import pytest\n@pytest.mark.spec('yap-01')\ndef check(): ...\n",
            "test_it.py:2: this spec mark is on no test",
        ),
        ("import pytest\n@pytest.mark.spec()\ndef test_it(): ...\n", "test_it.py:2: name promises"),
        (
            "import pytest\n@pytest.mark.spec(*MANY)\ndef test_it(): ...\n",
            "test_it.py:2: write the promise's name itself",
        ),
        (
            "import pytest\n@pytest.mark.spec('yap-01')\n@pytest.mark.skip(reason='later')\ndef test_it(): ...\n",
            "test_it.py:4: test_it is skipped or expected to fail",
        ),
    ],
)
def test_a_mark_that_proves_nothing_is_an_error(tmp_path: Path, source: str, fault: str) -> None:
    with pytest.raises(MarkError, match=re.escape(fault)):
        project(tmp_path, test=source)


def test_the_page_counts_and_links(tmp_path: Path) -> None:
    page = "- **yap-01** One [link](realtime.md) | two.\n- **yap-02** Two.\n"
    account = project(tmp_path, page, "import pytest\n@pytest.mark.spec('yap-01')\ndef test_one(): ...\n")
    written = account.page()
    assert "| [yap](#yap) | 2 | 1 | 1 |\n| all | 2 | 1 | 1 |\n" in written
    assert "| yap-01 | One link \\| two. | [near/test_it.py::test_one](../tests/near/test_it.py) |\n" in written
    assert "| yap-02 | Two. | **none** |\n" in written
