"""Tests of what an ordinary user may not do, also when root runs the suite.

Owns: ``unprivileged``. Leaves: everything else.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NOBODY = 65534

# A codec that cannot be imported is unknown for good, and addresses need this one.
"localhost".encode("idna")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block without root's rights; the process gets them back behind it.

    Keep the block short: nothing that root owns can be opened in it, not even
    a module that is imported late.
    """
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
