"""Turns links from docs/ to files of the repository into links that work on the site. mkdocs.yml names it as a hook.

On disk and on GitHub `[the interface](../protos/zfserve.proto)` opens the file. The site holds docs/ only. There the
link leads to `repo_url` of mkdocs.yml. Without `repo_url` the text stays, with the file's path behind it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")

log = get_plugin_logger("docs_links")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Returns the page with its links to files outside docs/ rewritten.

    Logs a warning for each file that does not exist. `mkdocs build --strict` fails then.
    """
    root = Path(config.config_file_path).parent

    def rewrite(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        if not (root / path).exists():
            log.warning("%s links to ../%s, which does not exist", page.file.src_uri, path)
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return text if Path(path).name in text else f"{text} (`{path}`)"

    return LINK.sub(rewrite, markdown)
