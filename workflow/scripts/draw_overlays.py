"""Draw the best, median and worst cases."""

from ultrarefiner.jobs import job
from ultrarefiner.report.overlays import draw_overlays

with job(snakemake):
    draw_overlays(
        scores=snakemake.input.scores,
        output=snakemake.output.overlays,
        **dict(snakemake.params.items()),
    )
