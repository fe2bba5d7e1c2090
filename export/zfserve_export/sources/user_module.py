"""This module builds a network with a function of the user's own code, as in `package.module:function`.

The code runs during the export only, and never in server or worker. `opening` calls this module.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch import nn

from zfserve_export.sources.errors import SourceError, first_line, is_interrupt
from zfserve_export.sources.module_source import BuiltModule, open_module
from zfserve_export.sources.module_weights import load_module_weights
from zfserve_export.sources.source import Source, SourceOptions

_GENERIC_NAMES = {"model", "net", "network"} | {
    f"{verb}{noun}"
    for verb in ("build", "create", "get", "load", "make")
    for noun in ("", "_model", "_net", "_network")
}


def open_user_module(text: str, options: SourceOptions) -> Source:
    """Calls the function that `text` names, which must return an `nn.Module`, and exports what it returns.

    Raises:
        SourceError: there is no such function, it fails, or what it returns cannot be exported.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    module = _build(text)
    notes = []
    if options.weights:
        load_module_weights(module, options.weights, text)
    else:
        notes.append(f"no --weights: {text} is exported with the weights that the function gave it")
    return open_module(BuiltModule(module, text, _name(text), {}, notes=notes), options)


def _name(text: str) -> str:
    """Returns the name of the function, or that of its module where the function's says nothing."""
    package, function = text.split(":")
    return package.rpartition(".")[2] if function in _GENERIC_NAMES else function


def _build(text: str) -> nn.Module:
    package, function = text.split(":")
    if package.endswith(".py"):
        dotted = ".".join(Path(package).with_suffix("").parts)
        raise SourceError(f"{text} names a file; name the module: {dotted}:{function}")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # the command `zfserve` does not have it, and `python -m` does
    try:
        build: Callable[[], object] | None = getattr(importlib.import_module(package), function, None)
        if not callable(build):
            raise SourceError(f"{package} has no function {function}; name one that returns an nn.Module")
        module = build()
    except SourceError:
        raise
    except ModuleNotFoundError as error:
        hint = "; run zfserve in the folder that holds it" if package.startswith(error.name or "?") else ""
        raise SourceError(f"{text}: there is no module {error.name}{hint}") from error
    except BaseException as error:  # the user's code may raise anything
        if is_interrupt(error):
            raise
        raise SourceError(f"{text} failed{_place(error)}: {first_line(error)}; mend the function") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(module, nn.Module):
        raise SourceError(f"{text} returned {type(module).__name__} and no nn.Module; return the network itself")
    return module


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    return f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
