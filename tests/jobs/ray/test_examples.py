"""The examples name options that exist, and Kubernetes can read its own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from draftrec.cli.knowledge.encode import EncodeOptions
from draftrec.cli.knowledge.generate import GenerateOptions

EXAMPLES = Path(__file__).parents[3] / "examples" / "ray"
COMMANDS = {"generate": GenerateOptions, "encode": EncodeOptions}


def commands_of(text: str) -> list[list[str]]:
    """The words of every draftrec command in a script."""
    joined = re.sub(r"\\\n", " ", text)
    return [line.split() for line in re.findall(r"draftrec ((?:generate|encode) [^\n'|]*)", joined)]


def check(words: list[str]) -> None:
    known = {f.name.replace("_", "-") for f in dataclasses.fields(COMMANDS[words[0]])}
    given = [word.removeprefix("--") for word in words if word.startswith("--")]
    assert given
    assert set(given) <= known


def test_scripts_name_options_that_exist() -> None:
    for name, count in (("laptop.sh", 2), ("many_gpus.sh", 2)):
        found = commands_of((EXAMPLES / name).read_text())
        assert len(found) == count
        for words in found:
            check(words)


def test_the_kuberay_job_asks_for_the_workers_that_its_cluster_has() -> None:
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    (words,) = commands_of(job["spec"]["entrypoint"])
    check(words)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert int(words[words.index("--workers") + 1]) == group["replicas"] == group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert words[words.index("--gpus-per-worker") + 1] == limits["nvidia.com/gpu"]
    assert words[words.index("--cpus-per-worker") + 1] == limits["cpu"]
    mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
    paths = [w for w in words if w.startswith("/")]
    assert len(paths) == 4
    assert all(path.startswith(mounts[0]["mountPath"]) for path in paths)
