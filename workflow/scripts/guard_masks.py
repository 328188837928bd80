"""Let refined masks give way to coarse ones where the guard says so."""

from ultrarefiner.jobs import job
from ultrarefiner.refine.guard_jobs import guard_masks

with job(snakemake):
    guard_masks(
        rules=list(snakemake.input.rules),
        coarse_masks=snakemake.input.coarse,
        refined_masks=snakemake.input.refined,
        splits=snakemake.input.splits,
        part=snakemake.wildcards.part,
        output=snakemake.output.masks,
        table=snakemake.output.table,
        protocol=snakemake.params.protocol,
    )
