"""Guards the engine: every step's rate and gradient, frozen parts, the choice of the best epoch."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import read_rows
from ultrarefiner.training.counts import confusion_counts, mean_measures
from ultrarefiner.training.engine import (
    EngineSettings,
    fit,
    set_train_mode,
)
from ultrarefiner.training.losses import coarse_loss
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.schedules import poly_lr
from ultrarefiner.training.signals import stop_on_signal


class ConvTask:
    """Two classes of noisy pixels, learned by a small convolution; its Dice can be dictated."""

    def __init__(self, sizes, dices=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.sizes, self.dices = sizes, dices
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.randint(0, 2, (sum(sizes), 6, 6), generator=generator)
        noise = torch.randn(self.labels.shape, generator=generator)
        self.images = (self.labels + 0.3 * noise)[:, None]
        self.on_batch, self.states = None, []

    def batch_sizes(self, epoch):
        return self.sizes

    def batches(self, epoch, first=0):
        self.epoch = epoch
        pairs = zip(self.images.split(self.sizes), self.labels.split(self.sizes), strict=True)
        yield from list(pairs)[first:]

    def losses(self, model, batch):
        if self.on_batch:
            self.on_batch(self.epoch)
        logits = model(batch[0])
        return coarse_loss(logits, batch[1]), confusion_counts(logits.argmax(1) == 1, batch[1] == 1)

    def measure(self, observed):
        assert len(observed) == sum(self.sizes)
        return {"dice": mean_measures(observed)["dice"]}

    def validate(self, check):
        assert not self.model.training
        self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        if self.dices is not None:
            return {"dice": self.dices[self.epoch], "loss": 1.0}
        with torch.inference_mode():
            logits = self.model(self.images)
        return mean_measures(confusion_counts(logits.argmax(1) == 1, self.labels == 1))


def run(task, folder, **settings):
    values = {"epochs": 2, "lr": 0.1, "device": "cpu", **settings}
    resume = ResumeFolder(folder / "resume", {"config": {}})
    return fit(task, EngineSettings(**values), resume, folder / "history.csv")


def weights(task):
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


def test_training_learns(tmp_path):
    task = ConvTask([4, 4])
    before = mean_measures(
        confusion_counts(task.model(task.images).argmax(1) == 1, task.labels == 1)
    )
    result = run(task, tmp_path, epochs=20, lr=0.5)
    assert result.metrics["dice"] > max(0.9, before["dice"])
    assert result.rows[-1]["train_loss"] < 0.5 * result.rows[0]["train_loss"]


def test_poly_lr_is_the_closed_form_at_every_step(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args, **kw: (
            rates.append(self.param_groups[0]["lr"]),
            step(self, *args, **kw),
        ),
    )
    result = run(ConvTask([2, 2, 2, 2, 1]), tmp_path, epochs=3, accumulate=2, lr=0.3, power=0.9)
    assert rates == pytest.approx([0.3 * (1 - i / 9) ** 0.9 for i in range(9)], rel=1e-12)
    assert [row["lr"] for row in result.rows] == pytest.approx([rates[0], rates[3], rates[6]])
    assert poly_lr(0.3, 5, 9, 0.0) == 0.3


def test_adam_and_multistep_are_those_of_pytorch(tmp_path):
    task, plain = ConvTask([4, 3], dices=[0.1, 0.2, 0.3, 0.4]), ConvTask([4, 3])
    options = {"weight_decay": 0.1, "schedule": "multistep", "milestones": [1, 3], "gamma": 0.1}
    result = run(task, tmp_path, epochs=4, lr=0.01, optimizer="adam", **options)
    optimizer = torch.optim.Adam(plain.model.parameters(), 0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.1)
    for epoch in range(4):
        for images, labels in plain.batches(epoch):
            optimizer.zero_grad()
            coarse_loss(plain.model(images), labels).mean().backward()
            optimizer.step()
        scheduler.step()
    assert weights(task).numpy() == pytest.approx(weights(plain).numpy(), abs=1e-6)
    assert [row["lr"] for row in result.rows] == pytest.approx([0.01, 0.001, 0.001, 0.0001])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_accumulated_batches_equal_one_large_batch(tmp_path, optimizer):
    lr = 0.1 if optimizer == "sgd" else 0.01
    large, small = ConvTask([8, 3]), ConvTask([4, 4, 3])
    run(large, tmp_path / "large", optimizer=optimizer, lr=lr)
    run(small, tmp_path / "small", optimizer=optimizer, lr=lr, accumulate=2)
    assert weights(small).numpy() == pytest.approx(weights(large).numpy(), abs=1e-6)


def test_uneven_batches_of_a_step_weigh_by_their_samples(tmp_path):
    large, small = ConvTask([7]), ConvTask([4, 2, 1])
    run(large, tmp_path / "large")
    run(small, tmp_path / "small", accumulate=3)
    assert weights(small).numpy() == pytest.approx(weights(large).numpy(), abs=1e-6)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    task = ConvTask([8])
    before = weights(task)
    run(task, tmp_path, epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, grad_clip=0.01)
    assert (weights(task) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_nesterov_looks_ahead(tmp_path):
    def moved(nesterov):
        task = ConvTask([8])
        before = weights(task)
        settings = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
        run(task, tmp_path / str(nesterov), epochs=1, nesterov=nesterov, **settings)
        return (weights(task) - before).numpy()

    # The first step is (1 + momentum) times as long: gradient + momentum x velocity.
    assert moved(True) == pytest.approx(1.5 * moved(False), rel=1e-3, abs=1e-6)


def test_best_epoch_is_the_earliest_of_equal_ones(tmp_path):
    task = ConvTask([4], dices=[0.2, 0.7, 0.7, 0.5])
    result = run(task, tmp_path, epochs=4)
    assert (result.best_epoch, result.metrics["dice"]) == (2, 0.7)
    for key, value in task.model.state_dict().items():
        assert torch.equal(value, task.states[1][key])
    assert not torch.equal(task.states[1]["0.weight"], task.states[3]["0.weight"])


def test_validation_rows_and_the_last_epoch(tmp_path):
    run(ConvTask([4], dices=[0.1] * 5), tmp_path, epochs=5, validate_every=2)
    rows = read_rows(tmp_path / "history.csv")
    assert [row["epoch"] for row in rows] == list("12345")
    assert [row["val_dice"] for row in rows] == ["", "0.1", "", "0.1", "0.1"]
    assert list(rows[0])[-1] == "seconds"


def test_frozen_parts_do_not_change_and_stay_in_eval_mode(tmp_path):
    task = ConvTask([4, 4])
    frozen = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout(0.5))
    frozen.requires_grad_(False)
    task.model = nn.Sequential(frozen, nn.Dropout(0.1), task.model)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    modes = []
    task.on_batch = lambda epoch: modes.append([m.training for m in task.model.modules()])
    run(task, tmp_path)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key
    whole, parts = modes[0][0], modes[0][1:5]
    assert whole and parts == [False] * 4 and all(modes[0][5:])


def test_a_frozen_model_is_refused(tmp_path):
    task = ConvTask([4])
    task.model.requires_grad_(False)
    set_train_mode(task.model)
    assert not any(module.training for module in task.model.modules())
    with pytest.raises(UltraRefinerError, match="frozen"):
        run(task, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_says_what_to_change(tmp_path):
    task = ConvTask([4])
    task.images[0] = float("nan")
    with pytest.raises(UltraRefinerError, match=r"nan in epoch 1; lower `lr`"):
        run(task, tmp_path)


def test_mixed_precision_trains_and_keeps_float32_weights(tmp_path):
    task = ConvTask([4, 4])
    result = run(task, tmp_path, epochs=20, lr=0.5, precision="bf16-mixed")
    assert result.metrics["dice"] > 0.9
    assert weights(task).dtype == torch.float32


def test_half_precision_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"16-mixed needs a CUDA GPU.*bf16-mixed"):
        run(ConvTask([4]), tmp_path, precision="16-mixed")


def test_tensorboard_events_are_written_when_asked(tmp_path):
    run(ConvTask([4]), tmp_path, tensorboard=tmp_path / "events")
    assert len(list((tmp_path / "events").iterdir())) == 1
    run(ConvTask([4]), tmp_path / "other")
    assert not list((tmp_path / "other").glob("**/*tfevents*"))


def test_sigterm_stops_between_batches_and_training_goes_on_from_the_last_epoch(tmp_path, caplog):
    unbroken, broken, again = ConvTask([4, 2]), ConvTask([4, 2]), ConvTask([4, 2])
    expected = run(unbroken, tmp_path / "unbroken", epochs=4)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler := lambda *_: None)
    broken.on_batch = lambda epoch: epoch == 2 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(broken, tmp_path / "broken", epochs=4)
    assert signal.signal(signal.SIGTERM, before) is handler
    assert stopped.value.code == 143
    assert "stopped by SIGTERM" in caplog.text
    assert len(read_rows(tmp_path / "broken" / "history.csv")) == 2
    epochs = []
    again.on_batch = epochs.append
    result = run(again, tmp_path / "broken", epochs=4)
    assert sorted(set(epochs)) == [2, 3]
    assert torch.equal(weights(again), weights(unbroken))
    for row in (*result.rows, *expected.rows):
        row.pop("seconds")
    assert result.rows == expected.rows


class NoisyTask(ConvTask):
    """With BatchNorm and dropout, so that statistics and random numbers matter."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.model = nn.Sequential(self.model[0], nn.BatchNorm2d(4), nn.Dropout(0.5), self.model[2])
        self.on_validation = None

    def validate(self, check):
        if self.on_validation:
            self.on_validation()
        check()
        return super().validate(check)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, "validation"])
def test_stopped_in_the_middle_of_an_epoch_it_ends_to_the_bit_as_unbroken(tmp_path, caplog, at):
    sizes = [4, 2, 3, 2, 1]
    settings = {"epochs": 3, "accumulate": 2, "optimizer": "adamw", "lr": 0.01}
    unbroken, broken, again = NoisyTask(sizes), NoisyTask(sizes), NoisyTask(sizes)
    expected = run(unbroken, tmp_path / "unbroken", **settings)
    batches = []

    def ask(epoch):
        batches.append(epoch)
        if batches.count(1) == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    if at == "validation":
        broken.on_validation = lambda: broken.epoch == 1 and os.kill(os.getpid(), signal.SIGUSR1)
    else:
        broken.on_batch = ask
    with pytest.raises(SystemExit) as stopped:
        run(broken, tmp_path / "broken", **settings)
    assert stopped.value.code == 143
    # Two batches make a step, and between steps it stops.
    done = {1: 2, 2: 2, 3: 4, 4: 4, 5: 5, "validation": 5}[at]
    seen = []
    again.on_batch = seen.append
    with caplog.at_level("INFO"):
        result = run(again, tmp_path / "broken", **settings)
    assert f"resuming after epoch 1 of 3 and {done} batches" in caplog.text
    assert seen == [1] * (5 - done) + [2] * 5
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    for row in (*result.rows, *expected.rows):
        row.pop("seconds")
    assert result.rows == expected.rows


def test_a_slurm_job_trains_as_one_process(tmp_path, monkeypatch):
    for name, value in {"NTASKS": "2", "JOB_NAME": "study", "JOB_ID": "7", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run(ConvTask([4]), tmp_path).best_epoch is not None


def test_other_threads_train_without_a_signal_handler():
    seen = []

    def work():
        with stop_on_signal() as check:
            seen.append(signal.getsignal(signal.SIGTERM))
            check()

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
