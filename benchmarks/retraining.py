"""The swap of the classification demo against training without it, to the same scores.

    python benchmarks/retraining.py fine-tuning [--seeds 0 1 2]      # to docs/performance.md
    python benchmarks/retraining.py scratch [--times 50] [--seeds 0]

Both know no forgotten class: a head for retained and learned classes alone, trained by
cross-entropy on the swap's own images of them, flipped at random, AdamW, warm-up and cosine.
`fine-tuning` starts from the demo's base, with all weights and rates that fall towards the input,
for one, two, four and eight epochs, each a schedule of its own; the shortest that has the swap's
learn and retain, or comes within half a point, counts, and only its own seconds. `scratch` starts
the same architecture from random weights, for at most as many times the swap's seconds as is said.
Seconds are those of the processor, so that what else the machine does falls on neither side: for
the swap all of `kswap demo classification --audit none`, images, scores and report included; for
the others the training steps alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from commands import measured, stoppable
from tables import shown, write_section
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageClassification

from kswap.benching.table import spread
from kswap.data.build import build_data
from kswap.demo import demo_config
from kswap.models.head import drop_rows, extend_head
from kswap.models.loading import load_base
from kswap.settings import OptimiserConfig
from kswap.training.optimiser import learning_rate

EPOCHS = (1, 2, 4, 8)
NEAR = 0.005
BATCH, RATE, HEAD_RATE, DECAY = 32, 1e-4, 1e-3, 0.75
SCRATCH_RATE = 5e-4


class Images:
    """Images of one split, of retained and learned classes, with rows of the new head."""

    def __init__(self, data: Any, split: str, rows: dict[int, int]) -> None:
        parts = {role: data.sets[role][split] for role in ("retain", "learn")}
        self.pixels = torch.cat([data.pixels(part.images) for part in parts.values()])
        classes = [int(c) for part in parts.values() for c in part.class_ids]
        self.labels = torch.tensor([rows[c] for c in classes])
        self.is_learned = torch.cat([torch.full((len(p),), r == "learn") for r, p in parts.items()])


def swap_seconds(to: Path, seed: int) -> tuple[float, dict[str, float]]:
    """Run the demo; return the processor's seconds and the scores at its end."""
    words = ["demo", "classification", "--output", str(to), "--seed", str(seed), "--audit", "none"]
    seconds = measured(*words).processor_s
    results = json.loads((to / "results.json").read_text(encoding="utf-8"))
    return seconds, results["stages"][-1]["scores"]


def groups(model: nn.Module, num_layers: int) -> list[dict[str, Any]]:
    """Return parameters with rates that fall towards the input (BEiT, arXiv:2106.08254)."""
    found = []
    for name, parameter in model.named_parameters():
        block = re.search(r"layer\.(\d+)\.", name)
        depth = int(block[1]) + 1 if block else 0 if "embeddings" in name else num_layers + 1
        rate = HEAD_RATE if "classifier" in name else RATE * DECAY ** (num_layers + 1 - depth)
        found.append({"params": [parameter], "lr": rate, "top": rate})
    return found


def trained(
    model: Any, optimiser: torch.optim.Optimizer, images: Images, epochs: int, seed: int
) -> Iterator[float]:
    """Train; give the processor's seconds after each epoch."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = math.ceil(len(images.labels) / BATCH)
    total, done, spent = epochs * per_epoch, 0, 0.0
    shape = OptimiserConfig(lr=1.0, warmup_fraction=0.1)  # warm-up and cosine
    for _ in range(epochs):
        begin = time.process_time()
        model.train()
        for rows in torch.split(torch.randperm(len(images.labels), generator=generator), BATCH):
            share = learning_rate(shape, done, total)
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * share
            pixels = images.pixels[rows]
            flip = torch.rand(len(rows), generator=generator) < 0.5
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
            loss = functional.cross_entropy(model(pixel_values=pixels).logits, images.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            done += 1
        spent += time.process_time() - begin
        yield spent


@torch.no_grad()
def scores(model: Any, images: Images) -> dict[str, float]:
    """Return top-1 of learned and of retained classes."""
    model.eval()
    answers = torch.cat(
        [model(pixel_values=p).logits.argmax(-1) for p in torch.split(images.pixels, 100)]
    )
    right = (answers == images.labels).double()
    return {
        "learn": right[images.is_learned].mean().item(),
        "retain": right[~images.is_learned].mean().item(),
    }


def there(found: dict[str, float], aim: dict[str, float], roles: tuple[str, ...]) -> bool:
    """Whether every role is within half a point of what the swap has."""
    return all(found[role] >= aim[role] - NEAR for role in roles)


def materials(to: Path, seed: int) -> tuple[Any, Any, dict[int, int]]:
    """Return the base with a head of retained and learned classes, the data, and its rows."""
    config = demo_config("classification", to, ["--seed", str(seed)])
    loaded = load_base(config.model)
    data = build_data(config, id2label=loaded.id2label, processor=loaded.processor)
    forget = list(data.class_ids["forget"])
    extend_head(loaded.model, data.id2label, init="random", seed=seed)
    drop_rows(loaded.model, forget)
    left = [row for row in range(len(data.id2label)) if row not in forget]
    return loaded.model, data, {row: place for place, row in enumerate(left)}


def fine_tuning(scratch: Path, seed: int) -> dict[str, Any]:
    """Return seconds and scores of a swap, and of the shortest fine-tuning that has them."""
    seconds, aim = swap_seconds(scratch / f"{seed}", seed)
    tried: dict[int, tuple[float, dict[str, float]]] = {}
    for epochs in EPOCHS:
        model, data, rows = materials(scratch / f"{seed}", seed)
        torch.manual_seed(seed)
        train, test = Images(data, "train", rows), Images(data, "test", rows)
        optimiser = torch.optim.AdamW(
            groups(model, model.config.num_hidden_layers), weight_decay=0.05
        )
        *_, spent = trained(model, optimiser, train, epochs, seed)
        tried[epochs] = spent, scores(model, test)
        print(seed, f"swap {seconds:.0f} s {aim}; {epochs} epochs", tried[epochs], flush=True)
        if there(tried[epochs][1], aim, ("learn", "retain")):
            break
    return {"swap": seconds, "aim": aim, "tried": tried}


def from_scratch(scratch: Path, seed: int, times: float) -> dict[str, Any]:
    """Return seconds of a swap, and seconds and scores of training from random weights."""
    seconds, aim = swap_seconds(scratch / f"{seed}", seed)
    model, data, rows = materials(scratch / f"{seed}", seed)
    train, test = Images(data, "train", rows), Images(data, "test", rows)

    def begin() -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        new = AutoModelForImageClassification.from_config(model.config)
        group = {"params": list(new.parameters()), "lr": 0.0, "top": SCRATCH_RATE}
        return new, torch.optim.AdamW([group], weight_decay=0.05)

    first = next(trained(*begin(), train, 1, seed))  # how long an epoch takes
    epochs = max(1, round(times * seconds / first))
    curve = []
    net, optimiser = begin()
    for epoch, spent in enumerate(trained(net, optimiser, train, epochs, seed), start=1):
        if epoch % max(1, epochs // 25) == 0 or epoch == epochs:
            curve.append((spent, scores(net, test)))
            print(seed, f"{epoch} of {epochs} epochs", curve[-1], flush=True)
            if there(curve[-1][1], aim, ("retain",)):
                break
    return {"swap": seconds, "aim": aim, "curve": curve}


def percent(values: list[float]) -> str:
    """Return the mean of shares in percent, with its interval."""
    return shown(spread(values), 100)


def main() -> int:
    """Run one comparison; write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fine-tuning", "scratch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--times", type=float, default=50.0, help="the limit of `scratch`")
    options = parser.parse_args()
    rows = ["| | processor's seconds | learn | retain |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "fine-tuning":
            found = [fine_tuning(Path(folder), seed) for seed in options.seeds]
            ends = [list(one["tried"].items())[-1] for one in found]
            ratios = [end[1][0] / one["swap"] for one, end in zip(found, ends, strict=True)]
            name = f"full fine-tuning, epochs: {', '.join(str(end[0]) for end in ends)}"
            others = [end[1] for end in ends]
        else:
            found = [from_scratch(Path(folder), seed, options.times) for seed in options.seeds]
            others = [one["curve"][-1] for one in found]
            ratios = [end[0] / one["swap"] for one, end in zip(found, others, strict=True)]
            name = "from random weights"
    roles = ("learn", "retain")
    swaps = {role: percent([one["aim"][role] for one in found]) for role in roles}
    rows.append(
        f"| swap | {shown(spread([one['swap'] for one in found]), digits=0)} | {swaps['learn']} "
        f"| {swaps['retain']} |"
    )
    ours = {role: percent([scored[role] for _, scored in others]) for role in roles}
    rows.append(
        f"| {name} | {shown(spread([spent for spent, _ in others]), digits=0)} | {ours['learn']} "
        f"| {ours['retain']} |"
    )
    aimed = roles if options.what == "fine-tuning" else ("retain",)
    reached = sum(
        there(scored, one["aim"], aimed) for one, (_, scored) in zip(found, others, strict=True)
    )
    rows.append(
        f"\nTimes the swap's seconds: {shown(spread(ratios))}. The swap's "
        f"{' and '.join(aimed)} {'were' if len(aimed) > 1 else 'was'} reached by {reached} of "
        f"{len(found)}{'' if reached == len(found) else '; for the others this is a lower bound'}."
    )
    write_section(f"retraining {options.what}", "\n".join(rows), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
