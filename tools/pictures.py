"""PNG files at a third of their size, where nobody sees the difference: ``python -m tools.pictures FILES``.

A plot has few colours and its antialiasing; 64 to 256 of them are enough.  They are chosen so that the worst pixel is
served, not the mean of them: the colour of a line that is seen in the legend alone has a hundred pixels in a million.
Where they are not enough (photographs: the error is more than :data:`SEEN` grey levels) all colours stay.  Takes PNG
files and pictures in notebooks.
"""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SEEN = {"mean": 1.5, "largest": 24}
"""Error of a channel, of 255, that may be made: the mean over the picture and the largest of any pixel."""


def packed(data: bytes) -> bytes:
    """The picture with as few colours as will do; never larger than it was, and as it is if it was packed already."""
    picture = Image.open(io.BytesIO(data))
    if picture.mode == "P":
        return data
    whole = picture.convert("RGB")
    tried = (
        whole.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE) for colours in (64, 128, 256)
    )
    good = (few for few in tried if _like(few, whole))
    stream = io.BytesIO()
    next(good, whole).save(stream, format="PNG", optimize=True)
    return min(data, stream.getvalue(), key=len)


def _like(few: Image.Image, whole: Image.Image) -> bool:
    error = np.abs(np.asarray(few.convert("RGB"), dtype=int) - np.asarray(whole))
    return bool(error.mean() <= SEEN["mean"] and error.max() <= SEEN["largest"])


def pack(path: Path) -> None:
    """Pack a PNG file, or every picture that a notebook shows, in place."""
    if path.suffix == ".png":
        path.write_bytes(packed(path.read_bytes()))
        return
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                data = base64.b64decode("".join(picture))
                output["data"]["image/png"] = base64.b64encode(packed(data)).decode()
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        pack(Path(name))
