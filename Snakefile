# The workflow of one profile: a rule per notebook, made from the profile.  `paperlib reproduce NAME` runs it, and takes
# --cores; to hand the jobs to a cluster, call Snakemake itself:
#
#     snakemake --config profile=NAME --executor slurm --jobs 8
#
# A notebook runs again when its cells, its parameters, what the notebooks share, the code of the library that it
# imports, or a result that it reads has changed; comments, docstrings and saved outputs change nothing.  A stamp under
# .cache stands for the result, and is not part of a clone: a fresh one makes everything itself.

import sys

from paperlib.companion import profiles
from paperlib.companion.workflow import dependencies, stamp

PROFILE = profiles.load(config.get("profile", "tiny"))


rule all:
    input:
        [stamp(PROFILE.name, name) for name in PROFILE.notebooks],


for position, (name, section) in enumerate(PROFILE.notebooks.items()):

    rule:
        name:
            f"notebook_{name}"
        input:
            upstream=[stamp(PROFILE.name, upstream) for upstream in section.upstream],
            notebook=ancient(f"notebooks/{name}.ipynb"),
        output:
            stamp(PROFILE.name, name),
        params:
            python=sys.executable,
            profile=PROFILE.name,
            notebook=name,
            depends_on=dependencies(PROFILE, name),
        threads: section.threads
        priority: -position
        shell:
            "{params.python:q} -m paperlib.companion.runner {params.profile} {params.notebook}"
            " --threads {threads} --stamp {output:q}"
