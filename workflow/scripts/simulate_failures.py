"""Write simulated failures of a dataset, several for each case."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.training.failures import simulate_failures

with job(snakemake):
    simulate_failures(
        **snakemake.params.failures,
        copies=snakemake.params.copies,
        prepared=Path(snakemake.input.cases).parent,
        output=snakemake.output.masks,
        table=snakemake.output.table,
        workers=snakemake.threads,
    )
