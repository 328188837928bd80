"""Draw the best, median and worst cases."""

from ultrarefiner.jobs import job
from ultrarefiner.report.overlays import draw_overlays

with job(snakemake):
    draw_overlays(
        scores=snakemake.input.scores,
        entries=snakemake.params.entries,
        reference=snakemake.params.reference,
        count=snakemake.params.gallery,
        output=snakemake.output.overlays,
    )
