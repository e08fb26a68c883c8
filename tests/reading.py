"""A run that keeps what a data module gave it."""

import torch
from lightning import LightningModule, seed_everything

from tests.conftest import quiet_trainer
from zoo.callbacks import LastCheckpoint


class Reader(LightningModule):
    """Learns nothing and keeps what it was given; stops without warning before update `stop` is saved."""

    def __init__(self, stop=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validations, self.stop = [], 0, stop

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, *(part.tolist() for part in batch)))
        return self.weight * 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == self.stop:
            raise InterruptedError

    def validation_step(self, batch, batch_idx):
        self.validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def read(folder, data, *, save=1000, stop=None, resume=False):
    """Two epochs of the data, a checkpoint every `save` updates."""
    seed_everything(6, verbose=False)
    model = Reader(stop)
    trainer = quiet_trainer(
        max_epochs=2,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[LastCheckpoint(save)],
        enable_checkpointing=True,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        assert stop is not None
    return model
