"""Turn the masks of a part into prompts."""

from ultrarefiner.config import PromptConfig
from ultrarefiner.jobs import job
from ultrarefiner.prompts.records import make_prompts

with job(snakemake):
    make_prompts(
        prompt=PromptConfig(**snakemake.params.prompt),
        name=snakemake.wildcards.prompt,
        splits=snakemake.input.splits,
        part=snakemake.wildcards.part,
        masks=snakemake.input.masks,
        output=snakemake.output.prompts,
    )
