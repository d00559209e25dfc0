"""A function of the user's by its name: found, imported, and its failures told with the line they come from."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rewards.service import excerpt

# Where no code of a user's own lies: the standard library, what is installed, this package.
_NOT_THE_USERS = (
    "<frozen ",
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    f"{Path(__file__).parents[1]}/",
)


def load_function(spelled: str, where: str) -> Callable[..., Any]:
    """The function `package.module:function` or `path/to/file.py:function`.

    A path is relative to the working directory, where modules are found too; modules beside a file are found as with
    `python path/to/file.py`. A file is imported once, however many functions of it are used.

    Args:
        where: what an error begins with.

    Raises:
        ConfigError: it is not there, cannot be imported, or is no function.
    """
    place, colon, name = spelled.rpartition(":")
    if not (place and colon and name):
        function = f"{spelled or 'file.py'}:reward_func"
        raise ConfigError(
            f"{where}`{spelled}` names no function. Write module:function or file.py:function ({function})."
        )
    module = _import_file(place, where) if place.endswith(".py") or "/" in place else _import_module(place, where)
    if not hasattr(module, name):
        names = [own for own, value in vars(module).items() if callable(value) and not own.startswith("_")]
        raise ConfigError(f"{where}{place} has no `{name}`.{nearest(name, names)}")
    function = getattr(module, name)
    if type(function).__module__.partition(".")[0] == "ray":
        raise ConfigError(
            f"{where}{spelled} is a Ray remote function, which is not called directly. Take @ray.remote away."
        )
    if inspect.isclass(function) or not callable(function):
        raise ConfigError(
            f"{where}{spelled} is of type {type(function).__name__}. Name a function, or an object with __call__."
        )
    checked: Callable[..., Any] = function
    return checked


def described(error: BaseException) -> str:
    """Type, message and place of an exception: `ValueError: no number (my_rewards.py:12)`."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{type(error).__name__}: {error.msg} ({_shown(error.filename)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    frame = (users or frames)[-1]
    message = f"{type(error).__name__}: {excerpt(str(error))}".rstrip(": ")
    return f"{message} ({_shown(frame.filename)}:{frame.lineno})"


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean ...?`, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def _import_file(spelled: str, where: str) -> ModuleType:
    path = Path(spelled).expanduser().resolve()
    if not path.is_file():
        names = [other.name for other in path.parent.glob("*.py")]
        raise ConfigError(f"{where}there is no file {spelled} (looked for {path}).{nearest(path.name, names)}")
    name = f"reward_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    _find_modules_in(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where}{spelled} is no Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is the user's to read
        del sys.modules[name]
        raise _import_error(spelled, error, where) from error
    return module


def _import_module(name: str, where: str) -> ModuleType:
    _find_modules_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # as above
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            parent = error.name.rpartition(".")[0]
            folders = getattr(sys.modules[parent], "__path__", ()) if parent else None
            names = [found.name for found in pkgutil.iter_modules(folders)]
            mend = nearest(error.name.rpartition(".")[2], names)
            raise ConfigError(
                f"{where}there is no module {error.name}, neither installed nor in {Path.cwd()}.{mend}"
            ) from None
        raise _import_error(name, error, where) from error


def _find_modules_in(folder: Path) -> None:
    # At the end: a file of the user's never takes the place of an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(spelled: str, error: BaseException, where: str) -> ConfigError:
    return ConfigError(f"{where}{spelled} cannot be imported: {described(error)}. Mend it, or install what it needs.")


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
