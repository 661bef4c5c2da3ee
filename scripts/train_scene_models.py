"""Trains one model of the scene demos on scenes rendered as it goes; may be stopped and resumed.

What: AdamW, warm-up, a constant rate, then a linear fall to zero (`--fall`); the backbone's
rate is half the rest's; an average of the weights (EMA) is what is scored and saved. Every step's
scenes come from the seed and the step's number, so they never repeat and a resumed run sees what it
would have seen. Validation scenes have train photographs and other seeds; test scenes only photo-
graphs that no training showed. The last state is kept, whatever validation says.

    python scripts/train_scene_models.py backbone --classes retain --out-dir /tmp/scenes/backbone
    python scripts/train_scene_models.py detection --classes base --init /tmp/scenes/det ...

`--init` takes a folder of this script: weights are copied, classes matched by name. The folder ends
up with config.json, preprocessor_config.json, model.safetensors and metrics.json.
"""

import argparse
import copy
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scene_art import ART_DIR, fetch_art
from scene_models import (
    DenseClassifier,
    copy_rows,
    dense_loss,
    detector_loss,
    make_detector,
    make_processor,
    make_segmenter,
    segmenter_loss,
)
from scene_scores import score_dense, score_detector, score_segmenter
from scenes import (
    BASE_CLASSES,
    REFERENCE_CLASSES,
    RETAIN_CLASSES,
    Scene,
    compose,
    draw_names,
    load_art,
)
from torch import nn

CLASSES = {"retain": RETAIN_CLASSES, "base": BASE_CLASSES, "reference": REFERENCE_CLASSES}
TASKS = {
    "backbone": (DenseClassifier, dense_loss, score_dense),
    "segmentation": (make_segmenter, segmenter_loss, score_segmenter),
    "detection": (make_detector, detector_loss, score_detector),
}
BACKBONES = {
    "backbone": "backbone.",
    "segmentation": "model.pixel_level_module.encoder.",
    "detection": "model.backbone.model.",
}
"""Where each model keeps the Swin."""

VALIDATION_SEED = 1_000_003
MAX_NORM = 1.0


def class_names(task: str, model: nn.Module) -> list[str]:
    """Return the model's classes by row."""
    return model.names if task == "backbone" else list(model.config.label2id)


def swin_weights(state: dict[str, torch.Tensor], task: str) -> dict[str, torch.Tensor]:
    """Return the weights below the task's backbone, without its prefix."""
    prefix = BACKBONES[task]
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def load_weights(model: nn.Module, task: str, init_dir: Path) -> None:
    """Start from a trained folder: its whole model, or its backbone where the task differs."""
    given = json.loads((init_dir / "metrics.json").read_text(encoding="utf-8"))
    old = TASKS[given["task"]][0](CLASSES[given["classes"]])
    if given["task"] == "backbone":
        old.load_state_dict(load_file(init_dir / "model.safetensors"))
    else:  # the library keeps weights under other names in files than in memory
        old = type(old).from_pretrained(init_dir)
    if given["task"] == task:
        copy_rows(old, model, class_names(task, old), class_names(task, model))
        return
    source = swin_weights(old.state_dict(), given["task"])
    for name, tensor in swin_weights(model.state_dict(), task).items():
        tensor.copy_(source[name])


def rate(step: int, num_steps: int, warm_up: int, fall: float) -> float:
    """Return the learning rate's factor at this step: up, level, down over the share `fall`."""
    falling = (num_steps - step) / (fall * num_steps) if fall else 1.0
    return min((step + 1) / warm_up, 1.0, falling)


class Averaged:
    """An exponential average of a model's weights; its buffers are the model's latest."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = copy.deepcopy(model).eval(), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards `model`; faster in the first steps."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mine, given in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(given, weight)
        for mine, given in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(given)


class Run:
    """One training: model, average, optimiser and scenes, with everything needed to go on."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.names = args, CLASSES[args.classes]
        torch.manual_seed(args.seed)
        make, self.loss, self.score = TASKS[args.task]
        self.model = make(self.names)
        if args.init:
            load_weights(self.model, args.task, args.init)
        self.num_steps = args.num_images // args.batch_size
        self.average = Averaged(self.model, args.ema)
        slow, fast = [], []
        for name, parameter in self.model.named_parameters():
            below = name.startswith(BACKBONES[args.task]) and args.task != "backbone"
            (slow if below else fast).append(parameter)
        groups = [{"params": fast, "factor": 1.0}, {"params": slow, "factor": 0.5}]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=args.rate, weight_decay=args.weight_decay)
        self.art = load_art(fetch_art(ART_DIR))
        rng = np.random.default_rng(VALIDATION_SEED)
        self.validation = [compose(rng, self.art, draw_names(rng, self.names)) for _ in range(160)]
        self.step, self.history, self.seconds = 0, [], 0.0
        self.state_path = args.out_dir / "state.pt"

    def scenes(self) -> list[Scene]:
        """Return this step's scenes."""
        rng = np.random.default_rng([self.args.seed, self.step])
        return [
            compose(rng, self.art, draw_names(rng, self.names), vary=True)
            for _ in range(self.args.batch_size)
        ]

    def train_step(self) -> float:
        """Take one step; return its loss."""
        torch.manual_seed(self.args.seed * 1_000_000 + self.step)
        factor = rate(self.step, self.num_steps, self.args.warm_up, self.args.fall)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * factor * group["factor"]
        self.model.train()
        loss = self.loss(self.model, self.scenes())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)
        self.step += 1
        return loss.item()

    def save_state(self) -> None:
        """Keep everything needed to go on."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        part = self.state_path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.state_path)

    def load_state(self) -> None:
        """Go on from the kept state, where there is one."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state["history"]

    def validate(self, losses: list[float]) -> None:
        """Score the average on the validation scenes and log it."""
        score = self.score(self.average.model, self.validation)
        (name, value), *_ = score.items()
        row = {"images": self.step * self.args.batch_size, name: round(value, 4)}
        row |= {"loss": round(float(np.mean(losses)), 3), "seconds": round(self.seconds)}
        self.history.append(row)
        print(json.dumps(row), flush=True)

    def train(self) -> None:
        """Train to the end, validating and keeping the state every few minutes."""
        self.load_state()
        losses, since, last = [], time.monotonic(), time.monotonic()
        while self.step < self.num_steps:
            losses.append(self.train_step())
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if now - since > self.args.every_s or self.step == self.num_steps:
                self.validate(losses)
                self.save_state()
                losses, since, last = [], time.monotonic(), time.monotonic()

    def save(self) -> None:
        """Write the average as a transformers folder (the backbone's: weights only) and metrics."""
        out_dir, model = self.args.out_dir, self.average.model
        if self.args.task == "backbone":
            save_file(model.state_dict(), out_dir / "model.safetensors")
        else:
            model.save_pretrained(out_dir)
            make_processor(self.args.task).save_pretrained(out_dir)
        metrics = {
            "command": shlex.join(["python", "scripts/train_scene_models.py", *sys.argv[1:]]),
            "task": self.args.task,
            "classes": self.args.classes,
            "seconds": round(self.seconds),
            "num_train_images": self.num_steps * self.args.batch_size,
            "history": self.history,
        }
        text = json.dumps(metrics, indent=2) + "\n"
        (out_dir / "metrics.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Train one model unless it is finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--classes", choices=CLASSES, required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--num-images", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--fall", type=float, default=0.3, help="share of steps, at the end")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-s", type=float, default=180)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if (args.out_dir / "metrics.json").exists():
        print(f"{args.out_dir} is finished")
        return
    run = Run(args)
    run.train()
    run.save()


if __name__ == "__main__":
    main()
