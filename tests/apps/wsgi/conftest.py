"""What the tests of WSGI servers share."""

from typing import Any

import pytest

pytest.register_assert_rewrite("tests.apps.wsgi.client", "tests.apps.wsgi.serving")

from tests.support.certs import certs  # noqa: E402 - rewritten first

__all__ = ["certs"]


@pytest.fixture(params=[0, 2], ids=["loop", "threads"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings: the application runs on the loop, or in threads."""
    return {"thread_workers": request.param}
