"""``python -m paperlib``: the command line."""

from paperlib.companion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
