"""Bring a raw dataset into one shape: npz, PNG and cases.csv."""

from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.jobs import job

with job(snakemake):
    prepare_dataset(
        name=snakemake.wildcards.dataset,
        layout=snakemake.params.layout,
        root=snakemake.params.root,
        include_empty=snakemake.params.include_empty,
        options=snakemake.params.options,
        curation=snakemake.params.curation,
        **dict(snakemake.output.items()),
    )
