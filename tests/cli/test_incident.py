import json

import pytest
import torch

pytestmark = pytest.mark.stock


@pytest.fixture
def incident(tmp_path):
    """A file as NonFiniteHook writes it."""
    content = dict(
        iter=8,
        epoch=1,
        seed=3,
        cause='loss is nan',
        module='the output of neck',
        modules=[
            *((f'the output of {i}', float(i)) for i in range(20)),
            ('the output of neck', float('nan')),
            ('the output of head', float('nan')),
        ],
        losses=dict(loss=float('nan'), loss_box=1.0),
        gradients=[f'layer.{i}' for i in range(9)],
        batch=dict(
            inputs=[torch.tensor([[1.0, torch.inf], [-2.0, 0.5]])],
            data_samples=[dict(img_path='a b.jpg', gt_instances=dict(labels=torch.tensor([4])))],
        ),
        state_dict=dict(a=torch.ones(2)),
    )
    torch.save(content, tmp_path / 'nonfinite_iter_8.pt')
    return tmp_path / 'nonfinite_iter_8.pt'


def test_incident_is_printed(command, incident):
    status, out, _ = command('incident', incident, '--modules', 3)
    assert status == 0
    for words in (
        'module: the output of neck',
        'losses: loss nan\n',
        'layer.5 and 3 more',
        'weights: all finite',
        'the output of 17',
        'inputs.0',
        'a b.jpg',
    ):
        assert words in out
    assert 'the output of 16' not in out and 'loss_box' not in out


def test_incident_as_json_has_ranges_and_counts(command, incident):
    status, out, _ = command('incident', incident, '--json')
    found = json.loads(out)
    assert status == 0 and found['batch'][0] == ['inputs.0', '2x2', '-2', '1', 1]
    assert found['gradients'] == [f'layer.{i}' for i in range(9)]
    assert len(found['modules']) == 12 and found['modules'][-2:][0][0] == 'the output of neck'


def test_other_files_are_refused_in_one_line(command, tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(2))), tmp_path / 'a.pth')
    for name in ('a.pth', 'none.pth'):
        status, _, err = command('incident', tmp_path / name)
        assert status == 2 and name in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    'key, value',
    [
        ('modules', 'abc'),
        ('modules', [(1,)]),
        ('losses', dict(loss='x')),
        ('losses', 3),
        ('state_dict', dict(w=3)),
        ('state_dict', None),
        ('batch', 'cycle'),
        ('cause', None),
    ],
)
def test_altered_file_is_refused_in_one_line(command, incident, key, value):
    content = torch.load(incident)
    if value == 'cycle':
        value = [{}]
        value.append(value)
    content[key] = value
    if key == 'cause':
        del content[key]
    torch.save(content, incident)
    status, _, err = command('incident', incident)
    assert status == 2 and 'not as a run writes it' in err and len(err.splitlines()) == 1


def test_weights_may_be_nan_and_texts_lead_no_terminal(command, incident):
    content = torch.load(incident)
    content['state_dict'] = dict(weight=torch.tensor(torch.nan))
    content['cause'] = 'a\x1b[2J\nb'
    content['modules'][-1] = ('a\x1b[2J\nb', 1.0)
    torch.save(content, incident)
    status, out, _ = command('incident', incident)
    assert status == 0 and 'weights: weight' in out
    assert '\x1b' not in out and out.count(r'a\x1b[2J\nb') == 2
