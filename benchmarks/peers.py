"""The peers of the race: networks of other libraries, trained by what their tutorials show, written anew in few lines.

Sources: MONAI's tutorial of 2-D segmentation (`unet_training_dict.py`); M. Buda's brain-segmentation-pytorch, for which
see also Computers in Biology and Medicine 109, 2019; the tutorial of segmentation_models.pytorch on binary masks.
Losses are those of the libraries. What differs from the tutorials stands in `RACE.md`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetlib.losses import Loss, dice
from unetlib.unet import UNet

Volumes = list[tuple[np.ndarray, np.ndarray]]  # image (X, Y, Z) and mask of each patient


class Peer:
    """A network, batches and a loss; `prepared` turns a volume into slices (Z, C, H, W) on the grid of the network."""

    batch, rate = 16, 1e-3

    def __init__(self, train: Volumes) -> None:
        torch.manual_seed(0)
        self.rng, self.network, self.loss = np.random.default_rng(0), self.make(), self.make_loss()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.rate)
        self.images = [self.prepared(image) for image, _ in train]
        self.masks = [
            self.on_grid(torch.from_numpy(mask.astype(np.float32).transpose(2, 1, 0)[:, None])) for _, mask in train
        ]

    def make(self) -> nn.Module:
        """Return the network with fresh weights."""
        raise NotImplementedError

    def make_loss(self) -> Loss:
        """Return the loss, of logits and masks: ours is what Buda has, with 1 added above and below."""
        return dice

    def on_grid(self, slices: Tensor) -> Tensor:
        """Return slices on the grid of the network."""
        return slices

    def prepared(self, image: np.ndarray) -> Tensor:
        """Return the slices of a volume, each scaled to 0..1."""
        slices = torch.from_numpy(image.astype(np.float32).transpose(2, 1, 0)[:, None])
        low, high = slices.amin((1, 2, 3), keepdim=True), slices.amax((1, 2, 3), keepdim=True)
        return self.on_grid((slices - low) / (high - low).clamp(min=1e-6))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the images and masks of a batch."""
        raise NotImplementedError

    def step(self) -> None:
        """Update the weights once."""
        images, masks = self.draw()
        self.network.train()
        self.optimizer.zero_grad()
        self.loss(self.network(images), masks).backward()
        self.optimizer.step()

    def state(self, spent: float) -> dict[str, Any]:
        """Return all that the next step depends on, and the seconds `spent` so far."""
        network, optimizer = self.network.state_dict(), self.optimizer.state_dict()
        return {"network": network, "optimizer": optimizer, "rng": self.rng.bit_generator.state, "spent": spent}

    def restore(self, state: dict[str, Any]) -> float:
        """Go on from a `state`; return the seconds spent."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        return float(state["spent"])

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> np.ndarray:
        """Return the probabilities of a volume."""
        self.network.eval()
        found = torch.cat([torch.sigmoid(self.forward(batch)) for batch in self.prepared(image).split(16)])
        size = image.shape[1::-1]
        return F.interpolate(found, size=size, mode="bilinear")[:, 0].numpy().transpose(2, 1, 0)

    def forward(self, slices: Tensor) -> Tensor:
        """Return the logits of whole slices."""
        return self.network(slices)


class Monai(Peer):
    """As MONAI's tutorial: four crops of 96 x 96 of each of two slices, turned by 90 degrees.

    Every slice of the tutorial holds what is to be found; here it is every other one, on average. The tutorial's Dice
    loss has hardly any gradient in a crop without tumour, so the loss is that of other tutorials of MONAI.
    """

    crop = 96

    def make_loss(self) -> Loss:
        """Return MONAI's sum of Dice loss and cross-entropy: of each crop, then the mean."""
        from monai.losses import DiceCELoss

        return DiceCELoss(sigmoid=True)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return crops, half of them centred on tumour, of two slices drawn at random."""
        images, masks = [], []
        for _ in range(2):
            patient = int(self.rng.integers(len(self.images)))
            tumour = np.flatnonzero(self.masks[patient].flatten(1).any(1))
            every = np.arange(len(self.images[patient]))
            z = int(self.rng.choice(tumour if len(tumour) and self.rng.random() < 0.5 else every))
            image, mask = self.images[patient][z], self.masks[patient][z]
            for place in range(4):
                y, x = self._corner(mask[0], tumour=place < 2)
                cut = (..., slice(y, y + self.crop), slice(x, x + self.crop))
                turns = int(self.rng.integers(1, 4)) if self.rng.random() < 0.5 else 0
                images.append(image[cut].rot90(turns, (1, 2)))
                masks.append(mask[cut].rot90(turns, (1, 2)))
        return torch.stack(images), torch.stack(masks)

    def _corner(self, mask: Tensor, tumour: bool) -> tuple[int, int]:
        inside = torch.nonzero(mask > 0 if tumour and mask.any() else mask == 0)
        centre = inside[int(self.rng.integers(len(inside)))]
        y, x = np.clip(centre.numpy() - self.crop // 2, 0, np.subtract(mask.shape, self.crop))
        return y, x

    def forward(self, slices: Tensor) -> Tensor:
        """Return the logits by windows that slide over the slices."""
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(slices, (self.crop, self.crop), 4, self.network)


class Basic(Monai):
    """MONAI's BasicUNet."""

    def make(self) -> nn.Module:
        """Return it with its own widths."""
        from monai.networks.nets import BasicUNet

        return BasicUNet(2, 1, 1)


class Attention(Monai):
    """MONAI's AttentionUnet."""

    def make(self) -> nn.Module:
        """Return it with the widths of the tutorial."""
        from monai.networks.nets import AttentionUnet

        return AttentionUnet(2, 1, 1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2))


class Whole(Peer):
    """Whole slices, drawn with a probability that grows with their tumour, as in brain-segmentation-pytorch."""

    size = 256

    def on_grid(self, slices: Tensor) -> Tensor:
        """Return slices of 256 x 256."""
        return F.interpolate(slices, size=(self.size, self.size), mode="bilinear", antialias=True)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return slices that are scaled, turned and mirrored."""
        images, masks = [], []
        for _ in range(self.batch):
            patient = int(self.rng.integers(len(self.images)))
            tumour = self.masks[patient].sum((1, 2, 3)).double().numpy()
            weights = tumour + 0.1 * tumour.sum() / len(tumour)
            z = int(self.rng.choice(len(tumour), p=weights / weights.sum()))
            images.append(self.images[patient][z])
            masks.append(self.masks[patient][z])
        grid = self._grid()
        image = F.grid_sample(torch.stack(images), grid, align_corners=False)
        return image, (F.grid_sample(torch.stack(masks), grid, align_corners=False) >= 0.5).float()

    def _grid(self) -> Tensor:
        scale = 1 + self.rng.uniform(-0.05, 0.05, self.batch)
        angle, flip = np.deg2rad(self.rng.uniform(-15, 15, self.batch)), self.rng.choice([-1, 1], self.batch)
        cos, sin, zero = np.cos(angle) * scale, np.sin(angle) * scale, np.zeros(self.batch)
        matrix = np.stack([[cos * flip, -sin, zero], [sin * flip, cos, zero]]).transpose(2, 0, 1)
        return F.affine_grid(
            torch.from_numpy(matrix).float(), [self.batch, 1, self.size, self.size], align_corners=False
        )


class BrainSegmentation(Whole):
    """The recipe of brain-segmentation-pytorch: a U-Net of width 32 on 256 x 256 pixels, Adam 1e-4, batches of 16.

    The volume is cut at its 10th and 99th percentile and standardised. It has FLAIR and its neighbours in the place of
    three sequences.
    """

    rate = 1e-4

    def make(self) -> nn.Module:
        """Return a U-Net of the same widths."""
        return UNet(3, 1, 32)

    def prepared(self, image: np.ndarray) -> Tensor:
        """Return each slice with its neighbours, standardised over the volume."""
        low, high = np.percentile(image, [10, 99])
        scaled = np.clip((image.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
        scaled = (scaled - scaled.mean()) / max(float(scaled.std()), 1e-6)
        slices = self.on_grid(torch.from_numpy(scaled.astype(np.float32).transpose(2, 1, 0)[:, None]))
        places = torch.arange(len(slices))
        near = [slices[(places + step).clamp(0, len(slices) - 1)] for step in (-1, 0, 1)]
        return torch.cat(near, dim=1)


class ResNet(Whole):
    """segmentation_models.pytorch's U-Net with a ResNet-18 of random weights; Adam 2e-4, its Dice loss."""

    rate = 2e-4

    def make_loss(self) -> Loss:
        """Return the Dice loss of segmentation_models.pytorch."""
        from segmentation_models_pytorch.losses import DiceLoss

        return DiceLoss("binary", from_logits=True)

    def make(self) -> nn.Module:
        """Return it; torchvision's operators are declared first, since its build is made for another torch."""
        for name in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets) -> Tensor"):
            torch.library.define(f"torchvision::{name.partition('(')[0]}", name[name.index("(") :])
        from segmentation_models_pytorch import Unet

        return Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)


PEERS = {"basic": Basic, "attention": Attention, "brain-segmentation": BrainSegmentation, "resnet": ResNet}
