"""Join the calibration tables of every model."""

from ultrarefiner.evaluation.calibration import collect_calibration
from ultrarefiner.jobs import job

with job(snakemake):
    collect_calibration(
        tables=list(snakemake.input.tables),
        output=snakemake.output.calibration,
    )
