"""The roles of `deploy/aws-iam.yaml` are what `ray up cluster.yaml` and Ray's autoscaler ask for, and no more.

Ray's own node provider runs against moto's EC2, which keeps no one from anything: what is asked is noted, and held
against the policies by moto's IAM. Whether AWS itself agrees was not tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"Cluster": "orpo", "Bucket": "my-bucket", "AWS::Partition": "aws"}
ACCOUNT = "123456789012"  # moto's
BUCKET = "arn:aws:s3:::my-bucket"
AT_START = {"ec2:CreateAction": "RunInstances"}


class Template(yaml.SafeLoader):
    """CloudFormation's short forms, with `NAMES` filled in."""


def _filled(_: Template, node: yaml.ScalarNode) -> str:
    text = node.value
    for name, value in NAMES.items():
        text = text.replace(f"${{{name}}}", value)
    return text


Template.add_constructor("!Sub", _filled)
Template.add_constructor("!Ref", lambda _, node: NAMES.get(node.value, node.value))
Template.add_constructor("!GetAtt", lambda _, node: node.value)
STACK: dict[str, Any] = yaml.load((ROOT / "deploy/aws-iam.yaml").read_text(), Template)["Resources"]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
WORKERS = ("gpu-spot", "gpu-on-demand")


def profile_of(kind: str) -> str:
    profile: str = CLUSTER["available_node_types"][kind]["node_config"]["IamInstanceProfile"]["Name"]
    return profile


def role_of(profile: str) -> dict[str, Any]:
    """The role that machines with the profile have."""
    (held,) = (one["Properties"] for one in STACK.values() if one["Properties"].get("InstanceProfileName") == profile)
    (name,) = held["Roles"]
    role: dict[str, Any] = STACK[name]["Properties"]
    return role


def arn(role: dict[str, Any]) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{role['RoleName']}"


def allowed(role: dict[str, Any], action: str, resource: str = "*", **context: str) -> bool:
    """Whether one of the role's policies permits it. What `context` does not say is another's."""
    from moto.iam.access_control import IAMPolicyStatement, PermissionResult

    documents = [policy["PolicyDocument"] for policy in role.get("Policies", ())]
    documents += [STACK[name]["Properties"]["PolicyDocument"] for name in role["ManagedPolicyArns"]]
    text = json.dumps([statement for one in documents for statement in one["Statement"]])
    context = dict.fromkeys(re.findall(r'"((?:aws|ec2|iam):[A-Za-z/-]+)": "', text), "another's") | context
    statements = json.loads(text.replace("WorkerRole.Arn", arn(STACK["WorkerRole"]["Properties"])))
    assert {one["Effect"] for one in statements} == {"Allow"}
    return any(  # one by one: moto takes a condition that is not met for a refusal by all
        IAMPolicyStatement(one).is_action_permitted(action, resource, incoming_condition_values=context)
        == PermissionResult.PERMITTED
        for one in statements
    )


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Action and parameters of every call to an AWS in this process, which has the stack's profiles."""
    import boto3
    from botocore.client import BaseClient
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # `ray up` leaves an SSH key in there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # seconds, for an image that is none of them
    asked: list[tuple[str, dict[str, Any]]] = []
    call = BaseClient._make_api_call

    def noted(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        asked.append((f"{client.meta.service_model.service_name}:{operation}", parameters))
        return call(client, operation, parameters)

    with mock_aws():
        iam = boto3.client("iam")
        for profile in {profile_of(kind) for kind in CLUSTER["available_node_types"]}:
            role = role_of(profile)
            iam.create_role(
                RoleName=role["RoleName"], AssumeRolePolicyDocument=json.dumps(role["AssumeRolePolicyDocument"])
            )
            iam.create_instance_profile(InstanceProfileName=profile)
            iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role["RoleName"])
        monkeypatch.setattr(BaseClient, "_make_api_call", noted)
        yield asked


def test_ray_up_and_the_head_ask_for_what_the_roles_allow(asked: list[tuple[str, dict[str, Any]]]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    cluster = AWSNodeProvider.bootstrap_config(prepare_config(CLUSTER))
    assert {action.partition(":")[0] for action, _ in asked} == {"ec2"}  # `ray up` makes no role: they are there
    asked.clear()

    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    started: dict[str, Any] = {}
    for kind in WORKERS:
        config = cluster["available_node_types"][kind]["node_config"]
        started |= provider.create_node(config, {"ray-node-type": "worker", "ray-user-node-type": kind}, 1)
    assert set(provider.non_terminated_nodes({"ray-node-type": "worker"})) == set(started)
    provider.set_node_tags(next(iter(started)), {"ray-node-status": "up-to-date"})
    provider.node_tags(next(iter(started)))
    tags = {one["Key"]: one["Value"] for node in started.values() for one in node.tags}
    provider.terminate_nodes(list(started))

    head = role_of(profile_of("head"))
    ours = {"aws:ResourceTag/ray-cluster-name": tags["ray-cluster-name"]}
    assert {action for action, _ in asked} >= {
        "ec2:RunInstances",
        "ec2:DescribeInstances",
        "ec2:TerminateInstances",
    }
    for action, parameters in asked:
        assert allowed(head, action, **ours), action
        if action == "ec2:RunInstances":
            assert {one["ResourceType"] for one in parameters["TagSpecifications"]} == {"instance"}
            assert allowed(head, "ec2:CreateTags", **AT_START)
            passed = arn(role_of(parameters["IamInstanceProfile"]["Name"]))
            assert allowed(head, "iam:PassRole", passed, **{"iam:PassedToService": "ec2.amazonaws.com"})


def test_the_head_has_a_profile_of_its_own() -> None:
    """Without one Ray gives it a role that may do anything to EC2 and S3, but not hand workers theirs."""
    assert profile_of("head") != profile_of("gpu-spot") == profile_of("gpu-on-demand")
    assert {profile_of("head"), profile_of("gpu-spot")} == {
        f"{CLUSTER['cluster_name']}-head", f"{CLUSTER['cluster_name']}-worker",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["head", *WORKERS])
def test_machines_reach_their_bucket_alone(kind: str) -> None:
    role = role_of(profile_of(kind))
    trusted = role["AssumeRolePolicyDocument"]["Statement"]
    assert [one["Principal"] for one in trusted] == [{"Service": "ec2.amazonaws.com"}]
    for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
        assert allowed(role, f"s3:{action}", f"{BUCKET}/orpo/run/manifest.json")
        assert not allowed(role, f"s3:{action}", f"{BUCKET}-of-others/x")
    assert allowed(role, "s3:ListBucket", BUCKET) and not allowed(role, "s3:ListBucket", f"{BUCKET}-of-others")


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.parametrize(
    "action", ["ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole", "ec2:DescribeInstances"]
)
def test_workers_start_and_end_nothing(kind: str, action: str) -> None:
    assert not allowed(role_of(profile_of(kind)), action, **{"aws:ResourceTag/ray-cluster-name": "orpo"})


def test_the_head_ends_no_other_machines_and_hands_on_no_other_role() -> None:
    head = role_of(profile_of("head"))
    to_machines = {"iam:PassedToService": "ec2.amazonaws.com"}
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert not allowed(head, action)
        assert not allowed(head, action, **{"aws:ResourceTag/ray-cluster-name": "others"})
    assert not allowed(head, "iam:PassRole", arn(head), **to_machines)
    assert not allowed(head, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", **to_machines)
    assert not allowed(head, "iam:CreateRole") and not allowed(head, "ec2:AuthorizeSecurityGroupIngress")
    assert allowed(head, "iam:CreateServiceLinkedRole", **{"iam:AWSServiceName": "spot.amazonaws.com"})
    assert not allowed(head, "iam:CreateServiceLinkedRole", **{"iam:AWSServiceName": "ecs.amazonaws.com"})
