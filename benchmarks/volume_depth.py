"""Does memory grow with a volume's depth? 64 slices against 512, followed and slice by slice.

    python benchmarks/volume_depth.py            # some 15 minutes
    python benchmarks/volume_depth.py 16 128     # other depths

MedSAM2's own size (Hiera-tiny at 512, 38,962,754 parameters) with made-up weights follows an object
by its memory from the middle slice to both ends, and beside it segments each slice by itself. Every
run is a process of its own, and slices are drawn when they are asked for. The peak of the deeper
volume may be ``REQUIRED`` times that of the other, or this ends with status 1. Printed too are slices
a second and the share of the time that the image encoder takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

REQUIRED = 1.2
SIDE = 512  # pixels of a slice
RADIUS = 60  # pixels of the lesion where it is largest
WAYS = {"memory": "followed by memory", "none": "slice by slice"}


# What starts the runs imports nothing, as the peak of a process begins with that of its parent.
def measure(way: str, depth: int) -> dict[str, float]:
    """Segment a volume in one way; return its slices, seconds, and those in the encoder."""
    import numpy as np
    import torch

    from ultrarefiner.models.medsam2_model import MedSam2
    from ultrarefiner.prompts import prompt_from_mask
    from ultrarefiner.refine import parse_options
    from ultrarefiner.refine.embeddings import SamEmbedding
    from ultrarefiner.refine.medsam2 import MedSam2Refiner
    from ultrarefiner.refine.propagation import Slices, propagate

    torch.manual_seed(0)
    model = MedSam2().eval()
    with torch.no_grad():  # as drawn, no object would ever be there
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    options = parse_options("medsam2", {"propagate": way})
    refiner = MedSam2Refiner.of_model(model, "made up", "cpu", options)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    spent = []

    def mask(index: int) -> np.ndarray:
        height = abs(index - depth // 2) / (depth / 2)  # the lesion goes from end to end
        return y**2 + x**2 <= RADIUS**2 * (1 - height**2)

    def embedding(index: int) -> SamEmbedding:
        gray = np.random.default_rng(index).integers(60, 200, (SIDE, SIDE)) - 50 * mask(index)
        pixels = np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
        start = time.perf_counter()
        made = refiner.embed(pixels)
        spent.append(time.perf_counter() - start)
        return made

    def prompts(index: int) -> list:
        return [prompt_from_mask(mask(index), "box")]

    slices = Slices("a volume", depth, embedding, mask, prompts, "box")
    embedding(0)  # the first call of a process takes longer
    spent.clear()
    start = time.perf_counter()
    if way == "memory":
        visited = {found.index for found in propagate(refiner, slices)}
    else:
        visited = range(depth)
        for index in visited:
            refiner.refine(embedding(index), prompts(index))
    seconds = time.perf_counter() - start
    return {"slices": len(visited), "seconds": seconds, "encoder": sum(spent)}


def in_its_own_process(way: str, depth: int) -> tuple[float, dict[str, float]]:
    """Return the peak memory of a run, in bytes, and what it measured."""
    command = [sys.executable, __file__, "--run", way, str(depth)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{WAYS[way]}, {depth} slices: failed")
    # Linux counts in kilobytes.
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), json.loads(text)


def main() -> None:
    few, many = map(int, sys.argv[1:3] or (64, 512))
    kept = True
    for way, name in WAYS.items():
        peaks = {}
        for depth in (few, many):
            peaks[depth], found = in_its_own_process(way, depth)
            each = found["seconds"] / found["slices"]
            print(
                f"{name:18} {found['slices']:4.0f} slices {peaks[depth] / 1e6:6.0f} MB "
                f"{1 / each:6.2f} slices/s, {each:.3f} s each, "
                f"{100 * found['encoder'] / found['seconds']:.0f} % of it in the encoder",
                flush=True,
            )
        ratio = peaks[many] / peaks[few]
        kept &= ratio <= REQUIRED
        grown = (peaks[many] - peaks[few]) / (many - few) / 1e3
        print(f"{name:18} {ratio:.3f} x the peak, allowed {REQUIRED} x; {grown:.0f} kB a slice")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
