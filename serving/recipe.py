"""What a recipe says about hosting its model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationInfo, field_validator, model_validator

from cluster.errors import UserError
from cluster.settings import Count, Strict

EngineName = Literal[
    "torch-fp32", "torch-bf16", "torch-int8", "onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16"
]
Wanted = Literal["fast"] | EngineName

STANDS_FOR = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _written_as_text(value: Any) -> Any:
    """YAML reads a version as a number."""
    if isinstance(value, dict):
        return {_written_as_text(key): share for key, share in value.items()}
    return str(value) if type(value) is int else value


def _one_version(value: str) -> str:
    if not STANDS_FOR.fullmatch(value):
        raise ValueError(f"'{value}' is neither an alias, as production, nor a version, as 3")
    return value


def _whole(shares: dict[str, int]) -> dict[str, int]:
    if sum(shares.values()) != 100:
        raise ValueError(f"the shares sum to {sum(shares.values())}; they must sum to 100")
    return shares


Version = Annotated[str, BeforeValidator(_written_as_text), AfterValidator(_one_version)]
Share = Annotated[int, Field(strict=True, ge=0, le=100)]
Shares = Annotated[dict[Version, Share], BeforeValidator(_written_as_text), AfterValidator(_whole)]


class Replicas(Strict):
    """How many copies of the model answer; Ray Serve moves between the two numbers with the work that waits."""

    example: ClassVar[str] = "{min: 1, max: 4}"

    min: Count = Field(
        1,
        ge=0,
        description="Copies that are always there. With 0 the last one goes when nobody asks; the next request then "
        "waits until one has started.",
    )
    max: Count = Field(1, ge=1, description="Copies at the highest load.")
    target_wait_seconds: float = Field(
        0.5,
        gt=0,
        description="There are to be as many copies as bring the wait of a new input, before a model begins with it, "
        "to this: the tokens that wait over the tokens per second that are measured.",
    )
    down_after_seconds: float = Field(
        60, ge=0, description="Copies go when fewer would have sufficed for so long; they come within seconds."
    )
    idle_seconds: float = Field(
        60, gt=0, description="With `min: 0`, the last copy goes after so long without any request."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Rollback(Strict):
    """When a version is taken back by itself: one that an alias moved to, or that answers a part of the requests.

    It is compared with the version that it took over from, or with the one that answers most. A bound that is null is
    not looked at.
    """

    errors: float | None = Field(
        0.05, gt=0, lt=1, description="The share of requests that may fail inside the server, beyond the other's."
    )
    latency: float | None = Field(
        2.0, gt=1, description="How many times as long its slow batches may take as the other's of like size."
    )
    labels: float | None = Field(
        0.2,
        gt=0,
        lt=1,
        description="How far the mix of its best labels may be from the other's: Jensen-Shannon divergence in bits, "
        "from 0, the same mix, to 1, no label in common.",
    )
    least: Count = Field(200, ge=1, description="Requests that a replica has seen answered before it judges.")


class Tls(Strict):
    """What the address shows to whoever asks over HTTPS."""

    example: ClassVar[str] = "{certificate: chain.pem, key: key.pem}"

    certificate: Path = Field(description="A PEM file: the certificate, then those it was signed with.")
    key: Path = Field(description="The PEM file of its private key, without a password.")

    @field_validator("certificate", "key")
    @classmethod
    def _from_the_recipe(cls, value: Path, info: ValidationInfo) -> Path:
        # Not resolved: a certificate is often renewed by pointing a link elsewhere.
        return Path((info.context or {}).get("folder", "."), value.expanduser()).absolute()


class Serve(Strict):
    """How the model is hosted."""

    replicas: Replicas = Field(default_factory=Replicas, description="Autoscaling bounds.")
    engine: Wanted = Field(
        "torch-fp32",
        description="What computes the answers. torch-fp32: what `predict` computes with; fast: the one that is "
        "measured to be fastest here, of those whose answers agree with torch-fp32 on rows that were held back; or one "
        "by its name. The onnx ones need `pip install 'headrace[onnx]'`, the openvino ones 'headrace[openvino]'.",
    )
    memory: ByteSize | None = Field(
        None,
        ge=1,
        le=2**63 - 1,
        description="What the weights of all models may take in one replica, as in 4GiB. Where that is less than they "
        "are, those that were not asked for longest leave and come back when they are asked. Left out, all stay.",
    )
    max_items: Count = Field(
        128, ge=1, description="Inputs that one request may carry; texts, where an input holds many."
    )
    max_tokens: Count = Field(
        131_072,
        ge=1,
        description="Tokens that one request may have computed: those of its inputs, as far as the model reads them, "
        "and those that it may have written.",
    )
    max_body_bytes: int = Field(2_000_000, ge=1024, le=2**63 - 1, description="The largest request body.")
    max_queue: Count = Field(2048, ge=1, description="Inputs waiting in one replica before it answers 429.")
    timeout_seconds: float = Field(30, gt=0, description="The longest that a request may wait for its answer.")
    traffic: Shares | None = Field(
        None,
        description="What share of the requests each version answers, as {production: 90, candidate: 10}: an alias or "
        "a version, and a whole number; they sum to 100. By default the version in production answers all.",
    )
    shadow: Version | None = Field(
        None,
        description="An alias or a version that is asked as well, after the client has its answer, and only compared.",
    )
    rollback: Rollback | None = Field(
        default_factory=Rollback, description="When a version is taken back by itself; null for never."
    )
    tls: Tls | None = Field(None, description="The certificate of an https address; left out, the address is http.")
    access_log: bool = Field(False, description="Whether each question to a model leaves a line in the log.")


class Hosted(Strict):
    """One model of a ``serve.yaml``; a name alone stands for ``{name: NAME}``."""

    example: ClassVar[str] = "{name: support-intent}"

    name: str = Field(description="NAME, NAME@ALIAS, NAME/3, or a bundle folder.")
    traffic: Shares | None = Field(None, description="As `serve.traffic`, for this model.")
    shadow: Version | None = Field(None, description="As `serve.shadow`, for this model.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Hosting(Strict):
    """What a ``serve.yaml`` says: which models share an address, and how they are hosted."""

    models: list[Hosted] = Field(min_length=1, description="Each by its name, or as {name: …, traffic: …, shadow: …}.")
    serve: Serve = Field(default_factory=Serve, description="How all of them are hosted.")

    @field_validator("serve")
    @classmethod
    def _of_one_model(cls, serve: Serve, info: ValidationInfo) -> Serve:
        hosted(info.data.get("models", ()), serve)
        return serve


def hosted(models: Sequence[str | Hosted], serve: Serve) -> list[Hosted]:
    """The models, each with its traffic and its shadow; those of ``serve`` are the only model's.

    Raises:
        UserError: there are several models and ``serve`` has a traffic or a shadow.
    """
    each = [Hosted.model_validate(model) for model in models]
    for key in ("traffic", "shadow"):
        if len(each) > 1 and getattr(serve, key) is not None:
            raise UserError(f"serve.{key}: which of several models is meant? Write models: [{{name: …, {key}: …}}, …]")
    if len(each) != 1:
        return each
    (only,) = each
    return [Hosted(name=only.name, traffic=only.traffic or serve.traffic, shadow=only.shadow or serve.shadow)]
