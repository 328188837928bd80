"""Measure how well the probabilities of a model agree with the truth."""

from ultrarefiner.evaluation.calibration import measure_calibration
from ultrarefiner.jobs import job

with job(snakemake):
    measure_calibration(
        method=snakemake.wildcards.coarse + snakemake.wildcards.at,
        dataset=snakemake.wildcards.dataset,
        trained_on=snakemake.params.trained_on,
        parts=snakemake.params.parts,
        truth=snakemake.input.truth,
        output=snakemake.output.calibration,
    )
