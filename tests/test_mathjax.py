"""The site's MathJax: taken by hash."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from tools import mathjax


def package(content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"package/es5/{mathjax.FILE}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def test_the_file_is_taken_where_the_hash_is_right() -> None:
    made = package(b"mathematics")
    assert mathjax.extract(made, base64.b64encode(hashlib.sha512(made).digest()).decode()) == b"mathematics"


def test_another_package_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mathjax@.* expected Bt\+"):
        mathjax.extract(package(b"something else"))


def test_the_site_looks_where_it_is_put(repository: Path) -> None:
    assert f'mathjax_path = "mathjax/{mathjax.VERSION}/{mathjax.FILE}"' in (repository / "docs" / "conf.py").read_text()
