"""Nothing in `src/` can run what a file or a string says: no pickle, no `eval`, no shell, nor a way around that."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "groundling"

# Modules and functions that run what they read, or unpack where a file says.
RUNNERS = (
    "pickle", "_pickle", "cPickle", "copyreg", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
    "jsonpickle", "code", "codeop", "runpy", "builtins", "ctypes", "cffi", "zipfile", "tarfile", "torch.load",
    "torch.save", "torch.package", "torch.hub", "torch.jit.load", "torch.serialization", "numpy.load",
    "numpy.lib.format", "numpy.lib.npyio", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput",
)  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "globals", "locals", "breakpoint"}
ATTRIBUTES = {
    "__reduce__", "__reduce_ex__", "__setstate__", "__globals__", "__builtins__", "__subclasses__", "__import__",
    "__code__", "__loader__", "load_module", "unpack_archive",
}  # fmt: skip
BY_STRING = ("importlib.import_module", "operator.attrgetter", "operator.methodcaller")

ALLOWED = {  # file and code: names come from tables of ours
    ("__init__.py", "importlib.import_module(_HOMES[name])"),
    ("__init__.py", "getattr(importlib.import_module(_HOMES[name]), name)"),
    ("__init__.py", "globals"),
    ("training/signals.py", "getattr(signal, name)"),
    ("machine.py", "import ctypes"),  # the C library that this process has already, to tell it to keep freed memory
    ("machine.py", "ctypes.CDLL"),
    ("data/compression.py", "import zipfile"),  # the members of an archive are read as texts, never unpacked to a disk
    ("data/compression.py", "zipfile.BadZipFile"),
    ("data/compression.py", "zipfile.ZipFile"),
    ("data/compression.py", "zipfile.ZipInfo"),
    # `groundling course check` runs the learner's own file, in a process of its own.
    ("course/judge.py", "exec"),
    ("course/judge.py", "compile"),
    # Checks and answers of the course, by the names of its exercises.
    (
        "course/checks/__init__.py",
        "importlib.import_module(f'groundling.course.checks.chapter_{exercise_chapter(name)}')",
    ),
    (
        "course/checks/__init__.py",
        "importlib.import_module(f'groundling.course.solutions.chapter_{exercise_chapter(name)}')",
    ),
}


def ways_to_run_code(source: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and code of each."""
    names, own = dict[str, str](), set[str]()  # what is imported, by what it is called here; what is made here
    for node in ast.walk(source):
        match node:
            case ast.Import():
                for alias in node.names:
                    top = alias.name.split(".")[0]
                    names[alias.asname or top] = alias.name if alias.asname else top
            case ast.ImportFrom():
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                own.add(node.id)
            case ast.arg():
                own.add(node.arg)

    def full(node: ast.expr) -> str:
        """`np.load` as `numpy.load`, whatever the module is called here."""
        head, dot, rest = ast.unparse(node).partition(".")
        return names.get(head, f"here.{head}" if head in own else head) + dot + rest

    def module(node: ast.expr) -> bool:
        """Whether it comes from an import that is not ours."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        if isinstance(node, ast.Call):
            return full(node.func).startswith("importlib.")
        return isinstance(node, ast.Name) and not names.get(node.id, "groundling").startswith("groundling")

    def runs(name: str) -> bool:
        return any(name == runner or name.startswith(f"{runner}.") for runner in RUNNERS) or name.startswith(
            ("os.exec", "os.spawn", "os.posix_spawn")
        )

    for node in ast.walk(source):
        match node:
            case ast.Import() | ast.ImportFrom():
                above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                found = any(runs(above + alias.name) or runs(above[:-1]) or alias.name == "*" for alias in node.names)
            case ast.Attribute():
                found = runs(full(node)) or node.attr in ATTRIBUTES
            case ast.Name():
                found = node.id in BUILTINS - own
            case ast.Call(func=ast.Name(id="getattr"), args=[holder, ast.Constant(value=str(name)), *_]):
                found = name in BUILTINS | ATTRIBUTES or runs(f"{full(holder)}.{name}")
            case ast.Call(func=ast.Name(id="getattr"), args=[holder, *_]):
                found = module(holder)
            case ast.Call():
                called, options = full(node.func), {keyword.arg for keyword in node.keywords}
                constant = node.args and isinstance(node.args[0], ast.Constant)
                found = (
                    (called in BY_STRING and not constant)
                    or (called == BY_STRING[0] and constant and runs(str(node.args[0].value)))
                    or "allow_pickle" in options
                    or (called.startswith("subprocess.") and bool({"shell", None} & options))
                )
            case _:
                continue
        if found:
            yield node.lineno, ast.unparse(node)


def test_no_file_that_is_opened_can_run_code() -> None:
    found = [
        (path.relative_to(SRC).as_posix(), line, code)
        for path in sorted(SRC.rglob("*.py"))
        for line, code in ways_to_run_code(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert {(file, code) for file, _, code in found} >= ALLOWED  # no allowance is left over
    assert [(file, line, code) for file, line, code in found if (file, code) not in ALLOWED] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "import _pickle as p", "from pickle import loads", "from torch import load", "import marshal",
        "from yaml import load", "import torch as t; t.load(x)", "import torch; torch.load(x, weights_only=False)",
        "import torch; f = torch.load", "import torch; getattr(torch, 'load')(x)",
        "import torch; getattr(torch, name)(x)", "import torch; getattr(torch.jit, name)(x)",
        "import numpy as np; np.load(x)",
        "import yaml; yaml.safe_load(x)",
        "import numpy as np; np.savez(x, allow_pickle=True)", "from numpy.lib.format import read_array", "eval(x)",
        "run = eval; run(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "globals()['ev' + 'al'](x)",
        "import importlib; importlib.import_module(x)", "import importlib; importlib.import_module('pickle')",
        "from importlib import import_module as get; get(x)", "import os; os.system(x)", "import os as o; o.popen(x)",
        "import os; os.execv(x, y)", "from os import system", "import subprocess; subprocess.run(x, shell=True)",
        "from subprocess import run; run(x, shell=True)", "import subprocess as s; s.getoutput(x)",
        "import subprocess; subprocess.run(x, **options)", "import builtins", "x.__class__.__subclasses__()",
        "(lambda: 0).__globals__", "import shutil; shutil.unpack_archive(x)", "import tarfile", "import zipfile",
        "import operator; operator.attrgetter(x)(y)", "x.__reduce_ex__(2)", "import torch; torch.jit.load(x)",
        "import torch.package", "from torch.serialization import *",
        "import importlib; getattr(importlib.import_module(a), b)",
        "x.f.__getattribute__('__globals__').__code__", "def f():\n  import pickle", "from dill import *",
    ],
)  # fmt: skip
def test_the_check_finds(code: str) -> None:
    assert list(ways_to_run_code(ast.parse(code)))
