"""Each case runs in a process of its own: the order of imports matters, and mmpretrain stays."""

import subprocess
import sys

import pytest

from focal_mm.config import CONFIGS

pytestmark = pytest.mark.stock

OURS = 'from focal_mm import additions; additions.register(); additions.register()'
THEIRS = 'import mmpretrain'


def run(*lines: str) -> str:
    result = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def printed() -> dict[str, list[str]]:
    """By the order of imports: the lines that a process has printed, of which one takes seconds."""
    swins = "print(*mmpretrain.list_models('swin*'))"
    both = "print(*mmpretrain.list_models('*focal*'))", swins
    imported = "import sys; print('mmpretrain.apis' in sys.modules)"
    return dict(
        before=run(OURS, imported, THEIRS, *both).splitlines(),
        after=run(THEIRS, swins, OURS, *both).splitlines(),
    )


@pytest.mark.parametrize('order', ['before', 'after'])
def test_mmpretrain_lists_our_classifiers_in_either_order(printed, order):
    *_, found, others = map(str.split, printed[order])
    configs = [path.stem for path in (CONFIGS / 'imagenet').glob('focal*.py')]
    assert found == sorted(n if n.endswith('_in22k') else f'{n}_in1k' for n in configs)
    without_ours = printed['after'][-3].split()
    assert others == without_ours and len(others) > 1


def test_importing_does_not_import_mmpretrains_apis(printed):
    assert printed['before'][-3] == 'False'


def test_model_by_name_with_published_weights(tmp_path):
    """From a synthetic file with the official names."""
    out = run(
        f'import os; os.environ["FOCAL_MM_WEIGHTS"] = {str(tmp_path)!r}',
        OURS,
        'import numpy as np, torch; from mmpretrain import get_model, inference_model',
        "state = get_model('mixformer_b1_in1k', pretrained=False).state_dict()",
        "state['head.fc.bias'][7] = 100",
        "names = {key: key.removeprefix('backbone.') for key in state}",
        "names |= {key: key.removeprefix('head.') for key in state if key.startswith('head.')}",
        "names |= {f'head.fc.{name}': f'head.{name}' for name in ('weight', 'bias')}",
        'published = {names[key]: value for key, value in state.items()}',
        f'torch.save(published, {str(tmp_path / "MixFormer_B1_pretrained.pth")!r})',
        'image = np.zeros((64, 64, 3), np.uint8)',
        "net = get_model('mixformer_b1_in1k', pretrained=True)",
        "results = [inference_model(m, image) for m in (net, 'mixformer_b1_in1k')]",
        "print('\\n', *(result['pred_class'] for result in results))",
    )
    assert out.splitlines()[-1].split() == ['cock', 'cock']
