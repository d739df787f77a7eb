"""The section `head` of configs/*.yaml."""

from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic

from xbm_keras.arguments import Share
from xbm_keras.config.sections import section_of
from xbm_keras.stages.head.fc_layer import Head, Width

AUTO_DIM = 128  # dimensions of an embedding, of features that have as many
IN_CODE_ALONE = ("hidden_dim", "power", "seed", "width_weights")
"""Arguments that a run fills in, or of which no measurement shows another value to pay."""

if TYPE_CHECKING:  # a number wherever features are known
    Dimensions = Any
else:
    Dimensions = Width | Literal["auto"]


class HeadConfig(section_of(Head, without=IN_CODE_ALONE)):  # type: ignore[misc]
    """The FC layer."""

    embedding_dim: Dimensions = "auto"
    """Dimensions of an embedding: "auto" is the last one of `widths`; without these 128, or the features' own number
    where that is less, or where queries alone pass the layer."""
    start: Literal[
        "auto", "random", "identity", "pca", "whiten", "local", "lda", "nda", "centred", "ridge", "procrustes"
    ] = "auto"
    """The weights before the first step: a closed form of the training features, or random; "auto" tries all that go
    with the data on held-out classes or queries, and of those that are not surely worse than the best takes the one
    that classes tell most. Of pairs it takes the best; ridge and procrustes, of queries alone, are of pairs."""
    shrinkage: Share | Literal["auto"] = "auto"
    """Of the within-class covariance, for whiten, lda and nda; of that within neighbourhoods, for local. "auto" takes
    the best one, by the same folds; without labels by the neighbours that are kept among held-out items."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _widest(cls, values):
        """The widest nested width is the embedding's; what is no list of widths is told of as such, below."""
        widths = values.get("widths") if isinstance(values, dict) else None
        if isinstance(widths, list) and widths and values.get("embedding_dim", "auto") == "auto":
            return {**values, "embedding_dim": widths[-1]}
        return values

    @pydantic.model_validator(mode="after")
    def _nested(self):
        if self.embedding_dim != "auto":
            Head(self.embedding_dim, widths=self.widths)  # refuses widths that do not go with it
        return self

    def for_features(self, width: int | None) -> Self:
        """The same, with a number of dimensions in place of "auto", for features of a width; as it is for None, which
        is not known yet.

        Raises:
            ValueError: for more dimensions than a closed form of the features can have, or, where queries alone pass
                the layer, other ones than the documents have.
        """
        if width is None:
            return self
        dim, is_of_queries = self.embedding_dim, self.sides == "query"
        given, others = f"embedding_dim={dim}", ""
        if self.widths:
            given = f"head.widths={self.widths}"
            others = f"Give others: --set 'head.widths=[{(width + 3) // 4},{width}]'"
        if dim == "auto":
            dim = width if is_of_queries else min(AUTO_DIM, width)
        elif is_of_queries and dim != width:
            mend = others or "Leave head.embedding_dim out"
            raise ValueError(
                f"Received head.sides 'query' with {given} for features of width {width}; expected {width} dimensions: "
                f"queries are compared with documents as they are. {mend}, or use sides: both."
            )
        elif dim > width and self.start != "random":
            mend = others or "Lower head.embedding_dim, or use start: random"
            raise ValueError(f"Received {given} for features of width {width}; expected at most {width}. {mend}.")
        return self.model_copy(update={"embedding_dim": dim})
