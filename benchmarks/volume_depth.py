"""Does memory grow with a volume's depth? 64 slices against 512, followed by MedSAM2's memory.

    python benchmarks/volume_depth.py            # some 12 minutes
    python benchmarks/volume_depth.py 16 128     # other depths

MedSAM2's own size (Hiera-tiny at 512, 38,962,754 numbers) with made-up weights follows an object by
its memory from the middle slice to both ends. Each depth has a process of its own, and a slice is
drawn when it is asked for. The peak memory of the deeper volume may be ``REQUIRED`` times that of the
other, or this ends with status 1. Beside it the shallower volume is segmented slice by slice. Printed
too are slices a second and the share of the image encoder, in processor time of one thread.
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
    """Segment a volume in one way; return its slices, processor time, and the encoder's."""
    import numpy as np
    import torch

    from ultrarefiner.models.medsam2_model import MedSam2
    from ultrarefiner.prompts import prompt_from_mask
    from ultrarefiner.refine import parse_options
    from ultrarefiner.refine.embeddings import SamEmbedding
    from ultrarefiner.refine.medsam2 import MedSam2Refiner
    from ultrarefiner.refine.propagation import Slices, propagate

    torch.set_num_threads(1)
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
        start = time.process_time()
        made = refiner.embed(pixels)
        spent.append(time.process_time() - start)
        return made

    def prompts(index: int) -> list:
        return [prompt_from_mask(mask(index), "box")]

    slices = Slices("a volume", depth, embedding, mask, prompts, "box")
    embedding(0)  # the first call of a process takes longer
    spent.clear()
    start = time.process_time()
    if way == "memory":
        visited = {found.index for found in propagate(refiner, slices)}
    else:
        visited = range(depth)
        for index in visited:
            refiner.refine(embedding(index), prompts(index))
    seconds = time.process_time() - start
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
    peaks = []
    for way, depth in (("none", few), ("memory", few), ("memory", many)):
        peak, found = in_its_own_process(way, depth)
        peaks.append(peak)
        each = found["seconds"] / found["slices"]
        print(
            f"{WAYS[way]:18} {found['slices']:4.0f} slices  peak {peak / 1e6:5.0f} MB  "
            f"{1 / each:.2f} slices/s, {each:.3f} s each, "
            f"{100 * found['encoder'] / found['seconds']:.0f} % of it in the encoder",
            flush=True,
        )
    ratio, grown = peaks[2] / peaks[1], (peaks[2] - peaks[1]) / (many - few)
    print(f"peak memory {ratio:.3f} x, allowed {REQUIRED} x; {grown / 1e3:.0f} kB a slice")
    sys.exit(0 if ratio <= REQUIRED else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
