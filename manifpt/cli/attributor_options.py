"""The options of attributors in use: where they lie, and the rule of decisions."""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from manifpt.attribution.unknown.decision import Rule

AttributorUri = Annotated[
    str,
    Field(
        description="attributor: a folder of train_attribution, or a registered model as "
        "models:/NAME@ALIAS"
    ),
]
MovedAttributor = Annotated[
    str | None, Field(description="present location of the attributor, if it was moved")
]
MovedManifolds = Annotated[
    tuple[str, ...],
    Field(description="present location of the attributor's manifolds, if they were moved"),
]


class DecisionOptions(BaseModel):
    """The options of decisions: generator or real, unknown or unsure."""

    sure: float = Field(
        0.5,
        ge=0,
        le=1,
        description="decision: lowest probability of an answer; below it the decision is unsure",
    )
    false_rejection: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="decision: largest share of images of known classes that may be called "
        "unknown; 0 calls no image unknown",
    )

    @property
    def rule(self) -> "Rule":
        """The rule asked for."""
        from manifpt.attribution.unknown.decision import Rule

        return Rule(self.sure, self.false_rejection)
