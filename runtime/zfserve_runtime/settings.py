"""Reads the settings of a process from flags and environment variables.

A pydantic model declares each setting once: its type, default, limits and description. The flags, the environment
variables, `--help` and the tables of docs/settings.md all come from the model. `serve` and `worker` each have a model,
which inherits the settings that both share.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from zfserve_runtime.access.tls import TlsFiles
from zfserve_runtime.bundle import DEFAULT_MODEL
from zfserve_runtime.grpc.listener import LOOPBACK, find_exposure
from zfserve_runtime.telemetry.logs import LogFormat
from zfserve_runtime.telemetry.otlp import endpoint_in

Port = Annotated[int, Field(ge=0, le=65535)]


class ConfigError(ValueError):
    """The settings cannot be used. The message names every fault."""


class ProcessSettings(BaseModel):
    """Declares and checks the settings that `zfserve serve` and `zfserve worker` share.

    Attributes:
        environment_prefix: starts the name of each environment variable.
        address_field: the name of the setting that holds the address to listen on.
        sections: maps each heading of `--help` and docs/settings.md to the names of its settings.

    Raises:
        ValidationError: names every fault at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment_prefix: ClassVar[str]
    address_field: ClassVar[str]
    sections: ClassVar[Mapping[str, tuple[str, ...]]]

    model: tuple[Path, ...] = Field(
        (DEFAULT_MODEL,),
        min_length=1,
        description="Folder of a bundle, of a model (with one folder per version) or of several models. For several "
        "folders, put commas between them or repeat the flag.",
    )
    allow_insecure: bool = Field(
        False, description="Listen on a public address without TLS, which is refused otherwise."
    )
    metrics_host: str = Field(
        LOOPBACK,
        description="Address of the Prometheus HTTP endpoint; 0.0.0.0 for all interfaces. Metrics are not encrypted: "
        "anyone who can reach the address can read them.",
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate chain. It turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM file of the private key of --tls-cert.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of authorities. Only callers with a certificate from one of them may connect."
    )
    log_format: LogFormat = Field(
        "console", description="Format of the log: `console`, or `json` for one object on each line."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of the OpenTelemetry collector that gets the traces (OTLP over gRPC), such as "
        "`http://HOST:4317`. If unset, OTEL_EXPORTER_OTLP_ENDPOINT applies; without both, there are no traces.",
    )
    drain_delay: float = Field(
        0.5,
        ge=0,
        description="Seconds for which calls are still accepted after health says NOT_SERVING, so that callers can "
        "move to another instance. There is no delay if nobody ever asked for health.",
    )
    drain_grace: float = Field(
        30.0, ge=0, description="Seconds to finish the accepted calls after the process was asked to stop."
    )

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Adds one flag for each setting. `read` checks the values."""
        parser.epilog = (
            f"Every flag can also be set in the environment: --drain-grace as {cls.variable_of('drain_grace')} and so "
            "on. A flag wins over the environment."
        )
        for title, names in cls.sections.items():
            section = parser.add_argument_group(title.lower())
            for name in names:
                field = cls.model_fields[name]
                default = "" if field.default is None else f" (default: {default_text(field)})"
                text = f"{field.description}{default}".replace("%", "%%")
                if field.annotation is bool:
                    section.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, default=None, help=text)
                else:
                    action = "append" if get_origin(field.annotation) is tuple else "store"
                    section.add_argument(flag_of(name), action=action, metavar=_metavar(name, field), help=text)

    @classmethod
    def read(cls, flags: Mapping[str, object], environment: Mapping[str, str]) -> Self:
        """Returns the settings. A flag takes precedence over its environment variable, and that over the default.

        An empty variable counts as not given.

        Args:
            flags: the parsed flags of `add_flags`, by setting. None stands for a flag that was not given.
            environment: the environment variables of the process.

        Raises:
            ConfigError: names every fault at once, each by the flag or variable that caused it.
            TracingError: OpenTelemetry's own variables ask for a protocol other than gRPC.
        """
        values: dict[str, object] = {}
        sources: dict[str, str] = {}
        for name in cls.model_fields:
            variable = cls.variable_of(name)
            if flags.get(name) is not None:
                values[name], sources[name] = flags[name], flag_of(name)
            elif environment.get(variable):
                values[name], sources[name] = environment[variable], variable
        if "otlp_endpoint" not in values:
            values["otlp_endpoint"] = endpoint_in(environment)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = (_fault_text(fault["loc"], fault["msg"], fault["input"], sources) for fault in error.errors())
            raise ConfigError("; ".join(faults)) from error

    @classmethod
    def variable_of(cls, name: str) -> str:
        return cls.environment_prefix + name.upper()

    @field_validator("model", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        values = [value] if isinstance(value, str | Path) else value
        if not isinstance(values, list | tuple):
            return value
        return [part for entry in values for part in (entry.split(",") if isinstance(entry, str) else [entry]) if part]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if faults := list(self.contradictions()):
            raise ValueError("; ".join(faults))
        return self

    def contradictions(self) -> Iterator[str]:
        """Yields one sentence for each fault between settings that are valid on their own."""
        yield from self._both_or_neither("tls_cert", "tls_key")
        yield from self._needs("tls_client_ca", "tls_cert")
        address = getattr(self, self.address_field)
        if fault := find_exposure(flag_of(self.address_field), address, self.tls_cert is not None, self.allow_insecure):
            yield fault

    def _both_or_neither(self, first: str, second: str) -> Iterator[str]:
        if (getattr(self, first) is None) != (getattr(self, second) is None):
            yield f"{flag_of(first)} and {flag_of(second)} go together"

    def _needs(self, setting: str, needed: str) -> Iterator[str]:
        if getattr(self, setting) is not None and getattr(self, needed) is None:
            yield f"{flag_of(setting)} needs {flag_of(needed)}"

    @property
    def tls(self) -> TlsFiles | None:
        """The files for TLS. None means an unencrypted port."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_text(field: FieldInfo) -> str:
    """Returns the default as a user would write it, or "unset"."""
    match field.default:
        case None:
            return "unset"
        case bool():
            return "on" if field.default else "off"
        case float():
            return f"{field.default:g}"
        case tuple():
            return ",".join(map(str, field.default))
        case _:
            return str(field.default)


def _fault_text(location: tuple[int | str, ...], message: str, value: Any, sources: Mapping[str, str]) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    if message.startswith("Input "):  # pydantic's words for the value, which it does not show
        message = repr(value) + message.removeprefix("Input")
    return f"{sources.get(str(location[0]), flag_of(str(location[0])))}: {message}"


def _metavar(name: str, field: FieldInfo) -> str:
    types = {field.annotation, *get_args(field.annotation)}
    return "PATH" if Path in types else name.rsplit("_", 1)[-1].upper()
