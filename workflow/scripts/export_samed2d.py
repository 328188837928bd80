"""Write a prepared dataset as SA-Med2D folders, for other tools."""

from pathlib import Path

from ultrarefiner.datasets.samed2d_export import export_samed2d
from ultrarefiner.jobs import job

with job(snakemake):
    export_samed2d(
        prepared=Path(snakemake.input.cases).parent,
        table=snakemake.input.table,
        part=snakemake.wildcards.part,
        output=snakemake.output.folder,
    )
