"""From a trained model to answers: the bundle, and :class:`Recommender`, which needs numpy alone."""

from recbole_onebp.serving.recommender import Answers, Explanation, NewItems, Recommender, Update

__all__ = ["Answers", "Explanation", "NewItems", "Recommender", "Update"]
