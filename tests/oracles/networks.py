"""Networks of one task, as users write them."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))


def convnet():
    """Images (2, 8, 8); one chain of modules."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(36),
        nn.Linear(36, 6),
        nn.Softmax(dim=1),
        nn.Linear(6, 3),
    )


def conv1d():
    """Signals (2, 11), chains within chains."""
    features = nn.Sequential(nn.Conv1d(2, 4, 3, padding="same"), nn.GELU(), nn.AdaptiveAvgPool1d(5))
    return nn.Sequential(features, nn.Flatten(), nn.Sequential(nn.Linear(20, 6), nn.ReLU()), nn.Linear(6, 3))


class Residual(nn.Module):
    """A block with a forward of its own, batch statistics and a constant."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.register_buffer("mix", torch.tensor(0.5))

    def forward(self, x):
        return x + self.mix * F.relu(self.norm(self.conv(x)))


class Written(nn.Module):
    """What most people write: layers in __init__, functions on batch-first tensors in forward."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Residual(4))
        self.layers = nn.ModuleList([nn.Linear(36, 6), nn.Linear(36, 5)])
        self.again = [self.layers[0]]  # the same layer, where no module would look for it
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(11, 3)

    def forward(self, x):
        x = F.max_pool2d(self.features(x), 2)
        x = x.view(x.size(0), -1)
        both = torch.cat([torch.tanh(self.again[0](x)), self.layers[1](x)], dim=1)
        return self.out(self.drop(both))


def mixed():
    """A chain that holds a block of the user's own."""
    return nn.Sequential(Residual(2), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(147, 3))


TEMPLATES = {
    mlp: (6,),
    convnet: (2, 8, 8),
    conv1d: (2, 11),
    Written: (2, 8, 8),
    mixed: (2, 8, 8),
}
