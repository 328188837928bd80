"""List the volumes of a prepared dataset, and which case is which slice."""

from ultrarefiner.datasets.volume_records import list_volumes
from ultrarefiner.jobs import job

with job(snakemake):
    list_volumes(
        cases=snakemake.input.cases,
        root=snakemake.params.root,
        layout=snakemake.params.layout,
        options=snakemake.params.options,
        output_volumes=snakemake.output.volumes,
        output_slices=snakemake.output.slices,
    )
