import platform

from zfserve_bench.reports.machine import cpu_model, describe_machine


def test_the_first_processor_gives_its_name() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n\nmodel name\t: B\n") == "A CPU @ 3 GHz"
    assert cpu_model("processor : 0\nBogoMIPS : 50\n") == platform.machine()


def test_a_description_names_cores_and_versions() -> None:
    machine = describe_machine()
    assert 1 <= machine.cores <= machine.cores_in_all
    assert machine.versions["Python"] == platform.python_version()
    assert {"onnxruntime", "torch"} <= machine.versions.keys()
