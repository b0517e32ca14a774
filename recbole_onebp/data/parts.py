"""The final run on the train and the validation part together."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import cat_interactions

from recbole_onebp.util.errors import UserError

__all__ = ["add_validation_to_train"]


def add_validation_to_train(dataset: Any) -> None:
    """Let ``dataset.build()``, RecBole's, return its train and validation part as one and an empty validation part.

    What a test user has already taken, and is not recommended again, stays what it was: both parts.
    """

    def build() -> list[Any]:
        del dataset.build  # the class's own again: the parts are copies of the data set
        train, valid, test = dataset.build()
        if len(valid) == 0:
            raise UserError("refit: true: there is no validation part to add to the train part; leave refit out")
        both = train.copy(cat_interactions([train.inter_feat, valid.inter_feat]))
        return [both, valid.copy(valid.inter_feat[:0]), test]

    dataset.build = build
