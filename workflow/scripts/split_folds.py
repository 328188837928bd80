"""Decide who is in which fold; every later stage reads it here."""

from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.splits import split_folds
from ultrarefiner.jobs import job

with job(snakemake):
    split_folds(
        cases=snakemake.input.cases,
        published_folds=snakemake.input.published_folds,
        output=snakemake.output.splits,
        config=SplitsConfig(**snakemake.params.splits),
        folds_from=snakemake.params.folds_from,
        official_test=snakemake.params.official_test,
    )
