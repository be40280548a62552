# The workflow of one profile: a rule per notebook, made from the profile.  `paperlib reproduce NAME` runs it, and takes
# --cores; to hand the jobs to a cluster, call Snakemake itself:
#
#     snakemake --config profile=NAME --executor slurm --jobs 8
#
# A profile with a section `launch` is trained first, one job an arm of its grid and ablation, all seeds of it; the
# notebook that it names waits for them.  On a cluster a job asks for `gpus`, `cpus_per_task` and `runtime` (minutes);
# how these reach the queue is the executor's.
#
# A notebook runs again when its cells, its parameters, what the notebooks share, the code of the library that it
# imports, or a result that it reads has changed; comments, docstrings and saved outputs change nothing.  A stamp under
# .cache stands for the result in results/local, and is not part of a clone: a fresh one makes everything itself.

from paperlib.companion import experiments, profiles
from paperlib.companion.paths import local, shown
from paperlib.companion.workflow import (
    dependencies,
    stamp,
    training_command,
    training_dependencies,
    training_stamp,
)

PROFILE = profiles.load(config.get("profile", "tiny"))
ARMS = list(experiments.arms(PROFILE)) if PROFILE.launch else []


rule all:
    input:
        [stamp(PROFILE.name, name) for name in PROFILE.notebooks],


for arm in ARMS:

    rule:
        name:
            f"train_{arm}"
        output:
            training_stamp(PROFILE.name, arm),
        params:
            command=training_command(PROFILE, arm),
            depends_on=training_dependencies(PROFILE),
        threads: PROFILE.launch.threads
        resources:
            gpus=PROFILE.launch.gpus,
            cpus_per_task=PROFILE.launch.threads,
            runtime=PROFILE.launch.hours * 60,
        priority: 1
        shell:
            'OMP_NUM_THREADS={threads} "${{PAPERLIB_PYTHON:-python}}" {params.command} && mkdir -p $(dirname {output:q}) && touch {output:q}'


for position, (name, section) in enumerate(PROFILE.notebooks.items()):

    rule:
        name:
            f"notebook_{name}"
        input:
            upstream=[stamp(PROFILE.name, upstream) for upstream in section.upstream],
            trained=[training_stamp(PROFILE.name, arm) for arm in ARMS if name == PROFILE.launch.before],
            notebook=ancient(f"notebooks/{name}.ipynb"),
        output:
            stamp(PROFILE.name, name),
        params:
            profile=PROFILE.name,
            notebook=name,
            result=shown(local(PROFILE.name, name)),
            depends_on=dependencies(PROFILE, name),
        threads: section.threads
        priority: -position
        shell:
            '"${{PAPERLIB_PYTHON:-python}}" -m paperlib run {params.notebook} --profile {params.profile}'
            " --threads {threads} --output {params.result:q} --stamp {output:q}"
