"""The conformance set: every check, on every flavour of stream, on every kind of loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import conformance

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.flavours import Flavour


def named(checks: list[Any]) -> Any:
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)


@pytest.mark.parametrize("kind", conformance.CALLABLES)
@named(conformance.CALLABLE_CHECKS)
def test_callable(
    check: conformance.CallableCheck, kind: str, flavour: Flavour, run: Callable[..., Any]
) -> None:
    run(check(flavour, conformance.CALLABLES[kind]))


@named(conformance.SERVER_CHECKS)
def test_server(check: conformance.Check, flavour: Flavour, run: Callable[..., Any]) -> None:
    run(check(flavour))


@named(conformance.CLIENT_CHECKS)
def test_client(check: conformance.Check, flavour: Flavour, run: Callable[..., Any]) -> None:
    run(check(flavour))
