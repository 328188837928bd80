"""Compare every method with the reference, case by case."""

from ultrarefiner.evaluation.comparisons import compare_methods
from ultrarefiner.jobs import job

with job(snakemake):
    compare_methods(
        scores=snakemake.input.scores,
        comparisons=snakemake.output.comparisons,
        **dict(snakemake.params.items()),
    )
