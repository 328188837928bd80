"""Divide what an outer fold trains on into inner folds."""

from ultrarefiner.datasets.inner import split_inner
from ultrarefiner.jobs import job

with job(snakemake):
    split_inner(
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.fold),
        overlaps=snakemake.input.get("overlaps") or None,
        output=snakemake.output.splits,
        **dict(snakemake.params.items()),
    )
