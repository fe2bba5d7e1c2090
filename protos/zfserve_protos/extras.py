"""What to say where a library is missing. Every room may need that sentence, so it is in none of theirs."""


def not_installed(what: str, extra: str, index: str | None = None) -> str:
    """That `what` is not installed, and what to run for it.

    zfserve is on no package index, so what is installed is the checkout; editable, as `make` does it, so that a `.venv`
    that `make` made stays what it is.

    Args:
        extra: of pyproject.toml, that brings it.
        index: a package index that has it, where PyPI does not.
    """
    wherefrom = f"--extra-index-url {index} " if index else ""
    return (
        f"{what} is not installed; in a checkout of zfserve: pip install {wherefrom}-c constraints.txt -e '.[{extra}]'"
    )
