"""The container image that an endpoint runs."""

import re
from typing import Final

from bintally.errors import ConfigError

RAY_IMAGE: Final = "1.4"
"""Version of AWS's Ray Serve image that the bundle is made for."""

_MAIN_REGIONS: Final = (
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
)
ACCOUNTS: Final = dict.fromkeys(_MAIN_REGIONS, "763104351884") | {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
}
"""AWS's accounts that hold the image, by region, as sagemaker-core 2.27 lists them."""


def is_gpu(instance_type: str) -> bool:
    """Whether instances of this type have NVIDIA GPUs."""
    return re.match(r"ml\.(g|gr|p)\d", instance_type) is not None


def check_instance_type(field: str, instance_type: str) -> None:
    """Refuse what cannot be the name of a type.

    Raises:
        ConfigError: it cannot; the message names the field.
    """
    if not re.fullmatch(r"ml\.[a-z0-9-]+\.[a-z0-9-]+", instance_type):
        raise ConfigError(f"{field} must be one of SageMaker's, as ml.m5.xlarge, not {instance_type!r}")


def check_counts_on(instance_type: str) -> None:
    """Refuse instances of which a counter would leave idle what makes them expensive.

    Raises:
        ConfigError: the type is none, or has GPUs.
    """
    check_instance_type("instance_type", instance_type)
    if is_gpu(instance_type):
        raise ConfigError(
            f"instance_type {instance_type} has GPUs, and models on SageMaker count on CPUs; take one without, as"
            " ml.c5.xlarge"
        )


def ray_image(region: str, instance_type: str) -> str:
    """AWS's own Ray Serve image: from the `sagemaker` extra if it is installed, else from the table above.

    Raises:
        ConfigError: there is none for this region or processor.
    """
    if re.match(r"ml\.[a-z]+\d+g", instance_type):
        raise ConfigError(f"instance_type {instance_type} is arm64, for which AWS has no Ray image; name an image")
    try:
        from sagemaker.core import image_uris
    except ImportError:
        return _listed_image(region)
    try:
        image: str = image_uris.retrieve("ray-serve", region=region, version=RAY_IMAGE, instance_type=instance_type)
    except ValueError as error:
        raise ConfigError(f"the sagemaker extra knows no Ray image, name an image: {error}") from None
    return image


def _listed_image(region: str) -> str:
    if region not in ACCOUNTS:
        raise ConfigError(f"no Ray image of AWS is known in region {region}; name an image")
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/ray:serve-ml-sagemaker-cpu-v{RAY_IMAGE}"
