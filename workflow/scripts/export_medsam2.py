"""Write a dataset of volumes as npz files, for MedSAM2's own training."""

from pathlib import Path

from ultrarefiner.datasets.medsam2_export import export_medsam2
from ultrarefiner.jobs import job

with job(snakemake):
    export_medsam2(
        prepared=Path(snakemake.input.cases).parent,
        volumes=snakemake.input.volumes,
        slices=snakemake.input.slices,
        table=snakemake.input.table,
        part=snakemake.wildcards.part,
        output=snakemake.output.folder,
    )
