"""Builds the sentence for a library that is not installed. It is here because every room may need it."""


def not_installed(what: str, extra: str, index: str | None = None) -> str:
    """Returns a sentence that says that `what` is not installed, and which command installs it.

    The command installs the checkout, because zfserve is on no package index. It installs it in editable mode, as
    `make` does, so that a `.venv` of `make` stays as it is.

    Args:
        what: the name of the library.
        extra: the extra of pyproject.toml that needs the library.
        index: the package index that has the library, if PyPI does not have it.
    """
    source = f"--extra-index-url {index} " if index else ""
    return f"{what} is not installed; in a checkout of zfserve: pip install {source}-c constraints.txt -e '.[{extra}]'"
