"""Draw the best, median and worst volumes: slices through the lesion, and two cuts across them."""

from ultrarefiner.jobs import job
from ultrarefiner.report.volume_pictures import draw_volumes

with job(snakemake):
    draw_volumes(
        scores=snakemake.input.scores,
        entries=snakemake.params.entries,
        reference=snakemake.params.reference,
        output=snakemake.output.pictures,
    )
