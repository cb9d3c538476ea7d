"""Models of mmdet 2 and mmseg 0, and the backbones of the official FocalNet and Swin code."""

import os.path
from typing import Any
from urllib.parse import urlparse

from ...backbones.arguments import ELSEWHERE, RENAMED
from ...backbones.focalnet import FocalNet
from ...weights.published import ZOO
from .report import Report

_COSTS = ('cls_cost', 'reg_cost', 'mask_cost', 'dice_cost', 'iou_cost')
_RENAMED_TYPES = dict(
    RPDQualityFocalLoss='QualityFocalLoss',
    RPDGIoULoss='GIoULoss',
    SEPFocalLoss='focal_mm.SeparateFocalLoss',
    MaskHungarianAssigner='HungarianAssigner',
)
# What the official detection and segmentation code does where a config says nothing.
_FOCALNET_DEFAULTS = dict(
    embed_dim=96,
    depths=(2, 2, 6, 2),
    drop_path_rate=0.2,
    focal_levels=(2, 2, 2, 2),
    focal_windows=(9, 9, 9, 9),
    use_conv_embed=False,
    use_layerscale=False,
)
_SWIN_RENAMED = dict(
    embed_dim='embed_dims',
    in_chans='in_channels',
    ape='use_abs_pos_embed',
    use_checkpoint='with_cp',
)
# Arguments that ELSEWHERE says to leave out, with the value that loses nothing.
_WITHOUT_EFFECT = dict(patch_norm=True, ape=False, pad_small_map=True, qk_scale=None)
_FAMILIES = ('FocalNet', 'FocalTransformer', 'MixFormer')
_HEADS = ('bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')


def translate_model(
    old: dict[str, Any], preprocessor: dict[str, Any], report: Report
) -> dict[str, Any]:
    """Return a model in the words of mmdet 3 and mmseg 1.

    Args:
        old (dict): The old model, with its ``train_cfg`` and ``test_cfg``.
        preprocessor (dict): The data preprocessor that the pipelines ask for.
        report (Report): What is not understood is added.
    """
    own = old.get('data_preprocessor')  # of a base that is in the new words
    model: dict[str, Any] = dict(type=old['type'])
    model['data_preprocessor'] = preprocessor if 'mean' in preprocessor or not own else own
    pretrained = old.get('pretrained')
    for key, value in old.items():
        if key in ('type', 'data_preprocessor', 'pretrained'):
            continue
        if key == 'backbone':
            value = _backbone(value, pretrained, report)
        else:
            value = _translate(value, f'model.{key}', report)
        model[key] = value
    return model


def _translate(node: Any, path: str, report: Report) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(_translate(v, f'{path}[{i}]', report) for i, v in enumerate(node))
    if not isinstance(node, dict):
        return node
    node = {key: _translate(value, f'{path}.{key}', report) for key, value in node.items()}
    kind = node.get('type')
    if kind in _RENAMED_TYPES:
        node['type'] = _RENAMED_TYPES[kind]
    if any(cost in node for cost in _COSTS):
        costs = [node.pop(cost) for cost in _COSTS if cost in node]
        node['match_costs'] = [cost for cost in costs if cost]
    if kind == 'FPN' and node.pop('extra_convs_on_inputs', None):
        node['add_extra_convs'] = 'on_input'
    _translate_nms(node, path, report)
    return node


def _translate_nms(node: dict[str, Any], path: str, report: Report) -> None:
    """Put what mmdet 2 calls proposals and suppression into today's words, in place."""
    if node.pop('nms_across_levels', False):
        report.leave_out(path, dict(nms_across_levels=True))  # now always level by level
    if 'max_num' in node:
        node.setdefault('max_per_img', node.pop('max_num'))
    if 'nms_thr' in node:
        node.setdefault('nms', dict(type='nms', iou_threshold=node.pop('nms_thr')))
    if 'nms_post' in node:  # now the proposals are cut once, by max_per_img
        node.setdefault('max_per_img', node.pop('nms_post'))
        node.pop('nms_post', None)
    nms = node.get('nms')
    if isinstance(nms, dict) and 'iou_thr' in nms:
        nms['iou_threshold'] = nms.pop('iou_thr')


def _backbone(old: dict[str, Any], pretrained: Any, report: Report) -> dict[str, Any]:
    node = dict(old)
    pretrained = node.pop('pretrained', None) or pretrained
    kind = node.get('type', '')
    if kind in _FAMILIES:
        return _family(kind, node, pretrained, report)
    if kind == 'SwinTransformer':
        swin = 'embed_dim' in node or 'ape' in node or 'use_checkpoint' in node
        for key, name in _SWIN_RENAMED.items():
            if key in node:
                node[name] = node.pop(key)
        if swin and pretrained and 'convert_weights' not in node:
            node['convert_weights'] = True  # the official checkpoint has other names than mmdet's
    if pretrained:
        node['init_cfg'] = dict(type='Pretrained', checkpoint=pretrained)
    return node


def _family(kind: str, old: dict[str, Any], pretrained: Any, report: Report) -> dict[str, Any]:
    """Return one of our backbones, by the name of its arch where one fits."""
    if kind == 'FocalNet' and 'arch' not in old:
        old = {**_FOCALNET_DEFAULTS, **old}
        scale = old.pop('layerscale_value', 1e-4)
        old['layer_scale_init_value'] = scale if old.pop('use_layerscale') else None
    node: dict[str, Any] = {}
    for key, value in old.items():
        key = RENAMED.get(key, key)
        if key in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[key]:
            continue
        if key in ('pretrain_img_size', 'img_size', 'input_size', 'image_size'):
            continue
        if key == 'out_indices' and [*value] == [*range(len(old.get('depths', range(4))))]:
            continue
        if key in ELSEWHERE:
            report.leave_out('model.backbone', {key: value})
        else:
            node[key] = _one_for_all(value) if key != 'out_indices' else tuple(value)
    if kind == 'FocalNet' and 'arch' not in node:
        node = _name_arch(node)
    if pretrained:
        node['init_cfg'] = dict(type='Pretrained', checkpoint=_checkpoint(pretrained, report))
    elif 'init_cfg' not in node:
        weights = f'{kind.lower()}_{node.get("arch")}_in1k'
        if weights in ZOO:
            node['init_cfg'] = dict(type='Pretrained', checkpoint=f'focal://{weights}')
            report.change(
                'model.backbone.init_cfg: the old file leaves model.pretrained to the command '
                f'line; training starts from the published weights, focal://{weights}'
            )
    return node


def _one_for_all(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value[0] if len({*map(str, value)}) == 1 and len(value) > 1 else tuple(value)
    return value


def _name_arch(node: dict[str, Any]) -> dict[str, Any]:
    """Give the sizes of a FocalNet by the arch that shares most of them."""
    sizes = {
        name: {key: _one_for_all(value) for key, value in arch.items()}
        for name, arch in FocalNet.archs.items()
    }
    main = ('embed_dims', 'depths', 'focal_levels')
    fitting = [name for name, arch in sizes.items() if all(node[key] == arch[key] for key in main)]
    if not fitting:
        return dict(node, type='FocalNet', arch=None)
    given = {key: value for key, value in node.items() if key not in main}

    def differing(name: str) -> dict[str, Any]:
        return {k: v for k, v in given.items() if k not in sizes[name] or v != sizes[name][k]}

    arch = min(fitting, key=lambda name: len(differing(name)))
    own = differing(arch)
    own.pop('type')
    return dict(type='FocalNet', arch=arch, **own)


def _checkpoint(pretrained: str, report: Report) -> str:
    """Return ``focal://NAME`` for a published file that is not there, else the path as it is."""
    name = os.path.basename(urlparse(pretrained).path)
    if os.path.isfile(os.path.expanduser(pretrained)):
        return pretrained
    for weights in ZOO.values():
        files = {
            weights.file,
            *(os.path.basename(url) for url in (*weights.mirrors, *weights.dead)),
        }
        if weights.kind == 'classifier' and name in files:
            report.change(f'model.backbone.init_cfg: {pretrained} is focal://{weights.name}')
            return f'focal://{weights.name}'
    return pretrained


def heads_with_classes(model: Any, path: str = 'model') -> list[tuple[str, dict[str, Any]]]:
    """List the heads of a model that have ``num_classes``, except for a class-agnostic RPN.

    Returns:
        list[tuple[str, dict]]: Key and settings of each.
    """
    found = []
    children: Any = ()
    if isinstance(model, dict):
        if 'num_classes' in model and any(head in path for head in _HEADS):
            found.append((path, model))
        children = [
            (f'{path}.{k}', v)
            for k, v in model.items()
            if k not in ('rpn_head', 'semantic_head', 'backbone')
        ]
    elif isinstance(model, (list, tuple)):
        children = [(f'{path}[{i}]', value) for i, value in enumerate(model)]
    for name, child in children:
        found += heads_with_classes(child, name)
    return found
