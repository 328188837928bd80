"""Find the images that datasets share, and the cases that no other dataset trains on."""

from ultrarefiner.datasets.overlaps import find_overlaps
from ultrarefiner.jobs import job

with job(snakemake):
    find_overlaps(
        cases=dict(zip(snakemake.params.datasets, snakemake.input.cases, strict=True)),
        acknowledged=snakemake.params.acknowledged,
        trained=snakemake.params.trained,
        tested=snakemake.resources.tested.split(),
        output=snakemake.output.overlaps,
        unseen=dict(zip(snakemake.params.datasets, snakemake.output.unseen, strict=True)),
    )
