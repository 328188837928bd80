"""Summarise the volume scores of all methods, and compare slice-wise with propagated ones."""

from ultrarefiner.evaluation.volume_summary import summarise_volumes
from ultrarefiner.jobs import job

with job(snakemake):
    summarise_volumes(
        tables=list(snakemake.input.tables),
        scores=snakemake.output.scores,
        summary=snakemake.output.summary,
        comparisons=snakemake.output.comparisons,
        **dict(snakemake.params.items()),
    )
