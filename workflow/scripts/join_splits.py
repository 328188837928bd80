"""Join the folds of several datasets to those of one training set."""

from ultrarefiner.datasets.trainsets import join_splits
from ultrarefiner.jobs import job

with job(snakemake):
    join_splits(
        members=dict(zip(snakemake.params.members, snakemake.input.splits, strict=True)),
        overlaps=snakemake.input.overlaps,
        output=snakemake.output.splits,
    )
