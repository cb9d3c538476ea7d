"""Downloads from servers that mean harm, or are broken."""

import contextlib
import io
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request

import pytest
import torch
from mmengine.runner import CheckpointLoader

from focal_mm.weights import CheckpointError, download
from focal_mm.weights.download import _Redirects, file_name

pytestmark = pytest.mark.stock


def send(request: BaseHTTPRequestHandler, status: int = 200, body: bytes = b'', **headers) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace('_', '-'), str(value))
    request.end_headers()
    request.wfile.write(body)


def redirect(target: str) -> Callable:
    return lambda request: send(request, 302, Location=target)


def endlessly(request: BaseHTTPRequestHandler, pause: float = 0, **start) -> None:
    send(request, **start)
    while True:
        request.wfile.write(b'x' * (10 if pause else 1 << 16))
        time.sleep(pause)


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({'state_dict': {'w': torch.ones(3)}}, file)
    return file.getvalue()


def gzipped(request: BaseHTTPRequestHandler) -> None:
    send(request, body=b'\x1f\x8b\x08' + bytes(100), Content_Encoding='gzip')


def chunked(request: BaseHTTPRequestHandler, chunk: bytes) -> None:
    request.protocol_version = 'HTTP/1.1'
    send(request, body=chunk, Transfer_Encoding='chunked')


def many_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b'HTTP/1.0 200 OK\r\n')
    while True:
        request.wfile.write(b'X: y\r\n')


def trailers(request: BaseHTTPRequestHandler) -> None:
    chunked(request, b'1\r\nx\r\n0\r\n')
    while True:
        request.wfile.write(b'X: y\r\n' * 1000)


def continues(request: BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b'HTTP/1.1 100 Continue\r\n\r\n' * 1000)


def slow_header(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b'HTTP/1.0 200 ')
    while True:
        request.wfile.write(b'x')
        time.sleep(0.02)


def raw(answer: bytes) -> Callable:
    return lambda request: request.wfile.write(answer)


BAD = {
    'redirect to a file': (redirect('file:///etc/hostname'), 'file:///etc/hostname'),
    'redirect to ftp': (redirect('ftp://127.0.0.1/x'), 'redirects to ftp://127.0.0.1/x, which is'),
    'redirect to data': (redirect('data:text/plain,x'), 'data:'),
    'redirect to itself': (redirect('x.pth'), 'infinite loop'),
    'redirect without an end': (
        lambda request: endlessly(request, status=302, Location='file:///x'),
        'file:',
    ),
    'no end': (endlessly, 'does not end after'),
    'no end behind a redirect': (
        lambda request: endlessly(
            request, status=302 if request.path == '/x.pth' else 200, Location='/y.pth'
        ),
        'does not end after',
    ),
    'drops': (lambda request: endlessly(request, 0.02), 'bytes came in'),
    'larger than any': (
        lambda request: send(request, body=b'x', Content_Length=10**6 + 1),
        'more than any such file',
    ),
    'larger than a number': (
        lambda request: send(request, body=b'x', Content_Length='9' * 30),
        'more than any such file',
    ),
    'no length': (lambda request: send(request, body=b'x', Content_Length='abc'), 'begins with'),
    'negative length': (lambda request: send(request, body=b'x', Content_Length=-5), 'begins with'),
    'too short': (
        lambda request: send(request, body=saved(), Content_Length=len(saved()) + 1),
        'cut off after',
    ),
    'too long': (
        lambda request: send(request, body=saved(), Content_Length=len(saved()) - 100),
        'cut off or not a checkpoint',
    ),
    'gzip': (gzipped, 'compressed by gzip'),
    'page': (
        lambda request: send(request, body=b'<html>\x1b[2J\nSign in</html>'),
        'web page',
    ),
    'page with a mark': (
        lambda request: send(request, body=b'\xef\xbb\xbf\r\n<!DOCTYPE html>'),
        'web page',
    ),
    'error in a terminal': (raw(b'HTTP/1.0 404 \x1b]0;owned\x07\x1b[2J\r\n\r\n'), r'404.*\\x1b'),
    'bad chunk': (lambda request: chunked(request, b'-5\r\nabc\r\n'), 'IncompleteRead|chunk'),
    'headers without an end': (many_headers, '100 headers'),
    'trailers without an end': (trailers, 'trailers came without an end'),
    'continue without an end': (continues, 'headers or trailers came without an end'),
    'a header that drips': (slow_header, 'bytes came in'),
    'a long line': (raw(b'HTTP/1.0 200 ' + b'x' * 70_000), 'LineTooLong'),
    'no HTTP': (raw(b'\x00\x01SSH-2.0\r\n'), 'BadStatusLine'),
    'nothing': (raw(b''), 'closed connection|Disconnected'),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        with contextlib.suppress(ConnectionError):
            self.server.answer(self)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(download, '_WINDOW', 0.2)
    monkeypatch.setattr(download.download, '__defaults__', (None, 10**6))
    return tmp_path / 'torch/hub/checkpoints'


@pytest.mark.parametrize('name', BAD)
def test_bad_answer_is_one_line_and_leaves_nothing(server, hub, tmp_path, name):
    server.answer, words = BAD[name]
    with pytest.raises(CheckpointError, match=words) as error:
        CheckpointLoader.load_checkpoint(f'{server.url}/x.pth', map_location='cpu')
    assert str(error.value).isprintable()
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_good_answer_is_kept_whatever_the_server_leaves_out(server, hub):
    for number, answer in enumerate(
        (
            lambda request: send(request, body=saved()),
            lambda request: chunked(request, b'%x\r\n%s\r\n0\r\n\r\n' % (len(saved()), saved())),
            lambda request: send(
                request,
                302 if request.path.startswith('/0') else 200,
                b'' if request.path.startswith('/0') else saved(),
                Location='/moved/there',
            ),
        )
    ):
        server.answer = answer
        name = f'0{number}%20a.pth'
        content = CheckpointLoader.load_checkpoint(f'{server.url}/{name}', map_location='cpu')
        assert content['state_dict']['w'].sum() == 3
        assert (hub / name).is_file()


@pytest.mark.parametrize(
    'path',
    ['', '/', '/..', '/.', '/%2e%2e', '/a%00.pth', '/a%2f..%2fb', '/..%5cb', '/C:b', '/a%0a'],
)
def test_address_without_a_name_of_a_file_is_never_asked(path):
    with pytest.raises(CheckpointError, match='does not end in the name'):
        CheckpointLoader.load_checkpoint(f'http://127.0.0.1:9{path}')


@pytest.mark.parametrize('host', ['[', f'{"a" * 70}.com', 'a b', '127.0.0.1:port', ''])
def test_odd_address_is_one_line(host):
    with pytest.raises(CheckpointError) as error:
        CheckpointLoader.load_checkpoint(f'http://{host}/x.pth')
    assert str(error.value).isprintable()


def test_names_keep_their_case_and_what_is_escaped():
    assert file_name('https://a/b/Net%20(1)+é.pth?x=/y#z') == 'Net%20(1)+é.pth'


def test_redirect_never_leaves_https():
    for target in ('http://b/c', 'ftp://b/c'):
        with pytest.raises(OSError, match=f'redirects to {target}, which is not followed'):
            _Redirects().redirect_request(Request('https://a/b'), io.BytesIO(), 302, '', {}, target)
    followed = _Redirects().redirect_request(
        Request('http://a/b'), io.BytesIO(), 302, '', {}, 'https://b/c'
    )
    assert followed.full_url == 'https://b/c'
