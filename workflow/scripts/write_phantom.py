"""Draw synthetic ultrasound in the layout of a named dataset."""

from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.jobs import job

with job(snakemake):
    write_phantom(
        layout=snakemake.params.layout, output=snakemake.output.raw, **snakemake.params.phantom
    )
