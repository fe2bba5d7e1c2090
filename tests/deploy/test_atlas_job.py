"""The Jobs of `deploy/jobs/atlas` are valid, read every shard once, and merge those that were read."""

import argparse
from pathlib import Path

import kubernetes_validate
from fakes.kubernetes_manifests import ROOT, Document, arguments_of, kustomized, of_kind
from zfserve_cli.exit_statuses import UNUSABLE

KUBERNETES = "1.37"
JOBS = ROOT / "deploy" / "jobs" / "atlas"
INDEX = "$(JOB_COMPLETION_INDEX)"


def job_in(folder: Path) -> Document:
    documents = kustomized(folder)
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    (job,) = [document for document in documents if document["kind"] == "Job"]
    return job


def container_of(job: Document) -> Document:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def shard_arguments(job: Document, index: int) -> argparse.Namespace:
    container = container_of(job)
    return arguments_of({"args": [each.replace(INDEX, str(index)) for each in container["args"]]})


def test_each_index_reads_a_shard_of_its_own_and_the_merge_names_all() -> None:
    job, merge = job_in(JOBS), job_in(JOBS / "merge")
    assert job["spec"]["completionMode"] == "Indexed"
    count = job["spec"]["completions"]
    shards = [shard_arguments(job, index) for index in range(count)]
    assert [each.shard for each in shards] == [(index, count) for index in range(count)]
    merged = arguments_of(container_of(merge))
    assert merged.action == "merge"
    assert merged.shards == [each.output for each in shards]
    assert {merged.images} == {each.images for each in shards}
    assert len({merged.output, *merged.shards}) == count + 1


def test_a_pod_that_dies_is_replaced_and_unusable_input_is_not_tried_again() -> None:
    for job in (job_in(JOBS), job_in(JOBS / "merge")):
        spec = job["spec"]
        assert spec["podReplacementPolicy"] == "Failed", "two pods would write one folder"
        assert spec.get("backoffLimitPerIndex", spec.get("backoffLimit")) > 0
        fail, ignore = spec["podFailurePolicy"]["rules"]
        assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [UNUSABLE])
        assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "a pod failure policy needs it"


def test_the_pods_find_the_service_and_write_only_to_volumes() -> None:
    (service,) = [each for each in of_kind("cpu", "Service") if each["metadata"]["name"] == "zfserve"]
    (claim,) = [each for each in kustomized(JOBS) if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for job in (job_in(JOBS), job_in(JOBS / "merge")):
        pod, container = job["spec"]["template"]["spec"], container_of(job)
        arguments = shard_arguments(job, 0)
        assert arguments.address == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts[str(arguments.images)]["readOnly"] is True
        written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
        assert any(arguments.output.is_relative_to(path) for path in written)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["atlas"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
