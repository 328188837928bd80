"""Measure how much of the gap to its oracle each refined method closes."""

from ultrarefiner.evaluation.oracle_gap import measure_oracle_gap
from ultrarefiner.jobs import job

with job(snakemake):
    measure_oracle_gap(
        scores=snakemake.input.scores,
        output=snakemake.output.oracle_gap,
        **dict(snakemake.params.items()),
    )
