"""A project of somebody else on mmengine alone, with classes that are called like focal_mm's."""

from typing import ClassVar

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset


@MODELS.register_module()
class FocalNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        return self.layer(x)


@MODELS.register_module()
class BiFPN(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(8, 1)

    def forward(self, x, y, mode='tensor'):
        out = self.head(self.backbone(x))[:, 0]
        if mode == 'loss':
            return dict(loss=(out - y).square().mean())
        return list(zip(out, y)) if mode == 'predict' else out


@DATASETS.register_module()
class Numbers(Dataset):
    metainfo: ClassVar = dict(classes=('sum',))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        x = torch.arange(4.0) + index + torch.rand(4)
        return dict(x=x, y=x.sum() / 10)


@METRICS.register_module()
class MeanError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float((out - y).abs()) for out, y in data_samples]

    def compute_metrics(self, results):
        return dict(error=sum(results) / len(results))


@HOOKS.register_module()
class Count(Hook):
    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['count'] = dict(iterations=runner.iter)
