"""The training loop: batches, forward, loss, backward, clip, step. Hooks do everything else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from unetlib.augment import change
from unetlib.checks import finite, get_batch, require_tumour, samples
from unetlib.dataset import Trainable, epoch_order
from unetlib.hooks import Engine, Hook
from unetlib.losses import get_loss
from unetlib.metrics import Counts, count, dice
from unetlib.recipe import Recipe
from unetlib.schedule import learning_rate
from unetlib.support.chance import step_seed

VALIDATION_BATCH = {2: 32, 3: 1}  # slices: fastest on a CPU, with 0.5 GB at width 32; volumes


@dataclass
class State:
    """The progress of a training: `epoch` and `step` come next, counted from 0."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # over the samples of this epoch so far
    best_dice: float = -1.0  # highest of all epochs, on the validation samples
    seconds: float = 0.0  # of training, over all calls
    history: list[dict[str, float]] = field(default_factory=list)  # one row for each epoch


class Loop:
    """Trains a network on a data set by a recipe, and calls hooks."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Trainable,
        recipe: Recipe,
        hooks: Sequence[Hook] = (),
        engine: Engine | None = None,
    ) -> None:
        self.network, self.dataset, self.recipe, self.hooks = network, dataset, recipe, list(hooks)
        self.engine, self.state, self.stopping = engine or Engine(), State(), False
        self.optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        self.loss = get_loss(recipe.loss, recipe.deep_supervision)
        self.validated = network  # validated and saved; may be replaced by averaged weights
        self.shown = len(self.order())  # samples per epoch
        require_tumour(dataset)
        self.steps = -(-self.shown // recipe.batch_size)  # per epoch; the last one may have fewer samples

    def run(self) -> State:
        """Train to the end of the last epoch, or until a hook sets `stopping`; return the state."""
        self.call_hooks("on_start")
        state, size = self.state, self.recipe.batch_size
        while state.epoch < self.recipe.epochs and not self.stopping:
            order = self.order()
            while state.step < self.steps:
                self.step(order[state.step * size : (state.step + 1) * size])
                if self.stopping:
                    return state
            state.history += [{"epoch": state.epoch + 1, "train_loss": state.loss_sum / self.shown, **self.validate()}]
            state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
            self.call_hooks("on_epoch_end")
        return state

    def order(self) -> np.ndarray:
        """Return the positions of this epoch's samples, in their order."""
        return epoch_order(self.dataset, self.recipe.balance, self.recipe.seed, self.state.epoch)

    def step(self, positions: np.ndarray) -> None:
        """Update the weights once, on the samples at these positions."""
        recipe, state, number = self.recipe, self.state, self.state.epoch * self.steps + self.state.step
        self.call_hooks("on_step_start")
        self.engine.seed(step_seed(recipe.seed, state.epoch, state.step))
        images, masks = self.engine.to_device(get_batch(self.dataset, positions))
        images, masks = change(images, masks, recipe, state.epoch, state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, number, recipe.epochs * self.steps)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.engine.forward(self.network, images), masks)
        self.engine.backward(loss)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)  # before clipping
        self.call_hooks("on_gradients", finite(loss.item(), recipe.learning_rate, self.gradient_norm.item()))
        self.optimizer.step()
        state.loss_sum += loss.item() * len(positions)
        state.step += 1
        self.call_hooks("on_step_end", loss.item())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean loss and the Dice, pooled over the validation samples; the mean over several regions."""
        network, positions, loss_sum, counts = self.validated.eval(), samples(self.dataset, "val"), 0.0, []
        for batch in np.split(positions, range(0, len(positions), VALIDATION_BATCH[self.recipe.dims])[1:]):
            images, masks = self.engine.to_device(get_batch(self.dataset, batch))
            logits = self.engine.forward(network, images)
            loss_sum += self.loss(logits, masks).item() * len(batch)
            counts.append(count((torch.sigmoid(logits) >= 0.5).cpu().numpy(), masks.bool().cpu().numpy()))
        loss, pooled = loss_sum / len(positions), dice(Counts.concatenate(counts).sum())
        return {"val_loss": finite(loss, self.recipe.learning_rate), "val_dice": float(pooled.mean())}

    def call_hooks(self, method: str, *values: float) -> None:
        """Call this method of every hook, in order."""
        for hook in self.hooks:
            getattr(hook, method)(self, *values)
