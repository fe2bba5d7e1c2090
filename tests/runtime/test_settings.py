"""Tests how settings become flags, variables, help and a line of faults. A small model stands in for a command's."""

import argparse
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field
from zfserve_runtime.access.tls import TlsFiles
from zfserve_runtime.settings import (
    ConfigError,
    Port,
    ProcessSettings,
    default_text,
)


class OvenSettings(ProcessSettings):
    environment_prefix = "OVEN_"
    address_field = "door"
    sections: ClassVar = {
        "Heat": ("heat", "fan", "recipe_file"),
        "Doors": ("door", "timer_port", "tls_cert", "tls_key", "tls_client_ca"),
    }

    heat: float = Field(180.0, gt=0, description="Heat of 100 % of the oven.")
    fan: bool = Field(True, description="Turn the fan on.")
    recipe_file: Path | None = Field(None, description="File of the recipe.")
    door: str = Field("localhost", description="Address of the door.")
    timer_port: Port = Field(1, description="Port of the timer.")


def read(*flags: str, **environment: str) -> OvenSettings:
    parser = argparse.ArgumentParser()
    OvenSettings.add_flags(parser)
    return OvenSettings.read(vars(parser.parse_args(flags)), dict(environment))


def test_a_flag_wins_over_its_variable_and_the_variable_over_the_default() -> None:
    assert read() == OvenSettings()
    assert read("--heat", "200", OVEN_HEAT="150", OVEN_FAN="false", OVEN_DOOR="").heat == 200
    settings = read(OVEN_HEAT="150", OVEN_FAN="false", OVEN_DOOR="", OVEN_RECIPE_FILE="cake.txt")
    assert (settings.heat, settings.fan, settings.door) == (150, False, "localhost")
    assert settings.recipe_file == Path("cake.txt")
    assert read("--fan", OVEN_FAN="false").fan
    assert not read("--no-fan").fan


def test_the_help_lists_each_section_with_its_flags_and_defaults() -> None:
    parser = argparse.ArgumentParser()
    OvenSettings.add_flags(parser)
    text = " ".join(parser.format_help().split())
    assert (
        "heat: --heat HEAT Heat of 100 % of the oven. (default: 180) --fan, --no-fan Turn the fan on. (default:" in text
    )
    assert "--recipe-file PATH File of the recipe. doors: --door DOOR Address of the door. (default: localhost)" in text
    assert "OVEN_DRAIN_GRACE" in text


def test_a_default_is_shown_as_a_user_writes_it() -> None:
    shown = {name: default_text(field) for name, field in OvenSettings.model_fields.items()}
    assert (shown["heat"], shown["fan"], shown["recipe_file"], shown["timer_port"]) == ("180", "on", "unset", "1")
    assert (shown["model"], shown["allow_insecure"], shown["drain_delay"]) == ("models/zfnet", "off", "0.5")


def test_every_fault_names_the_flag_or_the_variable_that_caused_it() -> None:
    with pytest.raises(ConfigError) as refused:
        read("--heat", "0", OVEN_TIMER_PORT="70000", OVEN_FAN="perhaps")
    assert str(refused.value).split("; ") == [
        "--heat: '0' should be greater than 0",
        "OVEN_FAN: 'perhaps' should be a valid boolean, unable to interpret input",
        "OVEN_TIMER_PORT: '70000' should be less than or equal to 65535",
    ]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--tls-cert", "c"), "--tls-cert and --tls-key go together"),
        (("--tls-client-ca", "c"), "--tls-client-ca needs --tls-cert"),
        (("--door", "0.0.0.0"), "--door 0.0.0.0 can be reached from other machines"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(flags: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(*flags)
    assert str(refused.value).startswith(fault)


def test_the_files_for_tls_are_complete_or_absent() -> None:
    files = {"OVEN_TLS_CERT": "c", "OVEN_TLS_KEY": "k"}
    assert read().tls is None
    assert read(**files).tls == TlsFiles(Path("c"), Path("k"))
    assert read(OVEN_DOOR="0.0.0.0", **files).door == "0.0.0.0"
    assert read(OVEN_DOOR="0.0.0.0", OVEN_ALLOW_INSECURE="true").tls is None


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="not permitted"):
        OvenSettings.model_validate({"colour": "red"})
