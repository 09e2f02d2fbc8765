"""A foreign program is found, skipped for, or failed for."""

import shutil

import pytest

from tests.support.programs import REQUIRE, require_program


def test_an_installed_program_is_found() -> None:
    assert require_program("sh", "dash") == shutil.which("sh")


def test_a_missing_program_skips_and_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^no-such is not installed \(.* none-such\)$"):
        require_program("no-such", "none-such")


def test_a_missing_program_fails_where_programs_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match=r"no-such .* none-such"):
        require_program("no-such", "none-such")
