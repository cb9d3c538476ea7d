"""The papers' pictures for any network and photograph: as arrays, as sheets and as a page.

The functions take a backbone, or a classifier, detector or segmentor with one in it; docs/look.md
shows what they return.
"""

from .activation import ClassActivation, class_activation
from .maps import (
    Attention,
    attention,
    biases,
    channel_weights,
    contexts,
    gates,
    kernels,
    modulators,
    norms,
    receptive_fields,
    rim,
    spatial_weights,
    windows,
)
from .page import write_page
from .samples import Sample, prepare
from .sheets import draw_block, draw_overview, write_sheet
from .surveys import Survey, survey

__all__ = [
    'Attention',
    'ClassActivation',
    'Sample',
    'Survey',
    'attention',
    'biases',
    'channel_weights',
    'class_activation',
    'contexts',
    'draw_block',
    'draw_overview',
    'gates',
    'kernels',
    'modulators',
    'norms',
    'prepare',
    'receptive_fields',
    'rim',
    'spatial_weights',
    'survey',
    'windows',
    'write_page',
    'write_sheet',
]
