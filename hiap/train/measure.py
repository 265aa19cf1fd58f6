"""Accuracy of networks within one run: on its images, in its precision, by all of its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hiap.backbones.seeds import derive
from hiap.data import loader as data
from hiap.data.loader import Batch, Info
from hiap.gates import set_temperature
from hiap.train.config import ON_DISK, Config, ConfigError, DataConfig
from hiap.train.distributed import World
from hiap.train.evaluate import at_once, evaluate
from hiap.train.journal import Journal
from hiap.train.record import Folders, Score, environment, read
from hiap.train.stopping import Interrupted


@dataclass
class Measure:
    """Measurement of networks within a run. ``data`` as the run's network takes them; ``stopping``: whether the run was
    asked to stop."""

    config: Config
    data: DataConfig
    folders: Folders
    world: World
    device: torch.device
    stopping: Callable[[], bool]
    journal: Journal
    info: Info

    def score(self, model: Any, what: str = "", soft: bool = False, stoppable: bool = True) -> Score:
        """Measure ``model``; ``what`` it is, for whoever waits for it."""
        config = self.config
        if what:
            self.journal.progress.say(f"measuring {what} on {self.info.test:,} images")
        batches = self._batches()
        batches = self._until_stopped(batches) if stoppable else batches
        return evaluate(model.to(self.device), batches, self.device, config.optim.precision, soft, self.world)

    def require_readable(self) -> None:
        """Decode all images once, of which pixels are kept: raises ``ConfigError`` for one that is damaged."""
        if self.data.name in ON_DISK:
            self.journal.progress.say(f"looking at {self.info.test:,} images to measure on")
            for _ in self._until_stopped(self._batches()):
                pass

    def soft_score(self, model: Any) -> Score:
        """Measure the network as it was trained: gates sampled at the final temperature, one draw per batch."""
        set_temperature(model, self.config.gates.tau_end)
        torch.manual_seed(derive(self.config.seed, "soft"))
        return without_hits(self.score(model, "the network under gate noise", soft=True))

    def dense_score(self, start: Any) -> Score:
        """Measure the network that the run starts from. What another run has left was measured at its end: that counts,
        if it was with the same images, precision, libraries and kind of machine."""
        config = self.config
        if config.model.weights.startswith("run:"):
            other = read(self.folders.referred(config.model.weights).record)
            here = environment(self.device, "")
            same = (
                other.config.data.model_dump(exclude={"root"}) == config.data.model_dump(exclude={"root"})
                and (other.images is None or other.images.files == self.journal.made_of["images"])
                and other.config.optim.precision == config.optim.precision
                and (other.environment.device_name, other.environment.threads) == (here.device_name, here.threads)
                and other.environment.libraries == here.libraries
                and other.config.model.img_size == config.model.img_size  # else its positions are resampled
            )
            if same and other.metrics.extracted:
                return without_hits(other.metrics.extracted)
            if other.environment.device_name != here.device_name:
                there, now = other.environment.device_name, here.device_name
                self.journal.progress.say(f"the start was trained on {there}, this is {now}: last digits differ")
        score = without_hits(self.score(start, "the start"))
        self.journal.progress.say(f"the start has top-1 {score.top1:.2f} %")
        return score

    def check_start(self, score: Score | None, published: float | None) -> None:
        """Raise ``ConfigError`` for a start far below its published accuracy: it was loaded, or is shown images, in
        another way than it was trained."""
        config = self.config
        if score and published and score.top1 < published - config.run.max_drop:
            raise ConfigError(
                f"model.weights '{config.model.weights}' start at {score.top1:.2f} % where timm publishes "
                f"{published:.2f} % for {config.model.name}: order of classes, data.mean, data.crop_pct or images are "
                f"not as it was trained; run.max_drop={published - score.top1:.0f} or more goes on all the same"
            )

    def _batches(self) -> Iterator[Batch]:
        return data.test_batches(
            self.data,
            self.config.model.img_size,
            batch_size=at_once(self.config),
            workers=self.config.run.workers,
            share=(self.world.rank, self.world.size),
            device=self.device,
        )

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches until the run is asked to stop. Nothing is lost by leaving a measurement: the checkpoint before
        it is there."""
        for batch in batches:
            if self.stopping():
                self.journal.status(state="stopped")
                raise Interrupted(f"{self.config.run_id}: stopped while measuring; run again to resume")
            yield batch


def without_hits(score: Score) -> Score:
    """Return ``score`` without which images were right: that is kept of the extracted network alone."""
    return score.model_copy(update={"correct": ""})
