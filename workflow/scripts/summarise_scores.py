"""Join every score table and summarise it."""

from ultrarefiner.evaluation.summary import summarise_scores
from ultrarefiner.jobs import job

with job(snakemake):
    summarise_scores(
        tables=list(snakemake.input.tables),
        overlaps=snakemake.input.overlaps,
        scores=snakemake.output.scores,
        summary=snakemake.output.summary,
        **dict(snakemake.params.items()),
    )
