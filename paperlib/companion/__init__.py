"""The companion: what turns the library into the paper's notebooks, figures, tables and ledger of claims.

A notebook needs one line of it::

    from paperlib import companion

    run = companion.start("03_invariance", profile)

after which ``run.figure``, ``run.table`` and ``run.claim`` write what a reader is to find (see `run`).
Headless runs, provenance and the command line are in `runner`, `provenance` and `cli`; no notebook imports those.
"""

from typing import Any

__all__ = ["Run", "start"]


def __getattr__(name: str) -> Any:
    """Taken from `run` when asked for: the command line has to say what is missing without Matplotlib."""
    if name in __all__:
        from paperlib.companion import run

        return getattr(run, name)
    raise AttributeError(f"module 'paperlib.companion' has no attribute {name!r}.")
