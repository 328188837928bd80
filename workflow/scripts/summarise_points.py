"""Summarise where points fell and what wrong ones cost."""

from ultrarefiner.evaluation.points import summarise_points
from ultrarefiner.jobs import job

with job(snakemake):
    summarise_points(
        tables=list(snakemake.input.tables),
        output=snakemake.output.summary,
        **dict(snakemake.params.items()),
    )
