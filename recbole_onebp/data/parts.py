"""The final run on the train and validation parts together (``refit: true``)."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import cat_interactions

from recbole_onebp.util.errors import UserError

__all__ = ["add_validation_to_train"]


def add_validation_to_train(dataset: Any) -> None:
    """Make RecBole's ``dataset.build()`` return train and validation as one part, and an empty validation part.

    The history that is excluded from recommendations in the test does not change: it is both parts anyway.
    """

    def build() -> list[Any]:
        del dataset.build  # restores the method of the class: the parts are copies of the data set
        train, valid, test = dataset.build()
        if len(valid) == 0:
            raise UserError("refit: true: there is no validation part to add to the train part; leave refit out")
        both = train.copy(cat_interactions([train.inter_feat, valid.inter_feat]))
        return [both, valid.copy(valid.inter_feat[:0]), test]

    dataset.build = build
