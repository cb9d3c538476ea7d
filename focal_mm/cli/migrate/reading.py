"""Old configs as plain data, without running code of theirs."""

import ast
import copy
import os.path
import re
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeGuard

from mmengine.config import Config, ConfigDict
from mmengine.fileio import load

from .bases import find_base
from .report import Report

# Statements and expressions that can only compute data.
_ALLOWED = (
    *(ast.Module, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete, ast.Expr, ast.Pass),
    *(ast.If, ast.For, ast.Break, ast.Continue),
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.keyword),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.FormattedValue, ast.Call),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
# Numbers that a range may have, and the largest exponent: a config that needs more would not end.
_LONGEST, _HIGHEST = 100_000, 100


def _range(*bounds: int) -> range:
    value = range(*bounds)
    if len(value) > _LONGEST:
        raise ValueError(f'a range of {len(value)} numbers')
    return value


_FUNCTIONS: dict[str, Any] = dict(
    abs=abs, bool=bool, dict=dict, enumerate=enumerate, float=float, int=int, len=len, list=list,
    max=max, min=min, range=_range, reversed=reversed, round=round, set=set, sorted=sorted, str=str,
    sum=sum, tuple=tuple, zip=zip,
)  # fmt: skip
_METHODS = {
    *('append', 'copy', 'count', 'extend', 'index', 'insert', 'remove', 'reverse', 'sort'),
    *('clear', 'get', 'items', 'keys', 'pop', 'setdefault', 'update', 'values'),
    *('endswith', 'join', 'lower', 'lstrip', 'replace', 'rsplit', 'rstrip', 'split'),
    *('startswith', 'strip', 'upper'),
}
_PATHS = SimpleNamespace(
    join=os.path.join, basename=os.path.basename, dirname=os.path.dirname, splitext=os.path.splitext
)
_COPIES = SimpleNamespace(copy=copy.copy, deepcopy=copy.deepcopy)
# What a config may import, and the functions that it may call.
_MODULES = {
    'os': SimpleNamespace(path=_PATHS),
    'os.path': _PATHS,
    'copy': _COPIES,
    **{f'os.path.{name}': function for name, function in vars(_PATHS).items()},
    **{f'copy.{name}': function for name, function in vars(_COPIES).items()},
}
_MODULE_CALLS = {*vars(_PATHS), *vars(_COPIES)}
_BASE_VARIABLE = re.compile(r"""(['"])\{\{\s*(_base_[\w.]*)\s*\}\}\1""")
_WAY_OUT = 'put in its value; the config.py that training wrote into its work folder has all values'


class OldFile:
    """The settings of an old config and its bases.

    Args:
        path (Path): A ``.py``, ``.json``, ``.yml`` or ``.yaml`` file.
        report (Report): Notes about bases that were found elsewhere are added.

    Attributes:
        settings (dict): All settings, bases merged as mmcv does.
        names (set[str]): Variables that the files use in other settings.
        library (str): ``'mmdet'`` or ``'mmseg'``, whichever has such a model.

    Raises:
        FileNotFoundError: If the file or a base does not exist.
        ValueError: If a file is no config, or needs to run code.
    """

    def __init__(self, path: Path, report: Report) -> None:
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such config')
        self.report = report
        self.names: set[str] = set()
        # Where a missing base is looked for first.
        self.libraries = ('mmseg', 'mmdet') if _has_words_of_mmseg(path) else ('mmdet', 'mmseg')
        self.settings = self._read(path, ())
        model = self.settings.get('model')
        segments = isinstance(model, dict) and 'decode_head' in model
        self.library = 'mmseg' if segments else 'mmdet'

    def _read(self, path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
        if path in children:
            raise ValueError(f'{path}: this config is a base of itself')
        if path.suffix in ('.json', '.yml', '.yaml'):
            own = load(path)
            if not isinstance(own, dict):
                raise ValueError(f'{path}: not a config; it holds a {type(own).__name__}')
            bases = _as_list(own.pop('_base_', []))
            return _merge(own, self._read_bases(bases, path, children), path)
        tree = _parse(path)
        bases = _bases(tree, path)
        inherited = self._read_bases(bases, path, children)
        self.names |= {
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(tree)
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
        }
        return _merge(_evaluate(tree, path, inherited), inherited, path)

    def _read_bases(self, bases: list[str], path: Path, children: tuple[Path, ...]) -> dict:
        merged: dict[str, Any] = {}
        for base in bases:
            found = find_base(base, path, self.libraries, self.report)
            if isinstance(found, Path):
                found = self._read(found, (*children, path))
            merged = _merge(found, merged, path)
        return merged


def _has_words_of_mmseg(path: Path) -> bool:
    text = path.read_text(encoding='utf-8', errors='replace')
    words = ('decode_head', 'img_dir', 'EncoderDecoder', 'mmseg', 'mIoU')
    return any(word in text for word in words) or (
        'gt_semantic_seg' in text and 'gt_bboxes' not in text
    )


def _as_list(value: Any) -> list:
    return [value] if isinstance(value, str) else list(value)


def _parse(path: Path) -> ast.Module:
    variables = dict(
        fileDirname=path.parent.resolve().as_posix(),
        fileBasename=path.name,
        fileBasenameNoExtension=path.stem,
        fileExtname=path.suffix,
    )
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    for name, value in variables.items():
        text = re.sub(rf'\{{\{{\s*{name}\s*\}}\}}', value.replace('\\', '/'), text)
    text = _BASE_VARIABLE.sub(r'\2', text)
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f'{path}, line {error.lineno}: not Python: {error.msg}') from error


def _is_bases(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ['_base_']


def _bases(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        if _is_bases(node):
            try:
                return _as_list(ast.literal_eval(node.value))
            except ValueError as error:
                raise ValueError(
                    f'{path}, line {node.lineno}: _base_ is not a list of file names'
                ) from error
    return []


class _BaseVariables(ast.NodeTransformer):
    """Replaces mmcv's ``{{_base_.name}}``, in Python a set in a set, by ``_base_.name``."""

    def visit_Set(self, node: ast.Set) -> ast.AST:
        inner: ast.expr = node.elts[0] if len(node.elts) == 1 else node
        if isinstance(inner, ast.Set) and ast.unparse(inner).startswith('{_base_.'):
            return inner.elts[0]
        return self.generic_visit(node)


def _evaluate(tree: ast.Module, path: Path, inherited: dict) -> dict[str, Any]:
    """Return the variables that a config sets, by running it if it can only compute data."""
    _BaseVariables().visit(tree)
    imported: dict[str, Any] = {}
    body: list[ast.stmt] = []
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported.update(_import(node, used, path))
        elif not _is_bases(node):
            body.append(node)
    module = ast.Module(body, [])
    for part in ast.walk(module):
        if reason := _refusal(part):
            raise ValueError(f'{path}, line {getattr(part, "lineno", 1)}: {reason}; {_WAY_OUT}')
    space = dict(_FUNCTIONS, **imported, __builtins__={}, _base_=ConfigDict(inherited))
    given = set(space)
    try:
        exec(compile(module, str(path), 'exec'), space)  # checked above
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == str(path)][-1]
        raise ValueError(f'{path}, line {line}: {error}; {_WAY_OUT}') from error
    return {
        key: copy.deepcopy(value)  # else two settings that share a dict are changed together
        for key, value in space.items()
        if key not in given and not key.startswith('_')
    }


def _import(node: ast.Import | ast.ImportFrom, used: set[str], path: Path) -> dict[str, Any]:
    prefix = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
    found = {}
    for alias in node.names:
        name = alias.asname or alias.name.partition('.')[0]
        if name not in used:
            continue
        module = f'{prefix}{alias.name}' if alias.asname or prefix else name
        if module not in _MODULES:
            raise ValueError(
                f'{path}, line {node.lineno}: `{ast.unparse(node)}` would run code; {_WAY_OUT}'
            )
        found[name] = _MODULES[module]
    return found


def _refusal(node: ast.AST) -> str | None:
    """Return why a node may do more than compute data, or None."""
    text = ast.unparse(node).partition('\n')[0]
    if not isinstance(node, _ALLOWED):
        return f'`{text}` would run code'
    if isinstance(node, ast.Attribute) and node.attr.startswith('_'):
        return f'`{text}` is no setting'
    if isinstance(node, ast.BinOp) and _is_endless(node):
        return f'`{text}` may take more memory than there is'
    if isinstance(node, ast.Call):
        function = node.func
        known = (
            function.id in _FUNCTIONS or function.id in _MODULE_CALLS
            if isinstance(function, ast.Name)
            else isinstance(function, ast.Attribute) and function.attr in _METHODS | _MODULE_CALLS
        )
        if not known:
            return f'`{text}` would run code'
    return None


def _is_endless(node: ast.BinOp) -> bool:
    """Return whether a power or a repetition may be of any size."""
    repeated = (ast.List, ast.Tuple, ast.JoinedStr)
    left, right = node.left, node.right
    if isinstance(node.op, (ast.Pow, ast.LShift)):
        number, most = right, _HIGHEST
    elif not isinstance(node.op, ast.Mult):
        return False
    elif isinstance(left, repeated) or (
        isinstance(left, ast.Constant) and isinstance(left.value, (str, bytes))
    ):
        number, most = right, _LONGEST
    elif isinstance(right, repeated) or (
        isinstance(right, ast.Constant) and isinstance(right.value, (str, bytes))
    ):
        number, most = left, _LONGEST
    else:
        return False
    if isinstance(number, ast.Call):  # len(classes)
        return False
    try:
        return abs(ast.literal_eval(number)) > most
    except (ValueError, TypeError):
        return not isinstance(number, (ast.Name, ast.Attribute))


def _merge(own: dict[str, Any], base: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return Config._merge_a_into_b(own, base)
    except TypeError as error:
        raise ValueError(f'{path}: {error}') from error
