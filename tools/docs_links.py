"""Turns links from docs/ to files of the repository into links that work on the site. mkdocs.yml names it as a hook.

On disk and on GitHub `[the interface](../protos/zfserve.proto)` opens the file. The site holds docs/ only. There the
link leads to `repo_url` of mkdocs.yml. Without `repo_url` the text stays, with the file's path behind it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")

log = get_plugin_logger("docs_links")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Returns the page with its links to files outside docs/ rewritten.

    Logs a warning for each file that does not exist. `mkdocs build --strict` fails then.
    """
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def rewrite(link: re.Match[str]) -> str:
        text, target, anchor = link[1], (folder / link[2]).resolve(), link[3] or ""
        if target.is_relative_to(docs):
            return link[0]
        path = target.relative_to(docs.parent)
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link[2])
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return text if path.name in text else f"{text} (`{path}`)"

    return LINK.sub(rewrite, markdown)
