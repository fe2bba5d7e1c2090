"""Names the release of zfserve that this process runs. Server and worker tell it to each other."""

from importlib.metadata import version

RELEASE = version("zfserve")
"""The version of the installed distribution, such as "0.2.0"."""
