"""IAM documents with no more than what each role calls.

`*` stands only where a name ends with a hash or an object's key, and as a resource where IAM knows no other. An action
is never a pattern.
"""

from serve.aws.iam import PULL, Document, Place, allow, document, trust
from serve.aws.plan import split_role, split_uri
from serve.aws.policies_pipeline import pipeline_policies
from serve.aws.transform import records_beside


def policies_of(place: Place) -> dict[str, Document]:
    """All documents by name: who may take a role, and what it may do."""
    here = {"StringEquals": {"aws:SourceAccount": split_role(place.role)[1]}}  # not on behalf of other accounts
    return {
        "execution_role_trust": trust("sagemaker.amazonaws.com", Condition=here),
        "execution_role": document(_execution(place)),
        "deployer": document(_deployer(place)),
        "lambda_trust": trust("lambda.amazonaws.com"),
        "lambda": document(_lambda(place)),
        **pipeline_policies(place),
    }


def _execution(place: Place) -> list[Document]:
    """What a container needs: its image, its bundle, a log, and the photos and answers of a batch transform."""
    groups = [f"/aws/sagemaker/Endpoints/{place.name}", "/aws/sagemaker/TransformJobs"]
    namespaces = {"StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", "/aws/sagemaker/*"]}}
    return [
        allow("ReadBundlesAndPhotos", ["s3:GetObject"], [place.objects(place.bundles), place.objects(place.photos)]),
        place.listing("ListBundles", place.bundles),
        place.listing("ListPhotos", place.photos),
        allow("WriteAnswers", ["s3:PutObject"], place.objects(place.answers)),
        allow("SignInToTheRegistry", ["ecr:GetAuthorizationToken"], "*"),
        allow("PullImages", PULL, place.repositories),
        place.logs("WriteLogs", *groups),
        allow("WriteMetrics", ["cloudwatch:PutMetricData"], "*", namespaces),
    ]


def _deployer(place: Place) -> list[Document]:
    """What `deploy`, `invoke`, `transform` and `delete` call."""
    endpoint, configs = place.arn("sagemaker", f"endpoint/{place.name}"), f"endpoint-config/{place.name}-*"
    models, jobs = place.arn("sagemaker", f"model/{place.name}-*"), f"transform-job/{place.name}-*"
    config = place.arn("sagemaker", configs)
    to_sagemaker = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    return [
        allow(
            "KeepBundles",
            ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject"],
            place.objects(place.bundles),
        ),
        allow(
            "Score",
            ["s3:GetObject"],
            [place.objects(place.answers), place.objects(records_beside(place.photos))],
        ),
        place.listing("ListBundles", place.bundles),
        place.listing("ListPhotos", place.photos),
        place.listing("ListAnswers", place.answers),
        allow("PassTheRole", ["iam:PassRole"], place.role, to_sagemaker),
        allow("KeepModels", ["sagemaker:CreateModel", "sagemaker:DeleteModel", "sagemaker:DescribeModel"], models),
        allow(
            "KeepConfigs",
            [
                "sagemaker:CreateEndpointConfig",
                "sagemaker:DeleteEndpointConfig",
                "sagemaker:DescribeEndpointConfig",
            ],
            config,
        ),
        allow("MakeEndpoint", ["sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"], [endpoint, config]),
        allow(
            "KeepEndpoint",
            ["sagemaker:DeleteEndpoint", "sagemaker:DescribeEndpoint", "sagemaker:InvokeEndpoint"],
            endpoint,
        ),
        allow(
            "Transform",
            ["sagemaker:CreateTransformJob", "sagemaker:DescribeTransformJob"],
            place.arn("sagemaker", jobs),
        ),
        allow("FindLeftovers", ["sagemaker:ListEndpointConfigs", "sagemaker:ListModels"], "*"),
    ]


def _lambda(place: Place) -> list[Document]:
    """What serve/aws/lambda_handler.py calls."""
    bucket, _ = split_uri("photos", place.photos)
    return [
        allow("Count", ["sagemaker:InvokeEndpoint"], place.arn("sagemaker", f"endpoint/{place.name}")),
        allow("ReadPhotos", ["s3:GetObject"], place.objects(place.photos)),
        allow("WriteAnswers", ["s3:PutObject"], place.objects(f"s3://{bucket}/counts/")),
        place.logs("WriteLogs", f"/aws/lambda/{place.name}"),
    ]
