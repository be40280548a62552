"""``python -m tools.mathjax``: MathJax for the site, from its npm package, so that pages need no network.

The package is taken by version and held to the integrity that the registry states for it; one file of it is kept, the
one that draws SVG and needs no fonts.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from paperlib import files

VERSION = "3.2.2"
SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
FILE = "tex-svg-full.js"
TARGET = Path(__file__).resolve().parents[1] / "docs" / "_static" / "mathjax" / VERSION / FILE


def vendor(target: Path = TARGET) -> None:
    """Put MathJax where the site expects it, unless it is there.

    Raises:
        RuntimeError: without npm, or when npm fails.
        ValueError: when the package is not the one that is expected.
    """
    if target.is_file():
        return
    if not shutil.which("npm"):
        raise RuntimeError(f"The site needs mathjax@{VERSION} from npm, which is not on PATH: install Node.js.")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"mathjax@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(target, extract((Path(folder) / done.stdout.strip()).read_bytes()))


def extract(package: bytes, sha512: str = SHA512) -> bytes:
    """The one file of the npm package, whose hash is checked."""
    found = base64.b64encode(hashlib.sha512(package).digest()).decode()
    if found != sha512:
        raise ValueError(f"mathjax@{VERSION} has the SHA-512 {found}, expected {sha512}.")
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        member = archive.extractfile(f"package/es5/{FILE}")
        assert member is not None
        return member.read()


if __name__ == "__main__":
    try:
        vendor()
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
