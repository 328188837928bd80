"""Look for what is wrong with a raw dataset; errors stop the workflow here."""

from ultrarefiner.datasets.doctor import check_dataset
from ultrarefiner.jobs import job

with job(snakemake):
    check_dataset(
        name=snakemake.wildcards.dataset,
        layout=snakemake.params.layout,
        root=snakemake.params.root,
        include_empty=snakemake.params.include_empty,
        options=snakemake.params.options,
        curation=snakemake.params.curation,
        report=snakemake.output.report,
    )
