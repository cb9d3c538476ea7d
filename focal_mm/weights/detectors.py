"""Key maps of whole detectors: detrex's and FocalNet-DINO's names to those of mmdet's DINO.

mmdet 2 and 3 give the parts of a detector the same names, and so do mmseg 0 and 1 with a
segmentor: the detectors and segmentors of microsoft/FocalNet need no map.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .loading import CheckpointError

# Category ids of COCO's 80 classes; the others of 1 to 90 are not annotated.
_COCO_IDS = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# FocalNet-DINO has a row for every category id up to the largest, 0 included. mmdet numbers the
# classes that exist, in the order of their ids.
_ROWS = {91: _COCO_IDS, 366: range(1, 366)}

# Pattern and replacement; the first pattern that matches is applied. An empty replacement of a
# whole name leaves a tensor out that the file has under another name, too.
_Rule = tuple[str, str | Callable[[re.Match], str]]
_HEADS: tuple[_Rule, ...] = (
    (r'^transformer\.decoder\.(?:class|bbox)_embed\..*', ''),
    (r'^class_embed\.', 'bbox_head.cls_branches.'),
    (
        r'^bbox_embed\.(\d+)\.layers\.(\d+)\.',
        lambda m: f'bbox_head.reg_branches.{m[1]}.{2 * int(m[2])}.',
    ),
    (r'^label_enc\.', 'dn_query_generator.label_embedding.'),
    (r'^transformer\.level_embeds?$', 'level_embed'),
    (r'^transformer\.tgt_embed\.', 'query_embedding.'),
    (r'^transformer\.enc_output\.', 'memory_trans_fc.'),
    (r'^transformer\.enc_output_norm\.', 'memory_trans_norm.'),
)
_DETREX: tuple[_Rule, ...] = (
    *_HEADS,
    (r'^(neck\.(?:extra_)?convs\.\d+)\.norm\.', r'\1.gn.'),
    (r'^transformer\.((?:en|de)coder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^transformer\.(decoder\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
    (r'^transformer\.((?:en|de)coder\.layers\.\d+)\.ffns\.0\.', r'\1.ffn.'),
    (r'^transformer\.((?:en|de)coder)\.', r'\1.'),
)
# Its norms have the numbers of the residual branches in the order of the code, which runs self
# attention, the second branch of the decoder, before cross attention.
_DECODER_NORMS = {'1': '1', '2': '0', '3': '2'}
_FOCALNET_DINO: tuple[_Rule, ...] = (
    *_HEADS,
    (r'^backbone\.0\.', 'backbone.'),
    (r'^transformer\.(decoder\.layers\.\d+\.self_attn)\.', r'\1.attn.'),
    (r'^transformer\.((?:en|de)coder\.layers\.\d+)\.linear1\.', r'\1.ffn.layers.0.0.'),
    (r'^transformer\.((?:en|de)coder\.layers\.\d+)\.linear2\.', r'\1.ffn.layers.1.'),
    (
        r'^transformer\.(encoder\.layers\.\d+)\.norm([12])\.',
        lambda m: f'{m[1]}.norms.{int(m[2]) - 1}.',
    ),
    (
        r'^transformer\.(decoder\.layers\.\d+)\.norm([123])\.',
        lambda m: f'{m[1]}.norms.{_DECODER_NORMS[m[2]]}.',
    ),
    (r'^transformer\.((?:en|de)coder)\.', r'\1.'),
)

# Of each map of the backbone one, with a 1x1 kernel, then those that step down, with 3x3 kernels.
_PROJECTION = re.compile(r'input_proj\.\d+\.0\.weight$')


def _rename(state_dict: dict[str, Tensor], rules: Sequence[_Rule]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in rules:
            name, count = re.subn(pattern, replacement, key)
            if count:
                key = name
                break
        if key:
            renamed[key] = value
    return renamed


def _select_classes(state_dict: dict[str, Tensor]) -> None:
    """Reduce, in place, the classifiers and the label embedding of a DINO with mmdet's names to
    the classes that mmdet has.

    Raises:
        CheckpointError: If the label embedding has fewer rows than there are classes.
    """
    embedding = 'dn_query_generator.label_embedding.weight'
    classifiers = [key for key in state_dict if key.startswith('bbox_head.cls_branches.')]
    count = len(state_dict[classifiers[0]])
    rows = list(_ROWS.get(count, range(count)))
    if len(state_dict[embedding]) <= rows[-1]:
        raise CheckpointError(
            f'label_enc.weight has {len(state_dict[embedding])} rows for {count} classes; this is '
            'no whole DINO'
        )
    for key in (*classifiers, embedding):
        state_dict[key] = state_dict[key][rows]


def from_detrex(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of detrex's DINO to the names of mmdet's."""
    renamed = _rename(state_dict, _DETREX)
    _select_classes(renamed)
    return renamed


def from_focalnet_dino(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of FocalNet-DINO to the names of mmdet's DINO.

    Of classifiers with 91 rows, COCO's category ids from 0 to 90, the 80 of mmdet remain; of 366,
    those of Objects365, the 365 from 1 on. The label embedding of denoising is cut alike.
    """
    layers = len([key for key in state_dict if re.fullmatch(r'class_embed\.\d+\.bias', key)])
    outputs = len(
        [
            key
            for key in state_dict
            if _PROJECTION.match(key) and state_dict[key].shape[2:] == (1, 1)
        ]
    )

    def neck(match: re.Match) -> str:
        index, part = int(match[1]), ('conv', 'gn')[int(match[2])]
        if index < outputs:
            return f'neck.convs.{index}.{part}.'
        return f'neck.extra_convs.{index - outputs}.{part}.'

    heads: tuple[_Rule, ...] = (
        (r'^transformer\.enc_out_class_embed\.', f'class_embed.{layers}.'),
        (r'^transformer\.enc_out_bbox_embed\.', f'bbox_embed.{layers}.'),
        (r'^input_proj\.(\d+)\.([01])\.', neck),
    )
    renamed = _rename(_rename(state_dict, heads), _FOCALNET_DINO)
    _select_classes(renamed)
    return renamed


def _refuse(detector: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:

    def refuse(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        raise CheckpointError(
            f'{detector} of PaddleDetection, another detector than any in mmdet: run it there, or '
            'take the FocalNet that it started from'
        )

    return refuse


class Origin(NamedTuple):
    """Layout of another author's detector.

    Attributes:
        marks (tuple[str]): Names by which its state dict is recognized, all of them.
        convert (Callable): Renames a state dict to mmdet's names, or raises a CheckpointError
            for a detector that mmdet does not have.
    """

    marks: tuple[str, ...]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]


_BACKBONE = 'layers.0.blocks.0.modulation.f.weight'
ORIGINS = {
    'detrex DINO': Origin(
        (
            f'backbone.{_BACKBONE}',
            'transformer.decoder.layers.0.attentions.0.attn.in_proj_weight',
            'class_embed.0.weight',
            'label_enc.weight',
        ),
        from_detrex,
    ),
    'FocalNet-DINO': Origin(
        (
            f'backbone.0.{_BACKBONE}',
            'transformer.decoder.layers.0.self_attn.in_proj_weight',
            'transformer.enc_out_class_embed.weight',
            'label_enc.weight',
        ),
        from_focalnet_dino,
    ),
    'PP-YOLOE+': Origin(
        (f'backbone.{_BACKBONE}', 'yolo_head.pred_cls.0.weight'),
        _refuse('PP-YOLOE+'),
    ),
    'RT-DETR or DINO': Origin(
        (f'backbone.{_BACKBONE}', 'transformer.enc_score_head.weight'),
        _refuse('RT-DETR or DINO'),
    ),
}


def identify_detector(names: set[str]) -> str | None:
    """Return the key of :data:`ORIGINS` for the names of a state dict, or None."""
    return next((key for key, value in ORIGINS.items() if names.issuperset(value.marks)), None)
