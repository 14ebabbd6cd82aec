"""A function of a user's own, named in a config by its import path: ``package.module:function``.

It has to be importable: installed, or its folder in PYTHONPATH. What it returns may depend on its
arguments only, or a resumed run would differ; `identity` goes where such a change must be seen.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprise.rollout.errors import BadInput

PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def load_function(path: str, key: str) -> Callable[..., Any]:
    """The function at `path`; `key` is the config's name for it.

    Raises:
        BadInput: there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and itself imports what is not
        raise BadInput(
            f"{key}={path!r}: there is no module {error.name}; install it, or put its "
            "folder into PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        raise BadInput(
            f"{key}={path!r}: {module_name} has no function {name}; it has "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    return function


def identity(path: str, function: Callable[..., Any]) -> str:
    """Its path, and the SHA-256 of the file it is in."""
    file = inspect.getsourcefile(function)
    code = Path(file).read_bytes() if file else b""
    return f"{path} {hashlib.sha256(code).hexdigest()}"
