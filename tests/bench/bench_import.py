"""What ``import paperlib`` costs beyond ``import torch``."""

import subprocess
import sys
from collections.abc import Iterator

from bench import Row, in_turn, main

ROUNDS = 7
LIMIT = 0.3


def rows() -> Iterator[Row]:
    """Seconds of a fresh interpreter, the two imports in turn."""
    times = in_turn(
        ROUNDS,
        paperlib=lambda: subprocess.run([sys.executable, "-c", "import paperlib"], check=True),
        torch=lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
    )
    beyond = times["paperlib"] - times["torch"]
    peers = {"import torch": times["torch"], "import paperlib": times["paperlib"]}
    yield Row("import paperlib, beyond import torch", beyond, "s", f"≤ {LIMIT}", beyond <= LIMIT, peers)


if __name__ == "__main__":
    main(rows)
