"""What KubeRay and Kueue ask of the files in `deploy/`: the part of the schemas that these files use, and the
conditions of the controllers and webhooks, in words of our own.

KubeRay 1.7.0: `ray-operator/config/crd/bases/ray.io_{rayjobs,rayclusters}.yaml` (1.6.2 says the same of these fields)
and `ray-operator/controllers/ray/utils/validation.go`. Kueue 0.19.2: `pkg/controller/jobs/rayjob/rayjob_webhook.go`,
`pkg/controller/jobs/raycluster/{common,raycluster_webhook}.go`, `pkg/controller/jobframework/validation.go`. A field
that is not in here is refused: look it up there, then write it down.
"""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator

Document = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
MAX_POD_SETS = 18  # a Kueue workload's, of which the head is one
_TEXT, _COUNT, _FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$"}
_QUANTITIES = {"type": "object", "additionalProperties": _QUANTITY}


def _record(required: list[str], /, **fields: Any) -> Document:
    return {"type": "object", "required": required, "properties": fields, "additionalProperties": False}


def _list(items: Document) -> Document:
    return {"type": "array", "items": items, "minItems": 1}


_ENVIRONMENT = _record(
    ["name"],
    name={"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    value=_TEXT,
    valueFrom=_record(["secretKeyRef"], secretKeyRef=_record(["name", "key"], name=_TEXT, key=_TEXT, optional=_FLAG)),
) | {"oneOf": [{"required": ["value"]}, {"required": ["valueFrom"]}]}
_CONTAINER = _record(
    ["name", "image"],
    name=_LABEL,
    image=_TEXT,
    env=_list(_ENVIRONMENT),
    resources=_record([], requests=_QUANTITIES, limits=_QUANTITIES),
    volumeMounts=_list(
        _record(["name", "mountPath"], name=_LABEL, mountPath={"type": "string", "pattern": "^/[^:]*$"})
    ),
)
_VOLUME = _record(
    ["name"],
    name=_LABEL,
    persistentVolumeClaim=_record(["claimName"], claimName=_LABEL),
    emptyDir=_record([], medium={"enum": ["", "Memory"]}, sizeLimit=_QUANTITY),
)
_POD = _record(
    ["spec"],
    spec=_record(
        ["containers"],
        containers=_list(_CONTAINER),
        volumes=_list(_VOLUME),
        securityContext=_record([], runAsUser=_COUNT, runAsGroup=_COUNT, fsGroup=_COUNT, runAsNonRoot=_FLAG),
    ),
)
_CLUSTER = _record(
    ["headGroupSpec"],
    rayVersion=_TEXT,
    authOptions=_record([], mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_record([], idleTimeoutSeconds=_COUNT),
    headGroupSpec=_record(["template"], rayStartParams=_TEXTS, template=_POD),
    workerGroupSpecs=_list(
        _record(
            ["groupName", "template"],
            groupName=_LABEL,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_TEXTS,
            template=_POD,
        )
    ),
)
_JOB = _record(
    [],
    entrypoint=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=_COUNT,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    suspend=_FLAG,
    rayClusterSpec=_CLUSTER,
)
_CLAIM = _record(
    ["accessModes", "resources"],
    accessModes=_list({"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]}),
    storageClassName=_LABEL,
    resources=_record(["requests"], requests=_record(["storage"], storage=_QUANTITY)),
)
_KINDS = {
    ("v1", "PersistentVolumeClaim"): _CLAIM,
    ("ray.io/v1", "RayJob"): _JOB,
    ("ray.io/v1", "RayCluster"): _CLUSTER,
}


def schema_errors(document: Document) -> list[str]:
    """Where `document` is not of its kind's schema: a path and what is wrong there, each."""
    spec = _KINDS.get((document.get("apiVersion", ""), document.get("kind", "")))
    if spec is None:
        return ["apiVersion, kind: none of " + ", ".join("/".join(kind) for kind in _KINDS)]
    whole = _record(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion=_TEXT,
        kind=_TEXT,
        metadata=_record(["name"], name=_LABEL, labels=_TEXTS, annotations=_TEXTS),
        spec=spec,
    )
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(document)]


def kuberay_refusals(document: Document) -> list[str]:
    """Why KubeRay 1.7.0 would mark a RayJob or RayCluster of a valid schema as failed, or leave it without workers."""
    name, spec, cluster = document["metadata"]["name"], document["spec"], _cluster(document)
    longest = 53 - 6 * (document["kind"] == "RayJob")
    found = []
    if len(name) > longest or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"a name of at most {longest} characters that begins with a letter")
    if document["kind"] == "RayJob":
        shutdown = spec.get("shutdownAfterJobFinishes", False)
        if not shutdown and (spec.get("ttlSecondsAfterFinished", 0) > 0 or spec.get("suspend", False)):
            found.append("suspend and ttlSecondsAfterFinished ask for shutdownAfterJobFinishes")
        if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
            found.append("backoffLimit is incompatible with InteractiveMode")
    auth = cluster.get("authOptions")
    version = tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", "")))
    if auth is not None and auth.get("mode", "token") == "token" and version < (2, 52):
        found.append("a token asks for a rayVersion of 2.52.0 or later")
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    for group in cluster.get("workerGroupSpecs", []):
        fewest, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and (fewest is None or most is None):
            found.append("without autoscaling a group has minReplicas and maxReplicas")
        if fewest is not None and most is not None and fewest > most:
            found.append("minReplicas greater than maxReplicas")
        if not autoscaling and nodes(group) == 0:  # no refusal: the job would wait for ever
            found.append("without autoscaling a group of no replicas stays empty")
    return found


def kueue_refusals(document: Document) -> list[str]:
    """Why Kueue 0.19.2's webhook would refuse a RayJob or RayCluster. One without a queue is not its own."""
    metadata, cluster = document["metadata"], _cluster(document)
    queue = metadata.get("labels", {}).get(QUEUE)
    if queue is None:
        return []
    found = []
    if len(queue) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", queue):
        found.append("the queue's name is no DNS subdomain")
    if document["kind"] == "RayJob" and not document["spec"].get("shutdownAfterJobFinishes", False):
        found.append("a managed job deletes its cluster: shutdownAfterJobFinishes")
    elastic = metadata.get("annotations", {}).get(ELASTIC) == "true"
    if cluster.get("enableInTreeAutoscaling", False) and not elastic:
        found.append("autoscaling of what is no elastic job")
    groups = cluster.get("workerGroupSpecs", [])
    if len(groups) + 1 > MAX_POD_SETS:
        found.append(f"more than {MAX_POD_SETS} pod sets")
    if any(group["groupName"] == "head" for group in groups):
        found.append("a group named head")
    return found


def nodes(group: Document) -> int:
    """How many pods of a worker group KubeRay starts without autoscaling."""
    fewest, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    return int(min(max(group.get("replicas", 0), fewest), most))


def _cluster(document: Document) -> Document:
    cluster: Document = document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]
    return cluster
