"""Summarise what models made of datasets that they were not trained on."""

from ultrarefiner.evaluation.zero_shot import summarise_zero_shot
from ultrarefiner.jobs import job

with job(snakemake):
    summarise_zero_shot(
        scores=snakemake.input.scores,
        output=snakemake.output.zero_shot,
        **dict(snakemake.params.items()),
    )
