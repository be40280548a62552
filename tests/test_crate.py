"""Results as RO-Crates, held to the profile's own shapes by a validator that nobody here wrote."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_cache
import rocrate
from rocrate_validator import models, services
from urllib3 import HTTPResponse

from paperlib.companion import crate, paths, provenance

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


class Packaged(requests.adapters.HTTPAdapter):
    """Answers with the JSON-LD context in the package rocrate (1.3, of which 1.1 is a part): no network is needed."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        body = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
        raw = HTTPResponse(io.BytesIO(body), {"Content-Type": "application/ld+json"}, 200, preload_content=False)
        return self.build_response(request, raw)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contexts") / "cache"
    session = requests_cache.CachedSession(str(path), backend="sqlite", expire_after=-1)
    session.mount("https://", Packaged())
    session.get(CONTEXT)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two results of the published profile."""
    for name in ("01_schedules", "07_train"):
        shutil.copytree(paths.published("tiny") / name, tmp_path / "tiny" / name)
    return tmp_path / "tiny"


def problems(folder: Path, cache: Path) -> list[str]:
    settings = services.ValidationSettings(
        rocrate_uri=str(folder),
        profile_identifier="process-run-crate-0.5",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
        cache_path=cache,
    )
    return [str(issue.message) for issue in services.validate(settings).get_issues()]


def test_a_crate_is_what_its_profile_asks_for(results: Path, cache: Path) -> None:
    assert crate.write(results) == results / crate.METADATA
    assert problems(results, cache) == []


@pytest.mark.parametrize("harm", ["instrument", "datePublished", "file"])
def test_the_validator_sees_what_is_wrong(results: Path, cache: Path, harm: str) -> None:
    path = crate.write(results)
    content = json.loads(path.read_text())
    graph = {entity["@id"]: entity for entity in content["@graph"]}
    if harm == "instrument":
        graph["#run-of-07_train"]["instrument"] = "a notebook"
    elif harm == "datePublished":
        del graph["./"]["datePublished"]
    else:
        (results / "07_train" / "tables" / "runs.csv").unlink()
    path.write_text(json.dumps(content))
    assert problems(results, cache)


def test_it_says_what_the_manifests_say(results: Path) -> None:
    graph = {entity["@id"]: entity for entity in json.loads(crate.write(results).read_text())["@graph"]}
    for name in ("01_schedules", "07_train"):
        manifest = provenance.read(results / name)
        action = graph[f"#run-of-{name}"]
        assert graph[action["instrument"]["@id"]]["version"] == manifest["source_sha256"]
        files = {one["@id"]: graph[one["@id"]]["sha256"] for one in action["result"]}
        assert files == {f"{name}/{path}": sha256 for path, sha256 in manifest["outputs"].items()}
        assert {f"#{one['sha256']}" for one in manifest["data"].values()} <= {one["@id"] for one in action["object"]}


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.replace('"name": "MIT"', '"name": "mine"'),
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: "[]",
    ],
)
def test_what_the_manifests_do_not_say_is_a_problem(results: Path, harm: Callable[[str], str]) -> None:
    assert crate.problems(results) == []
    path = crate.write(results)
    assert crate.problems(results) == []
    path.write_text(harm(path.read_text()))
    assert [line.partition(": ")[0] for line in crate.problems(results)] == [str(path)]


def test_a_result_that_was_made_anew_makes_it_stale(results: Path) -> None:
    crate.write(results)
    manifest = json.loads((results / "07_train" / "manifest.json").read_text())
    (results / "07_train" / "manifest.json").write_text(json.dumps({**manifest, "seconds": 9.0}))
    assert len(crate.problems(results)) == 1


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished result"):
        crate.write(tmp_path)
