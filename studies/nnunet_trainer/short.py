"""nnU-Net's own training, shorter: the environment variable EPOCHS says how many.

nnU-Net finds this class by its name, in the folder that the environment variable nnUNet_extTrainer names.
"""

import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):
    """One core, a checkpoint after each epoch, and the seconds of the processor in a file; nothing else differs."""

    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net looks for these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)
        self.num_epochs = int(os.environ["EPOCHS"])
        self.save_every = 1
        self.begun = time.process_time()

    def on_epoch_end(self):
        """Add the epoch's seconds to `seconds.csv`."""
        super().on_epoch_end()
        now = time.process_time()
        with open(Path(self.output_folder) / "seconds.csv", "a") as file:
            file.write(f"{self.current_epoch},{now - self.begun:.1f}\n")
        self.begun = now
