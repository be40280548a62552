"""Where encoded images are found, and their way from files or from the hub."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import COLLECTION, encode, noise, write_shards

from paperlib.engine import data
from paperlib.engine.decode import MissingDataError, Source, find

CONTENTS = [encode(pixels) for pixels in noise(12)]
LABELS = [number % 7 for number in range(12)]


def rows(source: Source, batch_size: int = 5) -> tuple[list[bytes], list[int]]:
    """All images and labels of a source."""
    contents, labels = [], []
    for images, numbers in source.stream(batch_size):
        assert len(images) == len(numbers) <= batch_size
        contents += [image["bytes"] for image in images]
        labels += numbers
    return contents, labels


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_come_in_the_order_of_the_files(tmp_path: Path, number: int, batch_size: int) -> None:
    write_shards(tmp_path, CONTENTS, LABELS, number)
    source = find(COLLECTION, "train", tmp_path)
    assert rows(source, batch_size) == (CONTENTS, LABELS)
    assert source.count() == 12


def test_files_are_read_as_the_stream_reaches_them(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, CONTENTS, LABELS, 4)
    source = find(COLLECTION, "train", tmp_path)
    stream = source.stream(3)
    assert next(stream)[1] == LABELS[:3]
    paths[-1].write_bytes(b"no parquet at all")
    assert next(stream)[1] == LABELS[3:6]
    with pytest.raises(Exception, match=r"(?i)parquet"):
        list(stream)


def test_files_are_read_without_the_package_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    write_shards(tmp_path, CONTENTS, LABELS, 2)
    assert rows(find(COLLECTION, "train", tmp_path)) == (CONTENTS, LABELS)
    with pytest.raises(ImportError, match="read with the package datasets"):
        rows(find(COLLECTION, "train"))


def test_a_root_comes_before_the_data_folder_and_that_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(COLLECTION, "train").files == ()
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    assert find(COLLECTION, "train").files == ()  # there is no folder noise
    configured = write_shards(tmp_path / "noise", CONTENTS, LABELS)
    assert find(COLLECTION, "train").files == tuple(configured)
    given = write_shards(tmp_path / "other" / "data", CONTENTS, LABELS, 3)  # as the hub lays them out
    assert find(COLLECTION, "train", tmp_path / "other").files == tuple(given)


def test_the_data_folder_may_begin_at_home_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = write_shards(tmp_path / "pictures" / "noise", CONTENTS, LABELS)
    monkeypatch.setenv("PAPERLIB_DATA", "~/pictures")
    assert find(COLLECTION, "train").files == tuple(paths)
    assert find(COLLECTION, "train", "~/pictures/noise").files == tuple(paths)
    for wrong in ("~/picturse", str(tmp_path / "none")):
        monkeypatch.setenv("PAPERLIB_DATA", wrong)
        with pytest.raises(MissingDataError, match=f"PAPERLIB_DATA is {wrong}, which is no folder"):
            find(COLLECTION, "train")


def test_our_test_split_has_the_name_of_the_published_one(tmp_path: Path) -> None:
    write_shards(tmp_path, CONTENTS, LABELS)
    paths = write_shards(tmp_path, CONTENTS[:5], LABELS[:5], split="validation")
    assert find(COLLECTION, "test", tmp_path).files == tuple(paths)


def test_a_folder_without_the_files_is_refused_with_what_to_fetch(tmp_path: Path) -> None:
    write_shards(tmp_path, CONTENTS, LABELS)
    with pytest.raises(MissingDataError, match=r"has no validation.parquet or validation-\*.parquet") as caught:
        find(COLLECTION, "test", tmp_path)
    assert "hf download nobody/noise --repo-type dataset --local-dir DIR/noise" in str(caught.value)
    assert "set PAPERLIB_DATA to DIR" in str(caught.value)
    assert "accept its terms" not in str(caught.value)


@pytest.mark.parametrize("names", [["a/{0}", "b/{0}"], ["{0}", "b/{0}"]])
def test_several_copies_below_a_root_are_refused(tmp_path: Path, names: list[str]) -> None:
    (whole,) = write_shards(tmp_path, CONTENTS, LABELS)
    for name in names:
        path = tmp_path / name.format(whole.name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match=r"train files lie in several folders, which may be copies: .*; keep one"):
        find(COLLECTION, "train", tmp_path)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_refused(tmp_path: Path, missing: int) -> None:
    write_shards(tmp_path, CONTENTS, LABELS, 3)[missing].unlink()
    with pytest.raises(MissingDataError, match=r"hold each of the train files once.*hf download"):
        find(COLLECTION, "train", tmp_path)


@pytest.mark.parametrize("other", [1, 2, 4])
def test_files_of_two_copies_in_a_folder_are_refused(tmp_path: Path, other: int) -> None:
    for number in (3, other):
        write_shards(tmp_path, CONTENTS, LABELS, number)
    with pytest.raises(MissingDataError, match="hold each of the train files once"):
        find(COLLECTION, "train", tmp_path)


def test_files_without_labels_are_read(tmp_path: Path) -> None:
    write_shards(tmp_path, CONTENTS, LABELS, label="other")
    assert rows(find(replace(COLLECTION, classes=0), "train", tmp_path)) == (CONTENTS, [0] * 12)


def test_the_hub_and_files_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    paths = write_shards(tmp_path, CONTENTS, LABELS, 2)
    load, asked = datasets.load_dataset, []

    def hub(**arguments: Any) -> Any:
        asked.append([arguments[name] for name in ("path", "split", "streaming", "revision")])
        return load("parquet", data_files={"x": [str(path) for path in paths]}, split="x", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    source = find(COLLECTION, "test")
    assert rows(source) == (CONTENTS, LABELS)
    assert asked == [["nobody/noise", "validation", True, None]]
    assert all(collection.revision for collection in (data.CIFAR10, data.IMAGENET))
    rows(find(replace(COLLECTION, revision="0123abc"), "test"))
    assert asked[-1][-1] == "0123abc"
    assert source.count() == COLLECTION.counts["test"]
    assert source.description == "nobody/noise on the Hugging Face hub"


def test_what_datasets_has_kept_is_read_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter

    kept = tmp_path / "uoft-cs___cifar10" / "plain_text" / "0.0.0" / str(data.CIFAR10.revision)
    kept.mkdir(parents=True)
    features = datasets.Features({"img": datasets.Image(decode=False), "label": datasets.Value("int64")})
    with ArrowWriter(path=str(kept / "cifar10-test.arrow"), features=features) as writer:
        for content, label in zip(CONTENTS, LABELS, strict=True):
            writer.write({"img": {"bytes": content, "path": None}, "label": label})
        writer.finalize()
    split: Any = {"name": "test", "num_bytes": 1, "num_examples": len(LABELS), "dataset_name": "cifar10"}
    stated = {"builder_name": "parquet", "dataset_name": "cifar10", "config_name": "plain_text", "version": "0.0.0"}
    datasets.DatasetInfo(features=features, splits=[split], **stated).write_to_directory(str(kept))  # type: ignore[arg-type]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert rows(find(data.CIFAR10, "test")) == (CONTENTS, LABELS)


def test_a_hub_that_is_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(**_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingDataError, match=r"ImageNet \(train\) cannot be read from ILSVRC.*no route") as caught:
        rows(find(data.IMAGENET, "train"))
    for part in ("accept its terms at", "hf auth login", "hf download ILSVRC/imagenet-1k", "set PAPERLIB_DATA"):
        assert part in str(caught.value)


@pytest.mark.parametrize("column", ["image", "label"])
def test_files_with_other_columns_are_refused(tmp_path: Path, column: str) -> None:
    write_shards(tmp_path, CONTENTS, LABELS, **{column: "other"})
    with pytest.raises(ValueError, match=rf"columns must be image and label, found .*other.* and no {column}"):
        rows(find(COLLECTION, "train", tmp_path))


def test_sources_are_told_apart_and_described_without_their_folders(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", CONTENTS, LABELS, 3)
    write_shards(tmp_path / "b", CONTENTS[::-1], LABELS, 3)
    sources = [find(COLLECTION, "train", tmp_path / name) for name in "ab"] + [find(COLLECTION, "train")]
    assert len({source.identity for source in sources}) == 3
    description = sources[0].description
    assert description == "train-00000-of-00003.parquet … train-00002-of-00003.parquet in the columns of nobody/noise"
    for number, path in enumerate((*sources[0].files, *sources[1].files)):
        path.write_bytes(bytes(100))
        os.utime(path, (number % 3, number % 3))
    assert sources[0].identity != sources[1].identity  # by their folders alone
    before = sources[0].identity
    write_shards(tmp_path / "a", CONTENTS[:-1], LABELS, 3)
    assert find(COLLECTION, "train", tmp_path / "a").identity != before
