"""Arguments of the families: names of archs, values a stage, and names of other implementations."""

import inspect
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

# Arguments of other implementations (the authors' own, mmdet 2, mmpretrain, timm, Hugging Face,
# PaddleClas) and the argument here that has their meaning.
RENAMED = dict(
    act_layer='act_cfg',
    attn_drop='attn_drop_rate',
    attention_probs_dropout_prob='attn_drop_rate',
    channels='embed_dims',
    drop_path='drop_path_rate',
    embed_dim='embed_dims',
    focal_factors='focal_factor',
    focal_level='focal_levels',
    focal_topK='focal_topk',
    focal_window='focal_windows',
    hidden_act='act_cfg',
    hidden_dropout_prob='drop_rate',
    in_chans='in_channels',
    layerscale_value='layer_scale_init_value',
    norm_layer='norm_cfg',
    num_channels='in_channels',
    out_features='out_indices',
    proj_drop_rate='drop_rate',
    stem_patch_size='patch_size',
    use_checkpoint='with_cp',
    use_conv='use_conv_embed',
    use_convs='use_conv_embed',
    use_overlap_down='use_conv_embed',
    use_post_layernorm='use_postln',
    use_post_layernorm_in_modulation='use_postln_in_modulation',
    use_post_norm='use_postln',
    use_post_norm_in_modulation='use_postln_in_modulation',
    window_sizes='window_size',
)
_NO_POSITIONS = 'there is no absolute position embedding; leave it out'
_OF_THE_HEAD = 'it belongs to the head; leave it out'
_ANY_SIZE = 'images may have any size; leave it out'
# Arguments of other implementations that need more than another name.
ELSEWHERE = dict(
    ape=_NO_POSITIONS,
    class_num=_OF_THE_HEAD,
    convert_weights='checkpoints of every origin are recognised and converted; leave it out',
    expand_layer='every block has the surroundings of its stage; leave it out',
    expand_stages='give expand_sizes for each stage, 0 for those without',
    focal_stages='give focal_levels for each stage, 1 for those without pooled maps',
    gap_before_final_norm=_OF_THE_HEAD,
    global_pool=_OF_THE_HEAD,
    head_hidden_size=_OF_THE_HEAD,
    head_init_scale=_OF_THE_HEAD,
    hidden_sizes='give embed_dims, the channels of the first stage',
    image_size=_ANY_SIZE,
    img_size=_ANY_SIZE,
    initializer_range="give init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02)",
    input_size=_ANY_SIZE,
    layer_norm_eps="give norm_cfg=dict(type='LN', eps=1e-5)",
    num_classes=_OF_THE_HEAD,
    pad_small_map='every map is padded to whole windows; leave it out',
    patch_norm='patches always have a norm; leave it out',
    pretrain_img_size=_ANY_SIZE,
    pretrained="give init_cfg=dict(type='Pretrained', checkpoint=...)",
    qk_scale='scores are scaled by head_dim ** -0.5; leave it out',
    use_abs_pos_embed=_NO_POSITIONS,
    use_absolute_embeddings=_NO_POSITIONS,
    use_layerscale='give layer_scale_init_value=1e-4, or None for no scale',
)


def refuse_arguments(family: type, given: dict[str, Any]) -> None:
    """Refuse arguments that a family does not have.

    Args:
        family (type): The backbone.
        given (dict): Further arguments by name; nothing happens if there are none.

    Raises:
        TypeError: With, for each argument, its name here, the reason why there is none, or similar
            names.
    """
    known = [name for name in inspect.signature(family).parameters if name != 'others']
    reasons = []
    for name in given:
        near = get_close_matches(name, known, n=3, cutoff=0.6)
        if RENAMED.get(name) in known:
            reason = f'it is called {RENAMED[name]} here'
        elif name in ELSEWHERE:
            reason = ELSEWHERE[name]
        else:
            hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
            reason = f'{hint}Known: {", ".join(known)}'
        reasons.append(f'no argument {name!r}: {reason}')
    if reasons:
        raise TypeError(f'{family.__name__}: {"; ".join(reasons)}')


def resolve_arch(
    family: str, archs: dict[str, dict], arch: str | dict | None, **given: Any
) -> dict[str, Any]:
    """Return the settings of an arch, overridden by the settings given beside it.

    Args:
        family (str): Name of the backbone, for the errors.
        archs (dict): Name to settings. Every arch has the same keys.
        arch (str, dict or None): A name, in any case and with ``-`` or ``_``, or the settings
            themselves. Settings that a dict lacks come from the first arch, except ``embed_dims``
            and ``depths``, which are required. None: an empty dict.
        given: Settings that override the arch's; None leaves the arch's own.

    Returns:
        dict: Settings.

    Raises:
        ValueError: For an unknown name (similar names are listed), an unknown setting, or a
            missing one.
    """
    first = next(iter(archs.values()))
    if isinstance(arch, str):
        name = arch.lower().replace('-', '_')
        if name not in archs:
            near = get_close_matches(name, archs, n=3, cutoff=0.5)
            hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
            raise ValueError(f'{family}: unknown arch {arch!r}; {hint}Known: {", ".join(archs)}')
        arch = archs[name]
    if not isinstance(arch, dict | None):
        raise ValueError(f'{family}: arch={arch!r}; give a name, or a dict of the sizes')
    arch = arch or {}
    for key in arch:
        if key not in first:
            raise ValueError(f'{family}: unknown key {key!r} in arch; known: {", ".join(first)}')
    for key in ('embed_dims', 'depths'):
        if key not in arch and given.get(key) is None:
            raise ValueError(f'{family}: arch lacks {key!r}; known keys: {", ".join(first)}')
    settings = {**first, **arch}
    settings.update((key, value) for key, value in given.items() if value is not None)
    if isinstance(settings['depths'], int):
        own = {**first, **arch}['depths']
        settings['depths'] = (settings['depths'],) * (4 if isinstance(own, int) else len(own))
    depths = settings['depths'] = tuple(settings['depths'])
    if not depths or not all(isinstance(depth, int) and depth >= 0 for depth in depths):
        raise ValueError(f'{family}: depths={depths}; give the number of blocks of each stage')
    return settings


def per_stage(family: str, name: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Return one value for each stage; an int is repeated for all stages.

    Raises:
        ValueError: If there are more or fewer values than stages.
    """
    if isinstance(value, int):
        return (value,) * stages
    if not isinstance(value, Sequence) or not all(isinstance(v, int) for v in value):
        raise ValueError(f'{family}: {name}={value!r}; give {stages} ints, or one int for all')
    if len(value) != stages:
        raise ValueError(
            f'{family}: {name}={tuple(value)} has {len(value)} values for {stages} stages; '
            f'give {stages} values, or one int for all'
        )
    return tuple(value)


def check_sizes(family: str, **sizes: Any) -> None:
    """Check sizes that are one int for the whole network.

    Raises:
        ValueError: If one is another type, or below 1.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{family}: {name}={value!r}; give one int, 1 or more')


def window_sides(family: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Return the side of a window for each stage; an int is repeated for all stages.

    Raises:
        ValueError: If there are more or fewer values than stages, or one is below 1.
    """
    sides = per_stage(family, 'window_size', value, stages)
    if min(sides) < 1:
        raise ValueError(f'{family}: window_size={value!r}; give sides of 1 token or more')
    return sides


def drop_path_rates(family: str, rate: float, depths: Sequence[int]) -> Iterator[float]:
    """Return the rate of stochastic depth of each block: from 0 at the first, growing linearly.

    Args:
        family (str): Name of the backbone, for the errors.
        rate (float): Rate of the last block.
        depths (Sequence[int]): Blocks of each stage.

    Raises:
        ValueError: If the rate is not between 0 and 1.
    """
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(
            f'{family}: drop_path_rate={rate!r}; give the rate of the last block, from 0 to below 1'
        )
    return iter(np.linspace(0, rate, sum(depths)).tolist())


def stage_indices(
    family: str, out_indices: int | Sequence[int] | None, stages: int
) -> tuple[int, ...]:
    """Return the stages whose maps are returned: each once, from the first to the last, as in
    mmpretrain.

    Args:
        family (str): Name of the backbone, for the errors.
        out_indices (int, Sequence[int] or None): Stages in any order, also repeated; negative ones
            count from the last. None: all.
        stages (int): Number of stages.

    Raises:
        ValueError: If a stage is not there, or none is named.
    """
    if out_indices is None:
        return tuple(range(stages))
    given = (out_indices,) if isinstance(out_indices, int) else out_indices
    if (
        not isinstance(given, Sequence)
        or not given
        or not all(isinstance(i, int) and -stages <= i < stages for i in given)
    ):
        raise ValueError(
            f'{family}: out_indices={out_indices!r} for {stages} stages; choose from 0 to '
            f'{stages - 1}, or from -{stages} to -1'
        )
    return tuple(sorted({i % stages for i in given}))
