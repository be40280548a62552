"""README.md for a package index, where links into the checkout lead nowhere: addresses where PAPERLIB_REPOSITORY names
the repository, else words without a link, and no pictures."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def for_index(text: str, repository: str = "") -> str:
    """The README with every relative link made absolute, or taken out."""

    def link(match: re.Match[str]) -> str:
        picture, words, path = match.groups()
        if not repository:
            return "" if picture else words
        return f"{picture}[{words}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/main/{path})"

    return LINK.sub(link, text)


class IndexPage(MetadataHookInterface):
    """Called by hatchling when it makes a distribution's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        text = for_index(Path(self.root, "README.md").read_text(encoding="utf-8"), os.getenv("PAPERLIB_REPOSITORY", ""))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
