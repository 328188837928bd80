"""Draw a sheet of the failures that a refiner learns from."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.report.contact_sheet import draw_failures

with job(snakemake):
    draw_failures(
        prepared=Path(snakemake.input.cases).parent,
        output=snakemake.output.sheet,
        **snakemake.params.failures,
    )
