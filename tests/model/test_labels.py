import json
from pathlib import Path

import pytest
import torch
from zfserve_model.checkpoint import Checkpoint
from zfserve_model.labels import LabelsError, imagenet_labels, imagenette_labels, label_classes, read_labels, relabel
from zfserve_model.networks import Network, NetworkSpec
from zfserve_model.preprocessing import Preprocessing


@pytest.mark.parametrize(
    "text",
    ['{"n2": "French horn", "n1": "tench"}', "n2\tFrench horn\n\nn1\ttench\n", '  {"n2":"French horn","n1":"tench"}'],
)
def test_both_forms_keep_the_order_of_the_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text(text)
    assert list(read_labels(file).items()) == [("n2", "French horn"), ("n1", "tench")]
    file.write_text(text, encoding="utf-8-sig")
    assert list(read_labels(file).items()) == [("n2", "French horn"), ("n1", "tench")]


@pytest.mark.parametrize(
    "text",
    [
        "n01440764 tench, Tinca tinca\nn01443537  goldfish\n",
        '{"0": ["n01440764", "tench, Tinca tinca"], "1": ["n01443537", "goldfish"]}',
        '{"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench, Tinca tinca"]}',
    ],
)
def test_the_files_of_the_onnx_zoo_and_of_keras_hold_word_net_ids(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(text)
    expected = [("n01440764", "tench, Tinca tinca"), ("n01443537", "goldfish")]
    assert list(read_labels(tmp_path / "labels").items()) == expected


@pytest.mark.parametrize("text", ["crane\n two words \n\ncrane\n", '["crane", "two words", "crane"]'])
def test_a_bare_label_is_its_own_id_and_equal_labels_stay_apart(text: str, tmp_path: Path) -> None:
    """ImageNet has two classes called crane, and two called maillot."""
    (tmp_path / "labels").write_text(text)
    expected = [("crane-0", "crane"), ("two words", "two words"), ("crane-2", "crane")]
    assert list(read_labels(tmp_path / "labels").items()) == expected


def test_indices_in_json_are_numbers_and_not_words(tmp_path: Path) -> None:
    """A JSON writer that sorts its keys writes 10 before 2."""
    (tmp_path / "labels").write_text(json.dumps({str(index): f"class {index}" for index in range(12)}, sort_keys=True))
    assert list(read_labels(tmp_path / "labels").values()) == [f"class {index}" for index in range(12)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["tench", 3]', "no label for class 1"),
        ('["tench", " "]', "no label for class 1"),
        ('{"0": ["n1", "tench"], "1": "horn"}', "no label for class '0'"),
        ("[]", "holds no labels"),
        ("{}", "holds no labels"),
        ("n1\ttench\nn2 horn\n", "line 2: needs a class id, a tab"),
        ("n1\ttench\nn1\thorn\n", "labels class 'n1' twice"),
        ('{"n1": "tench", "n1": "horn"}', "labels class 'n1' twice"),
        ('{"n1": 3}', "no label for class 'n1'"),
        ("n1\t \n", "no label for class 'n1'"),
        ('{"n1": ', "not valid JSON"),
        ("", "holds no labels"),
        ("[" * 200_000, "nests JSON too deeply"),
        ("a" * 501, "longer than 500 characters or has control characters; give plain text"),
        ("n1\ttench\x1b[31m\n", "has control characters"),
    ],
)
def test_faulty_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(LabelsError, match=message):
        read_labels(tmp_path / "labels")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="cannot be read"):
        read_labels(tmp_path / "labels")


def test_imagenette_has_its_names_and_other_folders_stand_for_themselves() -> None:
    assert len(imagenette_labels()) == 10
    assert label_classes(("n03394916", "my cat"), None) == ("French horn", "my cat")
    with pytest.raises(LabelsError, match="no label for my cat"):
        label_classes(("n03394916", "my cat"), imagenette_labels())


def test_imagenet_has_a_thousand_labels_in_the_order_of_the_ids_and_contains_imagenette() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert len(set(labels.values())) == 1000
    assert list(labels) == sorted(labels)
    assert list(labels.items())[207] == ("n02099601", "Golden Retriever")
    assert imagenette_labels().items() <= labels.items()


def test_a_checkpoint_can_be_relabelled() -> None:
    with torch.device("meta"):
        network = Network(NetworkSpec(classes=2, hidden_width=4))
    checkpoint = Checkpoint(network, ("n01440764", "n02102040"), ("a", "b"), Preprocessing())
    assert relabel(checkpoint, None).labels == ("tench", "English springer")
    assert relabel(checkpoint, {"n02102040": "dog", "n01440764": "fish"}).labels == ("fish", "dog")
