"""Measure how far the boxes of a model's masks are off on its validation cases."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.training.box_errors import measure_boxes

with job(snakemake):
    measure_boxes(
        model=snakemake.input.model,
        card=snakemake.input.card,
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.fold),
        flips=snakemake.params.flips,
        output=snakemake.output.errors,
        device=snakemake.params.device,
    )
