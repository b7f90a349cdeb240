"A task of Lightning, in a module of its own: processes that are spawned import it."
import lightning.pytorch
import torch
from torch.nn import functional as F

class Task(lightning.pytorch.LightningModule):
    "Trains a classifier; at the end, pruned weights may be put to zero."
    def __init__(self, net, zeroed=None):
        super().__init__()
        self.net, self.zeroed = net, zeroed or {}
    def training_step(self, batch, i): return F.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-3)
    def on_train_end(self):
        with torch.no_grad():
            for k, mask in self.zeroed.items(): self.net.get_parameter(k)[~mask] = 0
