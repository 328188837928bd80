"""What the processes of a team do in tests; each function is called in every one of them."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from tests.end_to_end_fixture import TRAIN, joint, train_joint
from tests.refiner_fixture import SAM_UNET, as_published, finetune, quick
from tests.training_fixture import outputs, tiny_config
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import write_json
from ultrarefiner.training.coarse import CoarseTask, train_coarse
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.shared_modules import sharing
from ultrarefiner.training.team import ALONE

GATED = {**{part: {"lr": 0.05} for part in TRAIN}, "gate": {"lr": 0.05}}


def distance(one, other):
    """Return the largest difference of the tensors of two states."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def modules_of(team):
    """Return how far a shared net with BatchNorm and dropout is from torch's own, piece by piece."""
    found = {}
    for count in (5, 4, 1):
        torch.manual_seed(3)
        nets = [
            nn.Sequential(
                nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4)
            ).double()
            for _ in range(2)
        ]
        nets[1].load_state_dict(nets[0].state_dict())
        # Far from 0, where sums of squares lose digits.
        x, target = 3 * torch.randn(count, 3, 6, 6) + 1000, torch.randn(count, 4, 6, 6)
        x, target = x.double(), target.double()
        pulled = []
        for net, who in zip(nets, (ALONE, team), strict=True):
            share = who.batch_share(count)
            torch.manual_seed(4)
            with sharing(net, who) as current:
                current.share = share
                mine = slice(share.start, share.stop)
                # Tokens: the batch leads, the rest is not in memory's order.
                image = x[mine].clone().requires_grad_()
                made = net[2](net[1](net[0](image)).flatten(2).transpose(1, 2))
                made = net[3](made.transpose(1, 2).unflatten(2, (6, 6)))
                ((made - target[mine]).square().sum() / (count * share.copies)).backward()
            who.sum_gradients(net.parameters())
            assert [type(one) for one in net][1:] == [nn.BatchNorm2d, nn.Dropout, nn.BatchNorm2d]
            pulled.append((made.detach(), image.grad * share.copies, mine))
        (whole, gradient, _), (part, own, mine) = pulled
        grads = [{name: one.grad for name, one in net.named_parameters()} for net in nets]
        found |= {
            f"output {count}": float((whole[mine] - part).abs().max()),
            f"input gradient {count}": float((gradient[mine] - own).abs().max()),
            f"gradients {count}": distance(*grads),
            f"statistics {count}": distance(nets[0].state_dict(), nets[1].state_dict()),
            f"random numbers {count}": float(torch.rand(1) - drawn_after(count)),
        }
    return found


def drawn_after(count):
    """Return the number that one process draws after the dropout of a batch."""
    torch.manual_seed(4)
    nn.functional.dropout(torch.ones(count, 36, 4).double(), 0.5, training=True)
    return torch.rand(1)


def coarse(config, study, folder, team=ALONE, device="cpu"):
    """Train a coarse model into a folder."""
    prepared, splits = study[:2]
    train_coarse(
        config,
        name="tiny",
        trainset="toy",
        prepared=prepared,
        splits=splits,
        fold=0,
        protocol="nested",
        device=device,
        team=team,
        **outputs(folder),
    )


class Kept:
    """The last state that a training saves, on every member of a team."""

    def __enter__(self):
        self._save = save = ResumeFolder.save

        def keep(folder, state, best_epoch):
            if "model" in state:
                self.model = {name: one.clone() for name, one in state["model"].items()}
                self.rows = state["rows"]
            save(folder, state, best_epoch)

        ResumeFolder.save = keep
        return self

    def __exit__(self, *_):
        ResumeFolder.save = self._save


def compared(team, folder, run):
    """Train with the team and alone; return how far the two are from each other."""
    kept = []
    for who, name in ((ALONE, f"alone{team.rank}"), (team, "team")):
        with Kept() as one:
            run(folder / name / "model", who)
        kept.append(one)
    alone, shared = kept
    assert len(alone.rows) == len(shared.rows)
    rows = [
        max(abs(one[name] - other[name]) for name in one if name not in ("seconds", "epoch"))
        for one, other in zip(alone.rows, shared.rows, strict=True)
    ]
    return {"weights": distance(alone.model, shared.model), "rows": max(rows)}


def all_trainings(study, toy, weights, model, team, device):
    """Write how far a team is from one process after three steps, for every kind of training.

    Five cases make batches of 2, 2 and 1, the last too small to be shared, or of 3 and 2.
    """
    torch.set_num_threads(1)
    folder, found = Path(model).parent, {"modules": modules_of(team)}
    lora = {"freeze": "encoder", "lora": {"rank": 2, "last": 1, "dropout": 0.2}}
    runs = {
        "transunet": lambda at, who: coarse(tiny_config(epochs=1), study, at, who),
        "unet": lambda at, who: coarse(
            tiny_config(model="unet", width=4, batch_size=3, accumulate=2, grad_clip=0.1),
            study,
            at,
            who,
        ),
        "refiner": lambda at, who: finetune(
            quick(epochs=1, prompts=["box", "mask"], optimizer="sgd", lr=0.01, **lora),
            study,
            weights,
            at,
            team=who,
        ),
        "sam_unet": lambda at, who: finetune(
            as_published(epochs=1, optimizer="sgd", lr=1e-3, schedule="cosine", milestones=[]),
            study,
            None,
            at,
            **SAM_UNET,
            team=who,
        ),
        "coarse sam_unet": lambda at, who: coarse(
            tiny_config(model="sam_unet_tiny", image_size=64, epochs=1, lr=1e-3), study, at, who
        ),
        "end_to_end": lambda at, who: train_joint(
            joint(epochs=1, train=GATED, fusion={"gate": "learned"}, optimizer="sgd", anchor=1e-2),
            study,
            toy,
            weights,
            at,
            team=who,
        ),
    }
    for name, run in runs.items():
        found[name] = compared(team, folder / name, run)
    if team.is_first:
        write_json(model, found)


def clip_training(study, weights, model, team, device):
    """Write how far a team is from one process where slices are followed by memory."""
    torch.set_num_threads(1)
    sgd = quick(
        **{"data": "truth", "clip": 3, "epochs": 1, "batch_size": 4, "prompts": ["box"]},
        **{"optimizer": "sgd", "lr": 1e-3, "cache": "none", "augment": {}, "hflip": 0.5},
    )
    options = {"image_size": 64, "mask_choice": "single"}
    found = compared(
        team,
        Path(model).parent,
        lambda at, who: finetune(
            sgd, study, weights, at, team=who, family="medsam2", options=options
        ),
    )
    if team.is_first:
        write_json(model, found)


def ask_for_a_stop(config, parent, at, team, **arguments):
    """Train; when the first member is at a batch, tell the process that started it to stop."""
    losses, seen = CoarseTask.losses, []

    def losses_until(task, model, batch):
        seen.append(batch)
        if team.is_first and len(seen) == at:
            arrived, to = os.pipe()
            os.set_blocking(to, False)
            signal.set_wakeup_fd(to)
            os.kill(parent, signal.SIGUSR1)
            os.read(arrived, 1)
        return losses(task, model, batch)

    torch.set_num_threads(1)
    CoarseTask.losses = losses_until
    train_coarse(config, team=team, **arguments)


def fail_in_the_second(how, model, team, device):
    """Fail in one process while the other waits for it."""
    if team.is_first:
        team.wait()
    if how == "told":
        raise UltraRefinerError("process 1 cannot")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("of the second")
