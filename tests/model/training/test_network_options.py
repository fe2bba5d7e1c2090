import argparse
from pathlib import Path

import pytest
import torch
from zfserve_model.networks import NetworkSpec
from zfserve_model.training.network_options import add_network_arguments, build_from_options, parse_layers, parse_maps
from zfserve_model.training.recipe import RecipeError

SMALL = ("--architecture", "zfnet-fig3")


def build(*words: str) -> NetworkSpec:
    parser = argparse.ArgumentParser()
    add_network_arguments(parser)
    arguments = parser.parse_args([*SMALL, *words])
    return build_from_options(arguments, ("a", "b"), torch.Generator()).spec


def test_the_options_become_the_spec() -> None:
    assert build() == NetworkSpec("zfnet-fig3", 2, 256, batch_norm=True)
    assert build("--without", "fc7,conv3", "--hidden-width", "8", "--maps", "5,6,7", "--contrast-norm") == NetworkSpec(
        "zfnet-fig3", 2, 8, contrast_norm=True, batch_norm=True, removed=("conv3", "fc7"), maps=(96, 256, 5, 6, 7)
    )
    assert build("--without", "fc6,fc7").removed == ("fc6", "fc7")


def test_three_numbers_are_the_last_three_convolutions_and_five_are_all() -> None:
    assert parse_maps("512,1024,512", "zfnet-fig3") == (96, 256, 512, 1024, 512)
    assert parse_maps("1, 2, 3, 4, 5", "zfnet-fig3") == (1, 2, 3, 4, 5)
    assert parse_layers("conv3, conv4") == ("conv3", "conv4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--without", "conv9"), "there is no layer 'conv9' to remove; choose from conv1, "),
        (("--without", "relu3"), "there is no layer 'relu3'"),
        (("--without", "fc8"), "there is no layer 'fc8'"),
        (("--without", ""), "must name layers"),
        (("--without", "conv3,conv3"), "each once"),
        (("--without", "conv1,conv2,conv3,conv4,conv5"), "keep at least one"),
        (("--without", "fc6,fc7", "--hidden-width", "8"), "has no hidden layer; leave out --hidden-width"),
        (("--hidden-width", "0"), "hidden width must be at least 1"),
        (("--maps", "512,0,512"), "at least 1, as in 512,1024,512"),
        (("--maps", "512,1024"), "three or five numbers"),
        (("--maps", "wide"), "three or five numbers"),
        (("--from", "x.safetensors", "--without", "conv3"), "leave out --without"),
        (("--from", "x.safetensors", "--maps", "1,2,3"), "leave out --maps"),
    ],
)
def test_impossible_networks_are_one_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        build(*words)
    assert "\n" not in str(raised.value)
