"""Choose on a fold's validation cases when a refined mask gives way to the coarse one."""

from pathlib import Path

from ultrarefiner.deploy.guarding import choose_guard
from ultrarefiner.jobs import job

with job(snakemake):
    choose_guard(
        run=f"results/{snakemake.wildcards.run}",
        study=snakemake.params.study,
        method=snakemake.wildcards.method,
        reference=snakemake.params.reference,
        trainset=snakemake.wildcards.trainset,
        fold=int(snakemake.wildcards.fold),
        guard=snakemake.params.guard,
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        output=snakemake.output.rule,
        device=snakemake.params.device,
    )
