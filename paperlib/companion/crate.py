"""The results of a profile as an RO-Crate: what was run on what and gave what, in a form that other tools read.

``ro-crate-metadata.json`` follows the Process Run Crate 0.5 profile of the Workflow Run RO-Crate collection
(https://w3id.org/ro/wfrun/process): each notebook is the instrument of one action, its parameters and its data are the
objects, the files of its folder the results, with their hashes.  Nothing in it is not in a manifest beside it.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from paperlib import files
from paperlib.companion import provenance

METADATA = "ro-crate-metadata.json"
VERSION = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENCE = "https://spdx.org/licenses/MIT"

Entity = dict[str, Any]


def write(folder: Path) -> Path:
    """Write the metadata of all finished results in the folder of a profile; ValueError when it holds none."""
    files.write_text(folder / METADATA, json.dumps(describe(folder), ensure_ascii=False) + "\n")
    return folder / METADATA


def problems(folder: Path) -> list[str]:
    """What is wrong with the metadata in a folder, a line each; nothing where there is none."""
    path = folder / METADATA
    if not path.is_file():
        return []
    try:
        if json.loads(path.read_bytes()) == describe(folder):
            return []
    except (ValueError, KeyError, RecursionError) as error:
        return [f"{path}: cannot be held against the manifests beside it: {error}"]
    return [f"{path}: not what the manifests beside it say"]


def describe(folder: Path) -> Entity:
    """The metadata of all finished results in a folder, as JSON-LD; ValueError when it holds no result."""
    if not (manifests := provenance.manifests(folder)):
        raise ValueError(f"{folder} holds no finished result to describe.")
    entities: dict[str, Entity] = {}

    def add(identifier: str, kind: str, /, **properties: Any) -> Entity:
        """An entity of the graph, made once; the reference to it."""
        entities.setdefault(identifier, {"@id": identifier, "@type": kind, **properties})
        return {"@id": identifier}

    actions = [_action(add, name, manifest) for name, manifest in manifests.items()]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Results of the profile {folder.name}",
        "description": "Notebooks of the companion of 'Understanding Diffusion Objectives', run at this profile.",
        "license": add(LICENCE, "CreativeWork", name="MIT"),
        "conformsTo": add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5"),
        "datePublished": max(entities[action["@id"]]["endTime"] for action in actions),
        "hasPart": [{"@id": one["@id"]} for one in entities.values() if one["@type"] == "File"],
        "mentions": actions,
    }
    itself = {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": VERSION}, "about": {"@id": "./"}}
    return {"@context": f"{VERSION}/context", "@graph": [itself, root, *entities.values()]}


def _action(add: Callable[..., Entity], name: str, manifest: dict[str, Any]) -> Entity:
    """The run of one notebook."""
    parameters = [
        add(f"#{name}-{key}", "PropertyValue", name=key, value=json.dumps(value, ensure_ascii=False))
        for key, value in manifest["parameters"].items()
    ]
    data = [
        add(
            f"#{one['sha256']}",
            "CreativeWork",
            name=one["name"],
            description=f"{one['images']} images; {one['preprocessing']}",
            identifier=f"sha256:{one['sha256']}",
        )
        for one in (manifest["data"] or {}).values()
    ]
    results = [
        add(f"{name}/{path}", "File", name=path, sha256=sha256, encodingFormat=guess_type(path)[0] or "text/plain")
        for path, sha256 in manifest["outputs"].items()
    ]
    start = datetime.fromisoformat(manifest["started"])
    end = start + timedelta(seconds=manifest["seconds"])
    packages = ", ".join(f"{package} {version}" for package, version in manifest["packages"].items())
    return add(
        f"#run-of-{name}",
        "CreateAction",
        name=f"{name} at the profile {manifest['profile']}",
        description=f"Commit {manifest['commit']}; Python {manifest['python']}, {packages}; {manifest['cpu']}.",
        instrument=add(
            f"#{name}", "SoftwareSourceCode", name=f"notebooks/{name}.ipynb", version=manifest["source_sha256"]
        ),
        object=[*parameters, *data],
        result=results,
        startTime=start.isoformat(),
        endTime=end.isoformat(timespec="seconds"),
        actionStatus="http://schema.org/CompletedActionStatus",
    )
