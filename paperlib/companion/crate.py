"""The results of a profile as an RO-Crate: what was run on what and gave what, in a form that other tools read.

``ro-crate-metadata.json`` follows the Process Run Crate 0.5 profile of the Workflow Run RO-Crate collection
(https://w3id.org/ro/wfrun/process): each notebook is the instrument of one action, its parameters and its data are the
objects, the files of its folder the results, with their hashes.  Nothing in it is not in a manifest beside it.
"""

import json
from datetime import datetime, timedelta
from itertools import chain
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from paperlib.companion import provenance
from paperlib.companion.paths import MANIFEST

METADATA = "ro-crate-metadata.json"
CONFORMS_TO = "https://w3id.org/ro/wfrun/process/0.5"


def write(folder: Path) -> Path:
    """Describe all finished results in the folder of a profile.

    Returns:
        The metadata file in it.

    Raises:
        ValueError: when it holds no result.
    """
    manifests = {path.parent.name: provenance.read(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    if not manifests:
        raise ValueError(f"{folder} holds no finished result to describe.")
    crate = ROCrate(version="1.1")
    crate.name = f"Results of the profile {folder.name}"
    crate.description = "Notebooks of the companion of 'Understanding Diffusion Objectives', run at this profile."
    crate.license = _mention(crate, "https://spdx.org/licenses/MIT", "CreativeWork", name="MIT")
    crate.root_dataset["conformsTo"] = _mention(
        crate, CONFORMS_TO, "CreativeWork", name="Process Run Crate", version="0.5"
    )
    actions = [_action(crate, folder, name, manifest) for name, manifest in manifests.items()]
    crate.root_dataset["mentions"] = actions
    crate.datePublished = max(action["endTime"] for action in actions)
    crate.metadata.write(folder)
    return folder / METADATA


def _action(crate: ROCrate, folder: Path, name: str, manifest: dict[str, Any]) -> ContextEntity:
    """The run of one notebook."""
    notebook = _mention(
        crate, f"#{name}", "SoftwareSourceCode", name=f"notebooks/{name}.ipynb", version=manifest["source_sha256"]
    )
    parameters = [
        _mention(crate, f"#{name}-{key}", "PropertyValue", name=key, value=json.dumps(value, ensure_ascii=False))
        for key, value in manifest["parameters"].items()
    ]
    data = [
        _mention(
            crate,
            f"#{one['sha256']}",
            "CreativeWork",
            name=one["name"],
            description=f"{one['images']} images; {one['preprocessing']}",
            identifier=f"sha256:{one['sha256']}",
        )
        for one in manifest["data"].values()
    ]
    results = [
        crate.add_file(
            folder / name / path,
            f"{name}/{path}",
            properties={"name": path, "sha256": sha256, "encodingFormat": guess_type(path)[0] or "text/plain"},
        )
        for path, sha256 in manifest["outputs"].items()
    ]
    start = datetime.fromisoformat(manifest["started"])
    end = start + timedelta(seconds=manifest["seconds"])
    packages = ", ".join(f"{package} {version}" for package, version in manifest["packages"].items())
    return _mention(
        crate,
        f"#run-of-{name}",
        "CreateAction",
        name=f"{name} at the profile {manifest['profile']}",
        description=f"Commit {manifest['commit']}; Python {manifest['python']}, {packages}; {manifest['cpu']}.",
        instrument=notebook,
        object=list(chain(parameters, data)),
        result=results,
        startTime=start.isoformat(),
        endTime=end.isoformat(timespec="seconds"),
        actionStatus="http://schema.org/CompletedActionStatus",
    )


def _mention(crate: ROCrate, identifier: str, kind: str, /, **properties: Any) -> ContextEntity:
    """An entity of the crate's graph, made once."""
    known = crate.dereference(identifier)
    if known is not None:
        return known
    entity = crate.add(ContextEntity(crate, identifier, {"@type": kind}))
    for name, value in properties.items():
        entity[name] = value
    return entity
