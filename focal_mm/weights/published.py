"""The published checkpoints: their names, mirrors and figures."""

from dataclasses import dataclass, field, replace
from typing import Any

_GITHUB = 'https://github.com/microsoft/FocalNet/releases/download/'
_DETREX = 'https://github.com/IDEA-Research/detrex-storage/releases/download/'
_HUB = 'https://huggingface.co/'
_PADDLE_CLAS = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/'
_PADDLE_DET = 'https://bj.bcebos.com/v1/paddledet/models/'
# Microsoft's first home for the files. It no longer answers, and whoever registers its name next
# would serve files of their own.
_DEAD = 'https://projects4jw.blob.core.windows.net/'


@dataclass(frozen=True)
class Weights:
    """A published checkpoint.

    Attributes:
        name (str): The name after ``focal://``.
        file (str): The authors' file name; it is also looked for with ``.pth``, ``.safetensors``,
            ``.bin`` and ``.pdparams``.
        backbone (str): Type of the backbone that it fits.
        arch (str): Arch of that backbone.
        params (float or None): Parameters in millions, as the authors give them, or counted if
            they don't: of the ImageNet-1K classifier, or of the whole detector or segmentor. None:
            neither.
        kind (str): ``'classifier'``, ``'detector'`` or ``'segmentor'``.
        results (dict[str, float]): Figures in percent, as the authors give them: ``'top-1'`` on
            ImageNet-1K, ``'box AP'`` and ``'mask AP'`` on COCO, ``'mIoU'`` and ``'mIoU, scales'``
            (of several scales) on ADE20K.
        config (str or None): The config that evaluates the checkpoint whole, below ``configs/``,
            or trains it if it was never published.
        mirrors (tuple[str]): Addresses, in the order in which they are tried.
        dead (tuple[str]): Addresses that no longer answer. They are never opened. If there are
            neither mirrors nor these, the authors never published the file.
        sha256 (dict[str, str]): Published hashes of the files, by address.
        options (dict): Arguments of the backbone, beside ``arch``, with which the file was
            trained. Authors differ in ``normalize_modulator``, of which a file has no trace.
        input_size (int): Side of the training images in pixels.
        licence (str): Licence of the weights.
        refused (str): Why the checkpoint can't be loaded here. Default: it can.
    """

    name: str
    file: str
    backbone: str
    arch: str
    params: float | None
    kind: str = 'classifier'
    results: dict[str, float] = field(default_factory=dict)
    config: str | None = None
    mirrors: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    input_size: int = 224
    licence: str = 'MIT'
    refused: str = ''

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses in the order in which they are tried, with dead ones marked."""
        return (*self.mirrors, *(f'{url} (dead)' for url in self.dead))


# Hashes that the hubs publish: the Git LFS pointers of these files.
_SHA256 = {
    f'{_HUB}{path}': sha256
    for path, sha256 in {
        'microsoft/focalnet-tiny/resolve/main/pytorch_model.bin': (
            'e0581238c22e5861094b7878e5127d2598da9918de28266994a8869b5554b9a2'
        ),
        'microsoft/focalnet-tiny-lrf/resolve/main/pytorch_model.bin': (
            'e4e68629dac6e041e2ffbd0aa793f216cf18598871dfe480b14e5c3f26ba32b9'
        ),
        'microsoft/focalnet-small-lrf/resolve/main/pytorch_model.bin': (
            '31cfa22aaa28522461b279cd3714cf7c304646f70e81afc51451ba97cb1f5a4e'
        ),
        'microsoft/focalnet-base/resolve/main/pytorch_model.bin': (
            'b202c1a8c77a3d03b6a2e260d1c9d8db5cc0339ffacb047371e5876dda87fae8'
        ),
        'microsoft/focalnet-base-lrf/resolve/main/pytorch_model.bin': (
            '45ce2dac7afb6c349159fbb3149570cb17d4969c51c61ae8a578efadf716f30e'
        ),
        'microsoft/focalnet-large-lrf-fl4/resolve/main/focalnet_large_lrf_384_fl4.pth': (
            '4d14fe47c7d7138e911be356ff8170d316d2918af7c504c914c2f88ffb16465b'
        ),
        'spaces/jw2yang/focalnet-modulators/resolve/main/focalnet_base_iso_16.pth': (
            '4cac290e8d0b3383bd481f695811e32297d34e0a21fcd17af4ed0595456a840c'
        ),
        'timm/focalnet_tiny_srf.ms_in1k/resolve/main/model.safetensors': (
            'fc5ae22ca9759f171412c54b6a866c0ca704946c5a92a011638fa6d2a052ce62'
        ),
        'timm/focalnet_large_fl3.ms_in22k/resolve/main/model.safetensors': (
            '3e731b729667a199bc1dab6c6fc21da173f71a8f92b8ddba1fd9d5dfa06f87ce'
        ),
    }.items()
}


def _weights(*args: Any, **kwargs: Any) -> Weights:
    """Return an entry with the published hashes of its mirrors."""
    entry = Weights(*args, **kwargs)
    return replace(entry, sha256={u: _SHA256[u] for u in entry.mirrors if u in _SHA256})


def _focalnet(
    arch: str,
    params: float,
    config: str | None,
    top1: float | None = None,
    file: str | None = None,
    hub: str | None = None,
    ported: bool = True,
    github: bool = True,
    data: str = 'in1k',
    input_size: int = 224,
) -> Weights:
    """Return a classifier of microsoft/FocalNet.

    Args:
        hub (str, optional): Address of a copy at Hugging Face, after the host.
        ported (bool): Whether timm and PaddleDetection have it.
        github (bool): Whether it is a release at GitHub.
    """
    file = file or f'focalnet_{arch}.pth'
    mirrors = [f'{_GITHUB}v1.0.0/{file}'] if github else []
    if hub:
        mirrors.append(f'{_HUB}{hub}')
    if ported:
        mirrors += [
            f'{_HUB}timm/focalnet_{arch}.ms_{data}/resolve/main/model.safetensors',
            f'{_PADDLE_DET}pretrained/{file.removesuffix(".pth")}_pretrained.pdparams',
        ]
    return _weights(
        f'focalnet_{arch}_{data}',
        file,
        'FocalNet',
        arch,
        params,
        results={'top-1': top1} if top1 else {},
        config=config and f'imagenet/focalnet_{config}.py',
        mirrors=tuple(mirrors),
        dead=(f'{_DEAD}focalnet/release/classification/{file}',),
        input_size=input_size,
    )


def _microsoft(model: str) -> str:
    return f'microsoft/focalnet-{model}/resolve/main/pytorch_model.bin'


def _focal_transformer(arch: str, params: float, config: str, top1: float, file: str) -> Weights:
    return _weights(
        f'focal_{arch}_in1k',
        file,
        'FocalTransformer',
        arch,
        params,
        results={'top-1': top1},
        config=f'imagenet/focal_{config}.py',
        dead=(f'{_DEAD}model/focal-transformer/imagenet1k/{file}',),
    )


def _mixformer(arch: str, params: float, top1: float, published: bool = True) -> Weights:
    file = f'MixFormer_{arch.upper()}_pretrained.pdparams'
    return _weights(
        f'mixformer_{arch}_in1k',
        file,
        'MixFormer',
        arch,
        params,
        results={'top-1': top1},
        config=f'imagenet/mixformer_{arch}.py',
        mirrors=(_PADDLE_CLAS + file,) if published else (),
        licence='Apache-2.0',
    )


def _detector(
    method: str,
    arch: str,
    schedule: str,
    params: float,
    *aps: float,
    file: str,
    github: bool = False,
) -> Weights:
    """Return a detector of microsoft/FocalNet; ``aps`` are box and mask AP."""
    size, field_size = arch.split('_')
    suffix = '' if field_size == 'lrf' else '_srf'
    return _weights(
        f'{method}_focalnet_{arch}_{schedule}_coco',
        file,
        'FocalNet',
        arch,
        params,
        kind='detector',
        results=dict(zip(('box AP', 'mask AP'), aps, strict=False)),
        config=f'{method}/focalnet_{size[0]}{suffix}_{schedule}.py',
        mirrors=(f'{_GITHUB}v1.0.1/{file}',) if github else (),
        dead=(f'{_DEAD}focalnet/release/detection/{file}',),
        input_size=800,
    )


def _segmentor(arch: str, params: float, miou: float, scales: float) -> Weights:
    """Return a segmentor of microsoft/FocalNet."""
    file = f'focalnet_{arch}_upernet_160k.pth'
    size, field_size = arch.split('_')
    suffix = '' if field_size == 'lrf' else '_srf'
    return _weights(
        f'upernet_focalnet_{arch}_ade20k',
        file,
        'FocalNet',
        arch,
        params,
        kind='segmentor',
        results={'mIoU': miou, 'mIoU, scales': scales},
        config=f'upernet/focalnet_{size[0]}{suffix}.py',
        dead=(f'{_DEAD}focalnet/release/segmentation/{file}',),
        input_size=512,
    )


def _dino(
    name: str,
    arch: str,
    config: str,
    ap: float | None,
    address: str,
    dead: tuple[str, ...] = (),
    **options: bool,
) -> Weights:
    """Return a DINO with FocalNet-L, of detrex or of FocalNet-DINO."""
    return _weights(
        f'dino_focalnet_{arch}_{name}',
        address.rsplit('/', 1)[1],
        'FocalNet',
        arch,
        None,
        kind='detector',
        results={'box AP': ap} if ap else {},
        config=f'dino/focalnet_l_{config}.py',
        mirrors=(address,),
        dead=dead,
        options=options,
        input_size=800,
        licence='Apache-2.0',
    )


def _foreign(name: str, arch: str, ap: float, address: str, detector: str) -> Weights:
    """Return a detector that mmdet does not have."""
    return _weights(
        name,
        address.rsplit('/', 1)[1],
        'FocalNet',
        arch,
        None,
        kind='detector',
        results={'box AP': ap},
        mirrors=(address,),
        input_size=640,
        licence='Apache-2.0',
        refused=f'a {detector} of PaddleDetection, another detector than any in mmdet; '
        'PaddleDetection runs it',
    )


_CLASSIFIERS = (
    _focalnet('tiny_srf', 28.4, 't_srf', 82.1, hub=_microsoft('tiny')),
    _focalnet('tiny_lrf', 28.6, 't', 82.3, hub=_microsoft('tiny-lrf')),
    _focalnet('small_srf', 49.9, 's_srf', 83.4, hub=_microsoft('small')),
    _focalnet('small_lrf', 50.3, 's', 83.5, hub=_microsoft('small-lrf')),
    _focalnet('base_srf', 88.1, 'b_srf', 83.7, hub=_microsoft('base')),
    _focalnet('base_lrf', 88.7, 'b', 83.9, hub=_microsoft('base-lrf')),
    _focalnet('tiny_iso', 5.9, 't16', 74.1, 'focalnet_tiny_iso_16.pth', ported=False, github=False),
    _focalnet(
        'small_iso', 22.4, 's16', 80.9, 'focalnet_small_iso_16.pth', ported=False, github=False
    ),
    _focalnet(
        'base_iso',
        87.2,
        'b16',
        82.4,
        'focalnet_base_iso_16.pth',
        hub='spaces/jw2yang/focalnet-modulators/resolve/main/focalnet_base_iso_16.pth',
        ported=False,
        github=False,
    ),
    *(
        _focalnet(
            arch,
            params,
            config and f'{config}_in22k',
            file=f'focalnet_{file}.pth',
            hub=hub,
            github=not arch.startswith('huge'),
            data='in22k',
            input_size=int(file.split('_')[2]),
        )
        for arch, params, config, file, hub in (
            ('large_fl3', 207, 'l_fl3', 'large_lrf_384', None),
            (
                'large_fl4',
                207,
                'l_fl4',
                'large_lrf_384_fl4',
                'microsoft/focalnet-large-lrf-fl4/resolve/main/focalnet_large_lrf_384_fl4.pth',
            ),
            ('xlarge_fl3', 366, 'xl_fl3', 'xlarge_lrf_384', None),
            ('xlarge_fl4', 366, 'xl_fl4', 'xlarge_lrf_384_fl4', None),
            ('huge_fl3', 687, 'h_fl3', 'huge_lrf_224', None),
            ('huge_fl4', 689, None, 'huge_lrf_224_fl4', None),  # a backbone without its head
        )
    ),
    # Networks of Table 4 and networks like those of Table 3, whose weights are not published.
    *(
        _weights(
            f'focalnet_{arch}_{data}',
            f'focalnet_{arch}_{data}.pth',
            'FocalNet',
            arch,
            params,
            config=config,
        )
        for arch, data, params, config in (
            ('base_srf', 'in22k', 88.1, 'imagenet/focalnet_b_srf_in22k.py'),
            ('large_srf', 'in22k', 197.1, 'imagenet/focalnet_l_srf_in22k.py'),
            ('tiny_lrf_deep', 'in1k', 25.5, None),
            ('small_lrf_deep', 'in1k', 38.7, None),
            ('base_lrf_deep', 'in1k', 85.8, None),
        )
    ),
    # The largest network of the paper, whose weights are not published.
    _weights(
        'focal_large_in22k',
        'focal_large_in22k.pth',
        'FocalTransformer',
        'large',
        199.6,
        config='imagenet/focal_l_in22k.py',
    ),
    _focal_transformer('tiny', 28.9, 't', 82.2, 'focal-tiny-is224-ws7.pth'),
    _focal_transformer('small', 51.1, 's', 83.6, 'focal-small-is224-ws7.pth'),
    _focal_transformer('base', 89.8, 'b', 84.0, 'focal-base-is224-ws7.pth'),
    _focal_transformer('tiny_conv', 30.8, 't_conv', 82.7, 'focal-tiny-useconv-is224-ws7.pth'),
    _focal_transformer('small_conv', 53.1, 's_conv', 83.8, 'focal-small-useconv-is224-ws7.pth'),
    _focal_transformer('base_conv', 93.3, 'b_conv', 84.2, 'focal-base-useconv-is224-ws7.pth'),
    _focal_transformer('fast_tiny', 30.2, 'fast_t', 82.4, 'focalv2-tiny-useconv-is224-ws7.pth'),
    _focal_transformer('fast_small', 51.5, 'fast_s', 83.6, 'focalv2-small-useconv-is224-ws7.pth'),
    _focal_transformer('fast_base', 91.2, 'fast_b', 84.0, 'focalv2-base-useconv-is224-ws7.pth'),
    # PaddleClas gives accuracies of B0 and B5, but no files.
    _mixformer('b0', 5.1, 76.5, published=False),
    _mixformer('b1', 8, 78.9),
    _mixformer('b2', 10, 80.0),
    _mixformer('b3', 17, 81.7),
    _mixformer('b4', 35, 83.0),
    _mixformer('b5', 61.7, 83.5, published=False),
    _mixformer('b6', 119.5, 83.8),
)

_DETECTORS = (
    *(
        _detector(
            'mask_rcnn',
            arch,
            schedule,
            params,
            *aps,
            file=f'focalnet_{arch}_maskrcnn_{schedule}.pth',
        )
        for arch, params, once, three_times in (
            ('tiny_srf', 48.6, (45.9, 41.3), (47.6, 42.6)),
            ('tiny_lrf', 48.8, (46.1, 41.5), (48.0, 42.9)),
            ('small_srf', 70.8, (48.0, 42.7), (48.9, 43.6)),
            ('small_lrf', 72.3, (48.3, 43.1), (49.3, 43.8)),
            ('base_srf', 109.4, (48.8, 43.3), (49.6, 44.1)),
            ('base_lrf', 111.4, (49.0, 43.5), (49.8, 44.1)),
        )
        for schedule, aps in (('1x', once), ('3x', three_times))
    ),
    _detector(
        'cascade', 'tiny_lrf', '3x', 87.1, 51.5, file='focalnet_tiny_lrf_cascade_maskrcnn_3x.pth'
    ),
    _detector('atss', 'tiny_lrf', '3x', 37.2, 49.6, file='focalnet_tiny_lrf_atss_3x.pth'),
    _detector(
        'sparse_rcnn',
        'tiny_lrf',
        '3x',
        111.2,
        49.9,
        file='focalnet_tiny_lrf_sparsercnn_3x.pth',
        github=True,
    ),
    _dino(
        '4scale_12e_coco',
        'large_fl3',
        '4scale_12e',
        57.5,
        f'{_DETREX}v0.2.1/dino_focal_large_lrf_384_4scale_12ep.pth',
    ),
    _dino(
        '4scale_12e_coco',
        'large_fl4',
        'fl4_4scale_12e',
        58.0,
        f'{_DETREX}v0.2.1/dino_focal_large_lrf_384_fl4_4scale_12ep.pth',
        normalize_modulator=False,
    ),
    _dino(
        '5scale_12e_coco',
        'large_fl4',
        'fl4_5scale_12e',
        58.5,
        f'{_DETREX}v0.2.1/dino_focalnet_large_lrf_384_fl4_5scale_12ep.pth',
        normalize_modulator=False,
    ),
    _dino(
        '4scale_36e_coco',
        'large_fl3',
        'fl3_4scale_36e',
        58.3,
        f'{_DETREX}v0.4.0/dino_focal_large_3level_4scale_36ep.pth',
    ),
    *(
        _dino(
            f'5scale_{data}',
            'large_fl4',
            f'fl4_{data}',
            ap,
            f'{_HUB}microsoft/focalnet-large-fl4-dino-{repository}/resolve/main/{file}',
            dead=(f'{_DEAD}focalnet/release/detection/{file}',),
            normalize_modulator=True,
        )
        for data, ap, repository, file in (
            ('o365', None, 'o365', 'focalnet_large_fl4_pretrained_on_o365.pth'),
            ('o365_coco', 63.5, 'o365-cocoft', 'focalnet_large_fl4_o365_finetuned_on_coco.pth'),
        )
    ),
    _foreign(
        'ppyoloe_plus_focalnet_tiny_lrf_36e_coco',
        'tiny_lrf',
        46.6,
        'https://paddledet.bj.bcebos.com/models/ppyoloe_plus_focalnet_tiny_36e_coco.pdparams',
        'PP-YOLOE+',
    ),
    _foreign(
        'rtdetr_focalnet_large_fl4_3x_coco',
        'large_fl4',
        56.9,
        f'{_PADDLE_DET}rtdetr_focalnet_L_384_3x_coco.pdparams',
        'RT-DETR',
    ),
)

_SEGMENTORS = (
    _segmentor('tiny_srf', 61, 46.5, 47.2),
    _segmentor('tiny_lrf', 61, 46.8, 47.8),
    _segmentor('small_srf', 83, 49.3, 50.1),
    _segmentor('small_lrf', 84, 49.1, 50.1),
    _segmentor('base_srf', 124, 50.2, 51.1),
    _segmentor('base_lrf', 126, 50.5, 51.4),
)

# Names, parameters and figures: README of microsoft/FocalNet and paper, Tables 1 and 13; README of
# microsoft/Focal-Transformer; MixFormer's paper, Table 3, and PaddleClas; detrex's model zoo;
# README of FocalNet-DINO; PaddleDetection's model zoo.
ZOO: dict[str, Weights] = {
    entry.name: entry for entry in (*_CLASSIFIERS, *_DETECTORS, *_SEGMENTORS)
}
